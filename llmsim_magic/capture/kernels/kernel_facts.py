"""Facts about an ATen op from its schema: which arguments it mutates, and how it allocates."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

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


_STRUCTURES = {
    "_nested_": "nested tensors",
    "nested_": "nested tensors",
    "_to_sparse": "sparse tensors",
    "_sparse_": "sparse tensors",
    "sparse_": "sparse tensors",
    "_spdiags": "sparse tensors",
    "to_mkldnn": "tensors in the layout of oneDNN",
    "quantize_per_": "quantized tensors",
}
_OF_MASKS = ("_nested_tensor_from_mask_left_aligned",)  # reads a mask and returns a boolean


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFacts:
    """Facts about one `OpOverload`.

    Attributes:
        name: Qualified name, such as `aten.mm.default`.
        mutated: The arguments that the kernel writes, by position, or by name where they are
            keyword-only. Empty for ops that change only a tensor's shape, such as `squeeze_`.
        is_in_place: Whether it writes an argument, or changes only an argument's shape.
        is_pointwise: Whether it works element by element, also where torch does not tag it so.
        is_composite: Whether torch decomposes it into other kernels on every device. Some ops, such
            as the derivative of SiLU, are one kernel on devices that have it, and on meta.
        is_allocation: Whether it creates a tensor without writing it.
        may_alias: Whether it may write or return one of its arguments.
        is_to_copy: Whether it converts dtype or device, and so may change nothing but the device.
        only_updates_first: Whether it writes new values into its first argument, element by
            element, and returns it.
        is_random: Whether it draws random numbers.
        structure: The kind of tensor without strides that it makes or reads, such as a nested
            tensor; None for an ordinary op.
        causal_place: The position of the argument that says whether attention is causal, or None.
        generator_overload: The overload with the same arguments and a generator, or None.
    """

    name: str
    mutated: tuple[int | str, ...]
    is_in_place: bool
    is_pointwise: bool
    is_composite: bool
    is_allocation: bool
    may_alias: bool
    is_to_copy: bool
    only_updates_first: bool
    is_random: bool
    structure: str | None
    causal_place: int | None
    generator_overload: Any


# By the id of their ops, which are held: an op's own hash is a function in Python.
_known: dict[int, tuple[Any, KernelFacts]] = {}


def facts(func: Any) -> KernelFacts:
    """Return the facts about an `OpOverload`, read from its schema and tags."""
    found = _known.get(id(func))
    if found is None:
        found = _known[id(func)] = func, _read_facts(func)
    return found[1]


def _read_facts(func: Any) -> KernelFacts:
    schema = func._schema
    written: list[int | str] = [
        argument.name if argument.kwarg_only else position
        for position, argument in enumerate(schema.arguments)
        if argument.alias_info is not None
        and argument.alias_info.is_write
        # A fused optimizer writes gradients only where it unscales those of a scaled loss.
        and not (schema.name.startswith("aten::_fused_") and argument.name == "grads")
    ]
    is_composite = _has_kernel(func, "CompositeImplicitAutograd") and not _has_kernel(func, "Meta")
    is_pointwise = _is_pointwise(func)
    mutated = () if torch.Tag.inplace_view in func.tags else tuple(written)
    return KernelFacts(
        name=str(func),
        mutated=mutated,
        is_in_place=bool(written),
        is_pointwise=is_pointwise,
        is_composite=is_composite,
        is_allocation=func._overloadpacket in _ALLOCATIONS,
        may_alias=any(
            value.alias_info is not None for value in (*schema.arguments, *schema.returns)
        ),
        is_to_copy=func._overloadpacket is torch.ops.aten._to_copy,
        only_updates_first=is_pointwise and mutated == (0,) and _returns_first(schema),
        is_random=torch.Tag.nondeterministic_seeded in func.tags,
        structure=_structure(schema.name.removeprefix("aten::")),
        causal_place=next(
            (place for place, each in enumerate(schema.arguments) if each.name == "is_causal"), None
        ),
        generator_overload=_generator_overload(func),
    )


def _returns_first(schema: Any) -> bool:
    """Whether the first argument alone is returned, which no other argument aliases."""
    aliases = [value.alias_info for value in (*schema.arguments, *schema.returns)]
    return (
        len(schema.returns) == 1
        and [alias is not None for alias in aliases] == [True, *[False] * (len(aliases) - 2), True]
        and aliases[0].before_set == aliases[-1].before_set
    )


def _has_kernel(func: Any, key: str) -> bool:
    found: bool = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)
    return found


def _is_pointwise(func: Any) -> bool:
    """Whether an op works element by element.

    torch tags most such ops, but not all their overloads and in-place forms. An overload of the op,
    or of its functional form, with the same arguments does the same work.
    """
    if torch.Tag.pointwise in func.tags:
        return True
    packet, arguments = func._overloadpacket, _input_names(func)
    namespace = getattr(torch.ops, func.namespace)
    functional = getattr(namespace, packet.__name__.removesuffix("_"), packet)
    return any(
        torch.Tag.pointwise in overload.tags and _input_names(overload) == arguments
        for each in (packet, functional)
        for overload in _overloads(each)
    )


def _overloads(packet: Any) -> Iterator[Any]:
    """The overloads of an op, without those that exist only in TorchScript."""
    for name in packet.overloads():
        with suppress(RuntimeError):
            yield getattr(packet, name)


def _input_names(func: Any) -> list[str]:
    """The names of an op's arguments, without those that are passed as `out=`."""
    return [argument.name for argument in func._schema.arguments if not argument.is_out]


def _structure(name: str) -> str | None:
    """The kind of tensor without strides that an op makes or reads, by the op's name."""
    if name in _OF_MASKS:
        return None
    return next((kind for start, kind in _STRUCTURES.items() if name.startswith(start)), None)


def _generator_overload(func: Any) -> Any:
    """The overload with the same arguments and a generator, if there is one."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return None
    packet, plain = func._overloadpacket, _argument_types(func)
    for overload in (func, *(getattr(packet, name) for name in packet.overloads())):
        types = _argument_types(overload)
        if "generator" in types and plain | {"generator": types["generator"]} == types:
            return overload
    return None


def _argument_types(func: Any) -> dict[str, str]:
    return {argument.name: str(argument.type) for argument in func._schema.arguments}


def mutated_tensors(func: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    """Return the tensors that a kernel call writes, including `out=` and lists of tensors.

    Args:
        func: The `OpOverload` that is called.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """
    found: list[torch.Tensor] = []
    for place in facts(func).mutated:
        value = kwargs.get(place) if isinstance(place, str) else args[place : place + 1]
        found += tensors_in(value)
    return found


def reads_only_shapes(name: str) -> bool:
    """Whether a kernel fills a new tensor of its argument's shape and reads no value of it.

    Args:
        name: Qualified name, such as `aten.zeros_like.default`.
    """
    packet = name.split(".")[1] if "." in name else name
    return packet.endswith("_like") or packet.startswith("new_")


def only_changes_device(
    before: torch.Tensor, after: torch.Tensor, device: torch.device | None
) -> bool:
    """Whether a copy only moves a tensor between the host and `meta`.

    On a real device both live in the same memory, so such a copy costs nothing.

    Args:
        before: The tensor that is copied.
        after: Its copy.
        device: The device asked for, or None if the call names none.
    """
    return device not in (None, before.device) and before.dtype == after.dtype


def is_causal(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a kernel call is attention, or its derivative, that may skip the keys after a query.

    Args:
        func: The `OpOverload` that is called.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """
    place = facts(func).causal_place
    if place is None:
        return False
    return bool(args[place] if place < len(args) else kwargs.get("is_causal", False))
