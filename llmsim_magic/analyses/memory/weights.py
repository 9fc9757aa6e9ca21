"""Bytes of the weights as stored: as traced, in a checkpoint's layout, or in a given dtype."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from llmsim_magic.analyses.kernels.elementwise_work import short_name
from llmsim_magic.analyses.kernels.memoize import memoize_by_options
from llmsim_magic.analyses.quantization.packing import Packing
from llmsim_magic.analyses.quantization.storage_layouts import (
    packing_for_dtype,
    packing_from_config,
    weight_dtype,
)
from llmsim_magic.records.hardware.dtypes import BITS
from llmsim_magic.records.trace.recorded import WEIGHT_ROLES
from llmsim_magic.records.trace.trace import Module, Parameter, Trace

_MULTIPLIES = frozenset({"mm", "bmm", "addmm", "baddbmm", "_grouped_mm", "mv"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Bytes of all parameters; tied ones count once.

    `unpacked` are the bytes of parameters that are not quantised, `codes` and `scales` those of the
    `packed_parameters` that are. `assumption` is the storage assumption as text.
    """

    unpacked: int
    codes: int
    scales: int
    packed_parameters: int
    assumption: str

    @property
    def nbytes(self) -> int:
        return self.unpacked + self.codes + self.scales


@memoize_by_options
def weights(trace: Trace, dtype: str | None = None) -> Weights:
    """The weights in a dtype, or as the checkpoint stores them.

    Raises:
        InvalidValue: If the dtype does not exist, or the checkpoint's layout is not supported.
    """
    storage_plan = _storage(trace, dtype)
    stored = _stored(trace, storage_plan)
    matrices = storage_plan.matrices
    return Weights(
        unpacked=sum(codes for name, (codes, _) in stored.items() if name not in matrices),
        codes=sum(codes for name, (codes, _) in stored.items() if name in matrices),
        scales=sum(metadata for _, metadata in stored.values()),
        packed_parameters=sum(prod(matrix.shape) for matrix in matrices.values()),
        assumption=storage_plan.description,
    )


def packing_of(trace: Trace, dtype: str | None = None) -> Packing | None:
    """The layout of a dtype, or the one the checkpoint declares; None if no weight is packed.

    Raises:
        InvalidValue: If the dtype or the checkpoint's layout is not supported.
    """
    if dtype is not None:
        return packing_for_dtype(weight_dtype(dtype))
    quantization = trace.model.quantisation
    return None if quantization is None else packing_from_config(quantization, trace.model.name)


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A packed parameter: matrices of a shape `[…, outputs, inputs]` in a layout."""

    packing: Packing
    shape: tuple[int, ...]

    def parts(self) -> tuple[int, int]:
        """Bytes of the codes, and of all metadata."""
        return self.packing.parts(self.shape)


@dataclass(frozen=True, slots=True)
class _Storage:
    """Storage of parameters: `matrices` are packed, others have `itemsize` or the traced dtype."""

    matrices: dict[str, PackedMatrix]
    itemsize: int | None
    description: str


def _storage(trace: Trace, dtype: str | None) -> _Storage:
    name = None if dtype is None else weight_dtype(dtype)
    packing = packing_of(trace, name)
    if packing is not None:
        return _Storage(matrices(trace, packing), None, packing.description)
    if name is not None:
        return _Storage({}, BITS[name] // 8, f"every parameter in {name}")
    return _Storage({}, None, f"default ({trace.model.dtype})")


def _stored(trace: Trace, storage_plan: _Storage) -> dict[str, tuple[int, int]]:
    """Bytes of each parameter's values and of its metadata, by name."""
    found: dict[str, tuple[int, int]] = {}
    for parameter in trace.parameters:
        if parameter.tied_to is not None or parameter.is_buffer:
            continue
        matrix = storage_plan.matrices.get(parameter.name)
        if matrix is not None:
            found[parameter.name] = matrix.parts()
        else:
            found[parameter.name] = (_nbytes(parameter, storage_plan.itemsize), 0)
    return found


def _nbytes(parameter: Parameter, itemsize: int | None) -> int:
    is_real = "float" in parameter.dtype
    return parameter.numel * itemsize if itemsize and is_real else parameter.nbytes


def matrices(trace: Trace, packing: Packing) -> dict[str, PackedMatrix]:
    """The packed parameters, by name.

    Weights of linear layers and stacked expert matrices are packed: those inside the repeated
    layers, and those outside if `packing.outer` has a layout for them, except what it excludes.
    """
    modules = {module.path: module for module in trace.modules}
    stacks = frozenset(module.path for module in trace.modules if module.is_list)
    multiplied = _matmul_parameters(trace)
    excluded = _named(trace, packing.excluded)
    only = _named(trace, packing.only) if packing.only else None
    own = {each: layout for name, layout in packing.by_name for each in _named(trace, (name,))}
    found: dict[str, PackedMatrix] = {}
    for parameter in trace.parameters:
        name, shape = parameter.name, parameter.shape
        if parameter.is_buffer or parameter.tied_to is not None or "float" not in parameter.dtype:
            continue
        if name in excluded or (only is not None and name not in only):
            continue
        is_inner = name in own or _is_in_layer(parameter.owner, stacks)
        layout = own.get(name, packing if is_inner else packing.outer)
        if layout is None:
            continue
        module = modules[parameter.owner]
        is_stacked = len(shape) == 3 and trace.recorded_path(name) in multiplied
        if is_stacked or (layout.embeddings and _is_embedding(module, parameter)):
            found[name] = PackedMatrix(layout, shape)
        elif not packing.experts_only and _is_linear(module, parameter):
            found[name] = PackedMatrix(layout, _outputs_first(modules, parameter))
    return found


def _named(trace: Trace, names: tuple[str, ...]) -> frozenset[str]:
    """The parameters that names in the checkpoint's config match."""
    matched = trace.model.quantized_names
    return frozenset(parameter for name in names for parameter in matched.get(name, ()))


def _matmul_parameters(trace: Trace) -> frozenset[str]:
    """The recorded parameters that a matmul reads."""
    record = trace.recorded
    return frozenset(
        storage.name
        for kernel in record.kernels
        if short_name(kernel.name) in _MULTIPLIES
        for index in kernel.inputs
        if (storage := record.storages[record.tensors[index].storage]).role in WEIGHT_ROLES
        and storage.name is not None
    )


def _is_linear(module: Module, parameter: Parameter) -> bool:
    """Whether a parameter is the weight of a linear layer, or of a transposed `Conv1D`."""
    of = module.attributes
    sizes = (of.get("out_features"), of.get("in_features")), (of.get("nx"), of.get("nf"))
    return parameter.shape in sizes


def _is_embedding(module: Module, parameter: Parameter) -> bool:
    attributes = module.attributes
    sizes = (attributes.get("num_embeddings"), attributes.get("embedding_dim"))
    return parameter.shape == sizes


def _outputs_first(modules: Mapping[str, Module], parameter: Parameter) -> tuple[int, ...]:
    first, second = parameter.shape
    is_transposed = modules[parameter.owner].attributes.get("nx") == first
    return (second, first) if is_transposed else (first, second)


def _is_in_layer(path: str, stacks: frozenset[str]) -> bool:
    parts = path.split(".")
    return any(
        part.isdigit() and ".".join(parts[:depth]) in stacks for depth, part in enumerate(parts)
    )
