"""The parameters of a training step, their shards and the units that are gathered together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from llmsim_magic.analyses.graph.layers import layer_of, list_paths
from llmsim_magic.records.trace.recorded import Record, Tensor
from llmsim_magic.records.trace.trace import Parameter, Trace

_ROOT = ""
# The dtype in which parameters are kept and reduced where kernels compute in another one.
_MASTER = ("float32", 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """How the devices of data parallelism share a training.

    Attributes:
        ranks: Devices.
        stage: That of ZeRO.
        is_mixed: Whether parameters are kept, reduced and updated in float32, and gathered in the
            dtype in which the kernels compute.
    """

    ranks: int
    stage: int
    is_mixed: bool = False

    def shard(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a rank's shard, which is padded if the first dimension does not divide."""
        return (-(-shape[0] // self.ranks), *shape[1:]) if shape else shape

    def kept(self, dtype: str, itemsize: int) -> tuple[str, int]:
        """The dtype and item size of what is kept in shards, by those of the kernels."""
        return _MASTER if self.is_mixed and "float" in dtype else (dtype, itemsize)

    def held(self, parameter: Parameter) -> Parameter:
        """What a rank holds of a parameter."""
        if parameter.is_buffer or self.stage < 3:
            return parameter
        dtype, itemsize = self.kept(parameter.dtype, parameter.itemsize)
        return replace(parameter, shape=self.shard(parameter.shape), dtype=dtype, itemsize=itemsize)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharded:
    """A parameter of the step, and its storages in the record.

    Attributes:
        name: Its first name.
        shape: That of the whole parameter.
        like: A tensor of its dtype.
        is_trained: Whether it has a gradient.
        storage: Its storage; None if no kernel uses it.
        gradient: That of its gradient; None without one.
    """

    name: str
    shape: tuple[int, ...]
    like: Tensor
    is_trained: bool
    storage: int | None
    gradient: int | None

    def shard_elements(self, sharding: Sharding) -> int:
        return prod(sharding.shard(self.shape))


@dataclass(frozen=True, slots=True)
class Unit:
    """Parameters that are gathered and reduced together: those of a layer, or of no layer."""

    path: str
    parameters: tuple[Sharded, ...]


def sharded_parameters(trace: Trace) -> tuple[Sharded, ...]:
    """Every parameter of the step in the model's order, shared ones once."""
    record = trace.recorded
    storages = _named(record, "parameter")
    gradients = _named(record, "gradient")
    return tuple(
        Sharded(
            name=parameter.name,
            shape=parameter.shape,
            like=Tensor((), parameter.dtype, parameter.itemsize, 0, 0, ()),
            is_trained=parameter.name in gradients,
            storage=storages.get(parameter.name),
            gradient=gradients.get(parameter.name),
        )
        for parameter in trace.parameters
        if not parameter.is_buffer and parameter.tied_to is None
    )


def _named(record: Record, role: str) -> dict[str, int]:
    return {
        storage.name: number
        for number, storage in enumerate(record.storages)
        if storage.role == role and storage.name is not None
    }


def units(trace: Trace, parameters: Sequence[Sharded]) -> dict[str, Unit]:
    """The unit of each layer and, under the empty path, that of what is in no layer."""
    stacks = list_paths(trace)
    found: dict[str, list[Sharded]] = {_ROOT: []}
    for parameter in parameters:
        layer = layer_of(parameter.name, stacks)
        found.setdefault(_ROOT if layer is None else layer.path, []).append(parameter)
    return {path: Unit(path, tuple(each)) for path, each in found.items()}
