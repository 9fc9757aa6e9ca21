"""The step of a rank under PyTorch's `fully_shard`: ZeRO stage 3.

What is gathered, reduced and freed, and when, is as `torch/distributed/fsdp/_fully_shard` has it:
`_fsdp_param_group.py` for the order, `_fsdp_collectives.py` for the buffers. Each layer is a unit,
and what is in no layer is that of the root, which keeps its parameters until backward ends.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from llmsim_magic.analyses.data_parallel.gradient_shards import GradientShards
from llmsim_magic.analyses.data_parallel.sharded_parameters import Sharded, Sharding, Unit, units
from llmsim_magic.analyses.data_parallel.step_rewriter import NewOperator, StepRewriter, data_kernel
from llmsim_magic.analyses.data_parallel.unit_runs import Run, unit_runs
from llmsim_magic.records.trace.recorded import Pass
from llmsim_magic.records.trace.trace import Trace

ALL_GATHER = "c10d._allgather_base_.default"
COPY_LISTS = "aten._foreach_copy_.default"
_COPY_OUT = "aten.split_with_sizes_copy.out"


@dataclass(slots=True)
class _Gathered:
    """The storages of a unit's parameters from where they are gathered to where they are freed."""

    storages: dict[int, int]  # by those of the record
    first: int


@dataclass(frozen=True, slots=True)
class _Reduced:
    """The last reduction, its buffer, and the kernel of the record before which it is."""

    operator: NewOperator
    buffer: int
    place: int


