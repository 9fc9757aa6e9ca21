"""What the weights take as they are stored: by their dtype, a checkpoint's packing, or a choice."""

from collections.abc import Mapping
from dataclasses import dataclass

from llmsim_magic.analyses.packing import ITEM_BITS, Packing, chosen, declared, weight_dtype
from llmsim_magic.analyses.work import short_name
from llmsim_magic.records.trace import Module, Parameter, Trace

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
    name = None if dtype is None else weight_dtype(dtype)
    packing = packing_of(trace, name)
    own = [p for p in trace.parameters if p.tied_to is None and not p.is_buffer]
    packed = matrices(trace, packing) if packing else {}
    cast = ITEM_BITS[name] // 8 if name is not None and packing is None else None
    parts = [packing.parts(shape) for shape in packed.values()] if packing else []
    return Weights(
        as_they_are=sum(_nbytes(p, cast) for p in own if p.name not in packed),
        codes=sum(codes for codes, _ in parts),
        scales=sum(beside for _, beside in parts),
        quantised_parameters=sum(p.numel for p in own if p.name in packed),
        assumed=packing.described if packing else _said(trace, name),
    )


def packing_of(trace: Trace, dtype: str | None = None) -> Packing | None:
    """The layout of a chosen dtype, or what the checkpoint declares; None where none is packed.

    Raises `InvalidValue` for either that is not known here.
    """
    if dtype is not None:
        return chosen(weight_dtype(dtype))
    quantisation = trace.model.quantisation
    return None if quantisation is None else declared(quantisation, trace.model.name)


def _said(trace: Trace, name: str | None) -> str:
    return f"every parameter in {name}" if name else f"as they are: {trace.model.dtype}"


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
