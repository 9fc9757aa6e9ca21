"""What the weights take as they are stored: by their dtype, a checkpoint's packing, or a choice."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from llmsim_magic.analyses.kernels.elementwise_work import short_name
from llmsim_magic.analyses.memory.quantization import (
    ITEM_BITS,
    Packing,
    chosen,
    declared,
    weight_dtype,
)
from llmsim_magic.records.trace.trace import Module, Parameter, Trace

_MULTIPLIES = frozenset({"mm", "bmm", "addmm", "baddbmm", "_grouped_mm", "mv"})


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of all parameters, tied ones once: `scales` are beside the codes of those quantised.

    `as_they_are` are the parameters that no packing touches; `assumed` says what was taken to be.
    """

    as_they_are: int
    codes: int
    scales: int
    quantised_parameters: int
    assumed: str

    @property
    def nbytes(self) -> int:
        return self.as_they_are + self.codes + self.scales


def weights(trace: Trace, dtype: str | None = None) -> Weights:
    """The weights in a chosen dtype, or as the checkpoint stores them.

    Raises `InvalidValue` for a dtype that does not exist, or a checkpoint whose packing is not
    known here.
    """
    storing = _storing(trace, dtype)
    stored = _stored(trace, storing)
    matrices = storing.matrices
    return Weights(
        as_they_are=sum(codes for name, (codes, _) in stored.items() if name not in matrices),
        codes=sum(codes for name, (codes, _) in stored.items() if name in matrices),
        scales=sum(beside for _, beside in stored.values()),
        quantised_parameters=sum(prod(shape) for shape in matrices.values()),
        assumed=storing.said,
    )


def packing_of(trace: Trace, dtype: str | None = None) -> Packing | None:
    """The layout of a chosen dtype, or what the checkpoint declares; None where none is packed.

    Raises `InvalidValue` for either that is not known here.
    """
    if dtype is not None:
        return chosen(weight_dtype(dtype))
    quantisation = trace.model.quantisation
    return None if quantisation is None else declared(quantisation, trace.model.name)


@dataclass(frozen=True, slots=True)
class _Storing:
    """How parameters are stored: `matrices` packed, all others of `itemsize` or as they are."""

    packing: Packing | None
    matrices: dict[str, tuple[int, ...]]
    itemsize: int | None
    said: str


def _storing(trace: Trace, dtype: str | None) -> _Storing:
    name = None if dtype is None else weight_dtype(dtype)
    packing = packing_of(trace, name)
    if packing is not None:
        return _Storing(packing, matrices(trace, packing), None, packing.described)
    if name is not None:
        return _Storing(None, {}, ITEM_BITS[name] // 8, f"every parameter in {name}")
    return _Storing(None, {}, None, f"as they are: {trace.model.dtype}")


def _stored(trace: Trace, storing: _Storing) -> dict[str, tuple[int, int]]:
    """Bytes of each parameter's values, and of scales and all beside them."""
    found: dict[str, tuple[int, int]] = {}
    for parameter in trace.parameters:
        if parameter.tied_to is not None or parameter.is_buffer:
            continue
        shape = storing.matrices.get(parameter.name)
        if shape is not None and storing.packing is not None:
            found[parameter.name] = storing.packing.parts(shape)
        else:
            found[parameter.name] = (_nbytes(parameter, storing.itemsize), 0)
    return found


def _nbytes(parameter: Parameter, itemsize: int | None) -> int:
    is_real = "float" in parameter.dtype
    return parameter.numel * itemsize if itemsize and is_real else parameter.nbytes


def matrices(trace: Trace, packing: Packing) -> dict[str, tuple[int, ...]]:
    """The shape `[…, outputs, inputs]` of each parameter that is packed, by its name.

    Those are the weights of linear layers, and stacks of matrices that experts multiply with,
    inside the repeated layers of the model and not left out by name.
    """
    modules = {module.path: module for module in trace.modules}
    stacks = frozenset(module.path for module in trace.modules if module.is_list)
    multiplied = _multiplied(trace)
    found: dict[str, tuple[int, ...]] = {}
    for parameter in trace.parameters:
        if parameter.is_buffer or parameter.tied_to is not None or "float" not in parameter.dtype:
            continue
        if not _in_a_layer(parameter.owner, stacks) or packing.leaves_out(parameter.owner):
            continue
        shape = parameter.shape
        if len(shape) == 3 and trace.recorded_path(parameter.name) in multiplied:
            found[parameter.name] = shape
        elif not packing.targets_only_stacks and _is_linear(modules[parameter.owner], parameter):
            found[parameter.name] = _by_outputs(modules, parameter)
    return found


def _multiplied(trace: Trace) -> frozenset[str]:
    """The recorded parameters that a matrix product reads."""
    record = trace.recorded
    return frozenset(
        storage.name
        for kernel in record.kernels
        if short_name(kernel.name) in _MULTIPLIES
        for index in kernel.inputs
        if (storage := record.storages[record.tensors[index].storage]).role == "parameter"
        and storage.name is not None
    )


def _is_linear(module: Module, parameter: Parameter) -> bool:
    """Whether this is the matrix of a linear layer: torch's own, or a transposed `Conv1D`."""
    of = module.attributes
    sizes = (of.get("out_features"), of.get("in_features")), (of.get("nx"), of.get("nf"))
    return parameter.shape in sizes


def _by_outputs(modules: Mapping[str, Module], parameter: Parameter) -> tuple[int, ...]:
    first, second = parameter.shape
    is_transposed = modules[parameter.owner].attributes.get("nx") == first
    return (second, first) if is_transposed else (first, second)


def _in_a_layer(path: str, stacks: frozenset[str]) -> bool:
    parts = path.split(".")
    return any(
        part.isdigit() and ".".join(parts[:depth]) in stacks for depth, part in enumerate(parts)
    )