class FullyShardedStep:
    """Rewrites a step so that parameters are gathered before use, and gradients scattered.

    Args:
        trace: The step of one device.
        parameters: Its parameters.
        sharding: Devices and dtypes.
        rewriter: The changes to the record.
    """

    def __init__(
        self,
        trace: Trace,
        parameters: Sequence[Sharded],
        sharding: Sharding,
        rewriter: StepRewriter,
    ) -> None:
        self._trace = trace
        self._sharding = sharding
        self._rewriter = rewriter
        self._units = units(trace, parameters)
        self._unit_of = {
            each.storage: path
            for path, unit in self._units.items()
            for each in unit.parameters
            if each.storage is not None
        }
        self._gathered: dict[str, list[_Gathered]] = defaultdict(list)
        self._kept: int | None = None  # the buffer of the last gather of forward
        self._prefetched: dict[str, int] = {}
        self._reduced: _Reduced | None = None
        self.gradients = GradientShards(parameters, sharding, rewriter)

    def rewrite(self) -> None:
        """Insert what a rank gathers, reduces and frees."""
        rewriter = self._rewriter
        forward, backward = unit_runs(self._trace, rewriter.parts, self._units, self._unit_of)
        ends = rewriter.end_of("forward"), rewriter.end_of("forward", "recompute", "backward")
        self._hold_all()
        self._forward(forward, ends[0])
        self._backward(backward, [run.unit for run in forward], ends)

    def gathered_at(self, place: int, storage: int) -> int | None:
        """The storage that has a whole parameter while a kernel runs; None for other storages.

        Args:
            place: The index of the kernel in the record.
            storage: The parameter's storage in the record.
        """
        path = self._unit_of.get(storage)
        known = self._gathered.get(path) if path is not None else None
        if not known:
            return None
        index = bisect_right([each.first for each in known], place) - 1
        return known[max(index, 0)].storages.get(storage)

    def _hold_all(self) -> None:
        """Make the storages of parameters those of their shards."""
        storages = self._rewriter.storages
        for unit in self._units.values():
            for each in unit.parameters:
                if each.storage is not None:
                    _, itemsize = self._sharding.kept(each.like.dtype, each.like.itemsize)
                    nbytes = each.shard_elements(self._sharding) * itemsize
                    storages[each.storage] = replace(storages[each.storage], nbytes=nbytes)

    def _forward(self, runs: Sequence[Run], end: int) -> None:
        root = self._units[""]
        if root.parameters:
            self._gather_in_forward(root, 0)
        for run in runs:
            unit = self._units[run.unit]
            gathered = self._gather_in_forward(unit, run.first)
            self._rewriter.free_after(run.end - 1, gathered.storages.values())
        if self._kept is not None:
            self._rewriter.free_after(end - 1, [self._kept])

    def _gather_in_forward(self, unit: Unit, place: int) -> _Gathered:
        """Gather before a unit runs; the buffer lives on until the next unit has gathered."""
        buffer = self._all_gather(unit, place, "forward")
        gathered, copied = self._copy_out(unit, buffer, place, "forward")
        if self._kept is not None:
            copied.free_after([self._kept])  # a variable refers to it until then
        self._kept = self._rewriter.tensors[buffer].storage
        return gathered

    def _backward(self, runs: Sequence[Run], order: Sequence[str], ends: tuple[int, int]) -> None:
        first, end = ends
        waiting = list(order)
        last = {run.unit: place for place, run in enumerate(runs)}
        if waiting:
            self._prefetch(self._units[waiting[-1]], first)
        for place, run in enumerate(runs):
            unit = self._units[run.unit]
            buffer = self._prefetched.pop(run.unit, None)
            if buffer is None:
                buffer = self._all_gather(unit, run.first, "backward")
            gathered, copied = self._copy_out(unit, buffer, run.first, "backward")
            copied.free_after([self._rewriter.tensors[buffer].storage])
            before = _unit_before(waiting, run.unit)
            if before is not None and before not in self._prefetched:
                self._prefetch(self._units[before], run.first)
            self._rewriter.free_after(run.end - 1, gathered.storages.values())
            self._end_unit(unit if last[run.unit] == place else None, run.end)
        root = self._units[""]
        for gathered in self._gathered.get("", ()):
            self._rewriter.free_after(end - 1, gathered.storages.values())
        unused = [self._rewriter.tensors[each].storage for each in self._prefetched.values()]
        self._rewriter.free_after(end - 1, unused)
        self._end_unit(root, end)
        self._free_reduced(end)

    def _prefetch(self, unit: Unit, place: int) -> None:
        self._prefetched[unit.path] = self._all_gather(unit, place, "backward")

    def _end_unit(self, unit: Unit | None, place: int) -> None:
        """Free the buffer that was reduced before, and reduce the gradients of a unit."""
        self._free_reduced(place)
        trained = [each for each in unit.parameters if each.is_trained] if unit else []
        if unit is not None and trained:
            reduction, buffer = self.gradients.reduce(trained, unit.path, place)
            self._reduced = _Reduced(reduction, buffer, place)

    def _free_reduced(self, place: int) -> None:
        """Free the buffer of the last reduction before a kernel of the record."""
        reduced, self._reduced = self._reduced, None
        if reduced is None:
            return
        if reduced.place < place:
            self._rewriter.free_after(place - 1, [reduced.buffer])
        else:
            reduced.operator.free_after([reduced.buffer])

    def _all_gather(self, unit: Unit, place: int, part: Pass) -> int:
        """Copy a unit's shards together and gather those of all ranks.

        Returns:
            The tensor of all that was gathered.
        """
        sharding, rewriter = self._sharding, self._rewriter
        like = unit.parameters[0].like
        nbytes = sum(each.shard_elements(sharding) * each.like.itemsize for each in unit.parameters)
        elements = -(-nbytes // like.itemsize)
        shards = [self._shard(each) for each in unit.parameters]
        kernels = []
        if sharding.is_mixed:
            cast = rewriter.new_buffer(elements, like, "exchange")
            parts = self._parts_of(rewriter.tensors[cast].storage, unit)
            kernels.append(data_kernel(COPY_LISTS, (*parts, *shards), parts))
            shards = parts
        buffer = rewriter.new_buffer(elements * sharding.ranks, like, "exchange")
        storage = rewriter.tensors[buffer].storage
        own = self._parts_of(storage, unit)
        copy_in = data_kernel(COPY_LISTS, (*own, *shards), own)
        if sharding.is_mixed:
            freed = rewriter.tensors[cast].storage
            copy_in = replace(copy_in, frees=(freed,))
        sent = rewriter.new_tensor(storage, (elements,), like)
        kernels += [copy_in, data_kernel(ALL_GATHER, (sent,), (buffer,), ranks=sharding.ranks)]
        rewriter.insert(place, unit.path, "all_gather", part, kernels)
        return buffer

    def _parts_of(self, storage: int, unit: Unit) -> list[int]:
        """The place of each shard of a unit in a buffer."""
        found, nbytes = [], 0
        for each in unit.parameters:
            size, like = each.shard_elements(self._sharding), each.like
            place = nbytes // like.itemsize
            found.append(self._rewriter.new_tensor(storage, (size,), like, place))
            nbytes += size * like.itemsize
        return found

    def _shard(self, parameter: Sharded) -> int:
        """The shard of a parameter as a vector."""
        elements = (parameter.shard_elements(self._sharding),)
        dtype, itemsize = self._sharding.kept(parameter.like.dtype, parameter.like.itemsize)
        like = replace(parameter.like, dtype=dtype, itemsize=itemsize)
        storage = parameter.storage
        if storage is None:
            nbytes = elements[0] * itemsize
            storage = self._rewriter.new_storage(nbytes, "parameter", parameter.name)
        return self._rewriter.new_tensor(storage, elements, like)

    def _copy_out(
        self, unit: Unit, buffer: int, place: int, part: Pass
    ) -> tuple[_Gathered, NewOperator]:
        """Copy what was gathered to whole parameters."""
        rewriter, ranks = self._rewriter, self._sharding.ranks
        gathered, outputs = _Gathered({}, place), []
        for each in unit.parameters:
            elements = each.shard_elements(self._sharding) * ranks
            nbytes = elements * each.like.itemsize
            storage = rewriter.new_storage(nbytes, "gathered", each.name)
            outputs.append(rewriter.new_tensor(storage, (elements,), each.like))
            gathered.storages[-len(outputs) if each.storage is None else each.storage] = storage
        self._gathered[unit.path].append(gathered)
        kernel = data_kernel(_COPY_OUT, (buffer,), outputs)
        return gathered, rewriter.insert(place, unit.path, "copy_out", part, [kernel])


def _unit_before(waiting: list[str], unit: str) -> str | None:
    """The unit that ran before the last run of one, which is taken from the list with the rest."""
    for place in reversed(range(len(waiting))):
        if waiting[place] == unit:
            del waiting[place:]
            return waiting[-1] if waiting else None
    return None
