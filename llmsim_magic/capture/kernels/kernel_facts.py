"""What torch itself knows of an ATen op: what it writes, whether it is a view, its FLOPs."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from llmsim_magic.capture.kernels.tensors import tensors_in

_ALLOCATIONS = frozenset(
    {
        torch.ops.aten.empty,
        torch.ops.aten.empty_like,
        torch.ops.aten.empty_strided,
        torch.ops.aten.empty_permuted,
        torch.ops.aten.new_empty,
        torch.ops.aten.new_empty_strided,
    }
)
ATTENTION = "aten.scaled_dot_product_attention.default"


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """`mutable` names the arguments, by place or keyword, that the kernel writes.

    One that only looks at a tensor in another shape (`squeeze_`) writes none. A kernel that
    `allocates` makes a tensor and writes nothing; one that `aliases` may change or hand on an
    argument; one that `copies` may do no more than change the device. One that `draws` random
    numbers takes a generator in the overload `with_generator`, if it has any.
    """

    name: str
    mutable: tuple[int | str, ...]
    pointwise: bool
    composite: bool
    allocates: bool
    aliases: bool
    copies: bool
    draws: bool
    with_generator: Any


@lru_cache(maxsize=4096)
def facts(func: Any) -> KernelFacts:
    """What is known of an `OpOverload`."""
    schema = func._schema
    mutable: list[int | str] = []
    for place, argument in enumerate(schema.arguments):
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        if is_written and torch.Tag.inplace_view not in func.tags:
            mutable.append(argument.name if argument.kwarg_only else place)
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(), "CompositeImplicitAutograd"
    )
    return KernelFacts(
        str(func),
        tuple(mutable),
        torch.Tag.pointwise in func.tags,
        composite,
        func._overloadpacket in _ALLOCATIONS,
        any(part.alias_info is not None for part in (*schema.arguments, *schema.returns)),
        func._overloadpacket is torch.ops.aten._to_copy,
        torch.Tag.nondeterministic_seeded in func.tags,
        _with_generator(func),
    )


def _with_generator(func: Any) -> Any:
    """The kernel with the same arguments and a generator, where there is one."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return None
    packet, plain = func._overloadpacket, _arguments(func)
    for overload in (func, *(getattr(packet, name) for name in packet.overloads())):
        taken = _arguments(overload)
        if "generator" in taken and plain | {"generator": taken["generator"]} == taken:
            return overload
    return None


def _arguments(func: Any) -> dict[str, str]:
    return {argument.name: str(argument.type) for argument in func._schema.arguments}


