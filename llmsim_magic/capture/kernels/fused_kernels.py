"""Attention and recurrent layers as single kernels, as a GPU runs them: arguments and outputs."""

from typing import Any, NamedTuple

import torch

ATTENTION = "aten.scaled_dot_product_attention.default"
# The functions behind `nn.LSTM`, `nn.GRU` and `nn.RNN`, and the names of their kernels.
RECURRENT: dict[Any, str] = {
    torch._VF.lstm: "aten.lstm.input",
    torch._VF.gru: "aten.gru.input",
    torch._VF.rnn_tanh: "aten.rnn_tanh.input",
    torch._VF.rnn_relu: "aten.rnn_relu.input",
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
    """The arguments of `torch._VF.lstm`, `gru`, `rnn_tanh` and `rnn_relu`, in their order.

    `input` is `[time, batch, width]`, or `[batch, time, width]` with `batch_first`; `weights` is
    a flat list.
    """

    input: torch.Tensor
    states: Any
    weights: Any
    has_biases: bool
    layers: int
    dropout: float
    train: bool
    bidirectional: bool
    batch_first: bool = False


def recurrent_outputs(*args: Any) -> tuple[torch.Tensor, ...]:
    """Return the outputs of a recurrent layer on `meta`, without computing them.

    Args:
        *args: The fields of `RecurrentArguments`.

    Returns:
        The output `[time, batch, directions · hidden]`, then each final state.
    """
    arguments = RecurrentArguments(*args)
    states = arguments.states
    states = states if isinstance(states, (tuple, list)) else (states,)
    width = states[0].shape[-1] * (2 if arguments.bidirectional else 1)
    shape = (*arguments.input.shape[:-1], width)
    output = arguments.input.new_empty(shape, device=torch.device("meta"))
    return (output, *(output.new_empty(state.shape) for state in states))
