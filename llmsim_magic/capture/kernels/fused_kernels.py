"""Attention and recurrent layers as single kernels, as a GPU runs them: arguments and outputs."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

ATTENTION = "aten.scaled_dot_product_attention.default"
FLEX = "higher_order.flex_attention"
# The functions behind `nn.LSTM`, `nn.GRU` and `nn.RNN`, and their ATen operators.
RECURRENT: dict[Any, str] = {
    torch._VF.lstm: "aten.lstm",
    torch._VF.gru: "aten.gru",
    torch._VF.rnn_tanh: "aten.rnn_tanh",
    torch._VF.rnn_relu: "aten.rnn_relu",
}


class AttentionArguments(NamedTuple):
    """The arguments of `scaled_dot_product_attention`, in the order of its signature.

    Shapes: query `[..., heads, tokens, d]`, key and value `[..., heads_kv, keys, d]`.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    attn_mask: torch.Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False


def fused_attention(arguments: AttentionArguments) -> torch.Tensor:
    """Return the output of attention, laid out in memory as the fused GPU kernels do.

    Args:
        arguments: What `scaled_dot_product_attention` was called with.

    Returns:
        An uninitialised tensor `[..., heads, tokens, d_value]`.

    Raises:
        RuntimeError: torch's own operator would refuse the shapes.
    """
    query, key, value = arguments.query, arguments.key, arguments.value
    fits = query.shape[-1] == key.shape[-1] and key.shape[-2] == value.shape[-2]
    if arguments.enable_gqa:
        fits = fits and query.shape[-3] % key.shape[-3] == 0
    if not fits:
        raise RuntimeError(
            f"attention shapes disagree: query {tuple(query.shape)}, key {tuple(key.shape)}, "
            f"value {tuple(value.shape)} as [batch, heads, tokens, width]"
        )
    heads = query.shape[:-2] if arguments.enable_gqa else key.shape[:-2]
    lead = torch.broadcast_shapes(query.shape[:-2], heads)
    tokens, width = query.shape[-2], value.shape[-1]
    if len(lead) < 2:
        return query.new_empty((*lead, tokens, width))
    return query.new_empty((*lead[:-1], tokens, lead[-1], width)).transpose(-3, -2)


class RecurrentArguments(NamedTuple):
    """The arguments of `torch._VF.lstm`, `gru`, `rnn_tanh` and `rnn_relu`.

    `input` is `[time, batch, width]`, or `[batch, time, width]` with `batch_first`; of a packed
    sequence it is `[steps of all samples, width]`, and `batch_sizes` has the samples of each step.
    `weights` is a flat list.
    """

    input: torch.Tensor
    states: Any
    weights: Any
    batch_sizes: torch.Tensor | None
    bidirectional: bool
    has_biases: bool
    num_layers: int
    dropout: float
    train: bool
    batch_first: bool


def recurrent_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> RecurrentArguments:
    """Name the arguments of a recurrent layer, which has an overload for packed sequences."""
    is_packed = "data" in kwargs or "batch_sizes" in kwargs or _is_weight_list(args[3:4])
    names = _PACKED_ARGUMENTS if is_packed else _PADDED_ARGUMENTS
    values = {**dict(zip(names, args, strict=False)), **kwargs}
    return RecurrentArguments(
        input=values["data" if is_packed else "input"],
        states=values["hx"],
        weights=values["params"],
        batch_sizes=values.get("batch_sizes"),
        bidirectional=values["bidirectional"],
        has_biases=values["has_biases"],
        num_layers=values["num_layers"],
        dropout=values["dropout"],
        train=values["train"],
        batch_first=values.get("batch_first", False),
    )


_SETTINGS = ("hx", "params", "has_biases", "num_layers", "dropout", "train", "bidirectional")
_PADDED_ARGUMENTS = ("input", *_SETTINGS, "batch_first")
_PACKED_ARGUMENTS = ("data", "batch_sizes", *_SETTINGS)


def _is_weight_list(values: Sequence[Any]) -> bool:
    return bool(values) and isinstance(values[0], (tuple, list))


def recurrent_kernel(func: Any, arguments: RecurrentArguments) -> str:
    """Return the name of the kernel of a recurrent layer, such as `aten.lstm.input`."""
    return f"{RECURRENT[func]}.{'input' if arguments.batch_sizes is None else 'data'}"


def recurrent_outputs(arguments: RecurrentArguments) -> tuple[torch.Tensor, ...]:
    """Return the outputs of a recurrent layer on `meta`, without computing them.

    Args:
        arguments: What the layer's function was called with.

    Returns:
        The output, shaped as the input with `directions · hidden` as its last dimension, then
        each final state. `hidden` is the projection size of an LSTM that has one.
    """
    states = arguments.states
    states = states if isinstance(states, (tuple, list)) else (states,)
    width = states[0].shape[-1] * (2 if arguments.bidirectional else 1)
    shape = (*arguments.input.shape[:-1], width)
    output = arguments.input.new_empty(shape, device=torch.device("meta"))
    return (output, *(output.new_empty(state.shape) for state in states))