def written_to(func: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    """The tensors that a call of a kernel writes, `out=` and lists of them included."""
    found: list[torch.Tensor] = []
    for place in facts(func).mutable:
        value = kwargs.get(place) if isinstance(place, str) else args[place : place + 1]
        found += tensors_in(value)
    return found


def only_changes_device(
    before: torch.Tensor, after: torch.Tensor, device: torch.device | None
) -> bool:
    """Whether a copy is one between host and `meta`: where the model lives they are one device."""
    return device not in (None, before.device) and before.dtype == after.dtype


def flops(func: Any, args: Any, kwargs: Any, out: Any) -> int | None:
    """FLOPs by `torch.utils.flop_counter`'s own formula, or None where there is none."""
    packet = func._overloadpacket
    if packet in _OWN_FORMULAS:
        return _OWN_FORMULAS[packet](*args[:2])
    formula = flop_registry.get(packet)
    return None if formula is None else int(formula(*args, **kwargs, out_val=out))


def _grouped_matmul(rows: torch.Tensor, weights: torch.Tensor) -> int:
    """Every row meets the matrix of its own group: 2 · rows · k · n, however they are shared out.

    Shapes: rows `[rows, k]`, weights `[groups, k, n]`, as the experts of transformers call it.
    """
    return 2 * rows.shape[-2] * rows.shape[-1] * weights.shape[-1]


def _matrix_vector(matrix: torch.Tensor, vector: torch.Tensor) -> int:
    """`[m, k] × [k]`: 2 · m · k."""
    return 2 * matrix.shape[0] * matrix.shape[1]


def _dot(one: torch.Tensor, other: torch.Tensor) -> int:
    """`[k] · [k]`: 2 · k."""
    return 2 * one.shape[0]


_OWN_FORMULAS: dict[Any, Callable[[torch.Tensor, torch.Tensor], int]] = {
    torch.ops.aten._grouped_mm: _grouped_matmul,
    torch.ops.aten.mv: _matrix_vector,
    torch.ops.aten.dot: _dot,
    torch.ops.aten.vdot: _dot,
}


class Attention(NamedTuple):
    """The arguments of `scaled_dot_product_attention`, in its own order.

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


def fused_attention(given: Attention) -> torch.Tensor:
    """The output of attention as one kernel, laid out as the fused GPU kernels lay it out.

    Raises RuntimeError where torch's own operator would refuse the shapes.
    """
    query, key, value = given.query, given.key, given.value
    fits = query.shape[-1] == key.shape[-1] and key.shape[-2] == value.shape[-2]
    if given.enable_gqa:
        fits = fits and query.shape[-3] % key.shape[-3] == 0
    if not fits:
        raise RuntimeError(
            f"attention shapes disagree: query {tuple(query.shape)}, key {tuple(key.shape)}, "
            f"value {tuple(value.shape)} as [batch, heads, tokens, width]"
        )
    heads = query.shape[:-2] if given.enable_gqa else key.shape[:-2]
    lead = torch.broadcast_shapes(query.shape[:-2], heads)
    tokens, width = query.shape[-2], value.shape[-1]
    if len(lead) < 2:
        return query.new_empty((*lead, tokens, width))
    return query.new_empty((*lead[:-1], tokens, lead[-1], width)).transpose(-3, -2)


def attention_flops(given: Attention) -> int:
    """FLOPs of both matmuls of attention, causal or not, by torch's formula.

    Leading dimensions beyond batch and heads are folded into batch. Heads that share keys and
    values each meet them, which the formula of an older torch does not know.
    """

    def four(tensor: torch.Tensor) -> tuple[int, ...]:
        padded = (1,) * (4 - tensor.dim()) + tuple(tensor.shape)
        return (math.prod(padded[:-3]), *padded[-3:])

    q, k, v = four(given.query), four(given.key), four(given.value)
    return int(sdpa_flop_count(q, (*q[:2], *k[2:]), (*q[:2], *v[2:])))


class Recurrent(NamedTuple):
    """A recurrent layer of torch, which a GPU runs as one kernel.

    Arguments as torch's own: input `[time, batch, width]` (the first two exchanged with
    `batch_first`), states, `weights` flat, then its options.
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


# What `nn.LSTM` and its like call, and the name of the kernel behind it.
RECURRENT: dict[Any, str] = {
    torch._VF.lstm: "aten.lstm.input",
    torch._VF.gru: "aten.gru.input",
    torch._VF.rnn_tanh: "aten.rnn_tanh.input",
    torch._VF.rnn_relu: "aten.rnn_relu.input",
}


def recurrent_outputs(*args: Any) -> tuple[torch.Tensor, ...]:
    """The output and the last states of a recurrent layer, without computing them."""
    given = Recurrent(*args)
    states = given.states if isinstance(given.states, (tuple, list)) else (given.states,)
    width = states[0].shape[-1] * (2 if given.bidirectional else 1)
    output = given.input.new_empty((*given.input.shape[:-1], width), device=torch.device("meta"))
    return (output, *(output.new_empty(state.shape) for state in states))


def recurrent_flops(*args: Any) -> int:
    """2 · rows · elements of every weight matrix: each is met once by every step of every sample.

    Shapes: `weight_ih` `[gates · hidden, width]`, `weight_hh` `[gates · hidden, hidden]`.
    """
    given = Recurrent(*args)
    rows = math.prod(given.input.shape[:-1])
    return sum(2 * rows * weight.numel() for weight in given.weights if weight.dim() == 2)
