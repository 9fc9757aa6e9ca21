"""Dataflow: which operator reads a tensor that another operator wrote."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from llmsim_magic.analyses.kernels.aliasing import covers, overlap
from llmsim_magic.analyses.kernels.kernel_arguments import read_arguments
from llmsim_magic.analyses.kernels.memoize import memoize, memoize_invariant
from llmsim_magic.records.trace.recorded import (
    WEIGHT_ROLES,
    Kernel,
    Record,
    Replay,
    Role,
    Tensor,
)
from llmsim_magic.records.trace.trace import Trace

SAVED = "saved"  # what edges go through whose tensor autograd keeps for backward
GRADIENT = ".grad"  # after the name of the parameter
_NAMED: tuple[Role, ...] = ("cache", "gradient", "optimizer")
Writers = list[tuple[int, Tensor]]  # the operator and the region it wrote, latest last


@dataclass(frozen=True, slots=True)
class Edge:
    """The operator `target` reads a tensor that the operator `source` wrote.

    `tensor` indexes the recorded tensors; for a replayed layer it is the tensor of the recorded
    layer. `through` names the cache slot that holds the tensor. In a training step it is `saved`
    for a tensor that backward reads of forward, and the name of a gradient or of an optimizer's
    state that is read. None for any other tensor.
    """

    source: int
    target: int
    tensor: int
    through: str | None


@memoize
def edges(trace: Trace) -> tuple[Edge, ...]:
    """Every dependency between operators, sorted by target and then source.

    A view is tracked by its storage, an in-place write by the region it touches. An operator that
    runs no kernel, such as dropout in inference, depends on the writers of its arguments.
    """
    record = trace.recorded
    builder = _DataflowBuilder(record)
    layers = {
        replay.operators: _Segment(record, *replay.operators, _layer_local_storages(trace, replay))
        for replay in {replay.operators: replay for replay in trace.replays}.values()
    }
    done = 0
    for replay in trace.replays:
        builder.run(_segments(record, layers, done, replay.before_operator))
        builder.replay(layers[replay.operators], replay)
        done = replay.before_operator
    builder.run(_segments(record, layers, done, len(record.operators)))
    tensors = record.tensors
    found = builder.edges if trace.training is None else _with_saved(trace, builder.edges)

    def sort_key(edge: Edge) -> tuple[object, ...]:
        tensor = tensors[edge.tensor]
        return (edge.target, edge.source, tensor.shape, tensor.dtype, edge.through or "")

    return tuple(sorted(found, key=sort_key))


def _with_saved(trace: Trace, found: Iterable[Edge]) -> list[Edge]:
    """The edges, of which those that lead from forward to backward go through saved tensors."""
    is_backward = trace.expand_replays(
        [operator.part == "backward" for operator in trace.recorded.operators]
    )
    return [
        replace(edge, through=SAVED)
        if is_backward[edge.target] and not is_backward[edge.source]
        else edge
        for edge in found
    ]


@memoize_invariant
def depends_on(trace: Trace) -> tuple[tuple[int, ...], ...]:
    """For each operator the orders of the operators it depends on, ascending."""
    sources: list[dict[int, None]] = [{} for _ in trace.steps]
    for edge in edges(trace):
        sources[edge.target][edge.source] = None
    return tuple(map(tuple, sources))


def ranks(trace: Trace) -> tuple[int, ...]:
    """The longest dependency chain before each operator; equal ranks can run concurrently."""
    found: list[int] = []
    for sources in depends_on(trace):
        found.append(1 + max((found[source] for source in sources), default=-1))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Read:
    """The segment's n-th operator reads `tensor`, which it received as `argument`."""

    operator: int
    tensor: int
    argument: int


@dataclass(frozen=True, slots=True)
class _Write:
    operator: int
    tensor: int


class _Segment:
    """Consecutive operators: edges on their local storages, and accesses to all others."""

    def __init__(
        self, record: Record, first: int, last: int, local: frozenset[int] = frozenset()
    ) -> None:
        """The operators from `first` to before `last`, which allocated the storages `local`."""
        self.size = last - first
        self.internal_edges: dict[tuple[int, int, int], None] = {}
        self.external: list[_Read | _Write] = []
        self.writers: dict[int, Writers] = {}
        self._tensors = record.tensors
        self._local = local
        for position, order in enumerate(range(first, last)):
            inputs, kernels = record.operators[order].inputs, record.kernels_by_operator[order]
            if not kernels:
                for index in inputs:
                    self._read(position, index, index)
            arguments = _arguments_by_storage(record, inputs)
            for kernel in kernels:
                for index in _values_read(record, kernel):
                    self._read(position, index, _argument_for(record, arguments, index))
                for index in kernel.writes:
                    self._write(position, index)

    def _read(self, position: int, index: int, argument: int) -> None:
        tensor = self._tensors[index]
        if tensor.storage not in self._local:
            self.external.append(_Read(position, index, argument))
            return
        for writer in _writers_of(self.writers.get(tensor.storage, ()), tensor):
            if writer != position:
                self.internal_edges[position, writer, argument] = None

    def _write(self, position: int, index: int) -> None:
        tensor = self._tensors[index]
        if tensor.storage in self._local:
            _write(self.writers, tensor.storage, position, tensor)
        else:
            self.external.append(_Write(position, index))


def _values_read(record: Record, kernel: Kernel) -> Iterator[int]:
    """The tensors whose values a kernel reads, without weights: the pass never writes those."""
    for position in read_arguments(kernel):
        index = kernel.inputs[position]
        if record.storages[record.tensors[index].storage].role not in WEIGHT_ROLES:
            yield index


def _layer_local_storages(trace: Trace, replay: Replay) -> frozenset[int]:
    """The storages that the recorded layer allocates and that no other layer uses."""
    record = trace.recorded
    exported = {record.tensors[own].storage for each in trace.replays for _, own in each.tensors}
    return frozenset(
        number
        for number in record.new_storages(*replay.kernels) - exported
        if record.storages[number].role in ("activation", "constant", "cache")
    )


def _segments(
    record: Record, layers: dict[tuple[int, int], _Segment], first: int, last: int
) -> Iterable[_Segment]:
    """The recorded operators from `first` to before `last`; each layer is one segment."""
    ends = {bounds: layer for bounds, layer in layers.items() if bounds[0] < bounds[1]}
    while first < last:
        layer = next((bounds for bounds in ends if bounds[0] == first), None)
        next_start = min((b[0] for b in ends if b[0] > first), default=last)
        end = min(next_start, last) if layer is None else layer[1]
        yield layers[layer] if layer else _Segment(record, first, end)
        first = end


class _DataflowBuilder:
    """Collects edges while it tracks the writers of each storage."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._writers: dict[int, Writers] = {}
        self._operator_count = 0
        self._edges: dict[tuple[int, int, int], str | None] = {}

    @property
    def edges(self) -> list[Edge]:
        return [
            Edge(source, target, tensor, through)
            for (target, source, tensor), through in self._edges.items()
        ]

    def run(self, segments: Iterable[_Segment]) -> None:
        for segment in segments:
            self._add_segment(segment)

    def replay(self, segment: _Segment, replay: Replay) -> None:
        self._add_segment(segment, replay)

    def _add_segment(self, segment: _Segment, replay: Replay | None = None) -> None:
        start, tensors = self._operator_count, self._record.tensors
        tensor_map = dict(replay.tensors) if replay else {}
        storage_map = replay.map_storages(tensors) if replay else {}
        for target, source, index in segment.internal_edges:
            storage, _ = storage_map.get(tensors[index].storage, (tensors[index].storage, 0))
            self._add_edge(start + target, start + source, index, storage)
        for access in segment.external:
            tensor = tensors[access.tensor]
            storage, shift = storage_map.get(tensor.storage, (tensor.storage, 0))
            counterpart = tensor_map.get(access.tensor)
            region = tensor.shifted(shift) if counterpart is None else tensors[counterpart]
            order = start + access.operator
            if isinstance(access, _Write):
                _write(self._writers, storage, order, region)
                continue
            for writer in _writers_of(self._writers.get(storage, ()), region):
                if writer != order:
                    self._add_edge(order, writer, access.argument, storage)
        for storage, writers in segment.writers.items():
            if storage in storage_map or replay is None:
                home, shift = storage_map.get(storage, (storage, 0))
                self._writers[home] = [
                    (start + position, region.shifted(shift)) for position, region in writers
                ]
        self._operator_count += segment.size

    def _add_edge(self, target: int, source: int, tensor: int, storage: int) -> None:
        found = self._record.storages[storage]
        through = found.name if found.role in _NAMED else None
        if through is not None and found.role == "gradient":
            through += GRADIENT
        self._edges[target, source, tensor] = through


def _writers_of(writers: Sequence[tuple[int, Tensor]], tensor: Tensor) -> list[int]:
    """The operators whose writes a read sees, latest first, up to one that covers it."""
    seen: list[int] = []
    for order, region in reversed(writers):
        if region is tensor and 0 not in tensor.shape:
            return [*seen, order]
        if overlap(region, tensor):
            seen.append(order)
            if covers(region, tensor):
                break
    return seen


def _write(writers: dict[int, Writers], storage: int, order: int, tensor: Tensor) -> None:
    """Add a write; it replaces earlier writes if it covers all of them."""
    earlier = writers.setdefault(storage, [])
    if earlier and covers(tensor, earlier[0][1]) and all(covers(tensor, r) for _, r in earlier):
        earlier.clear()
    earlier.append((order, tensor))


def _arguments_by_storage(record: Record, inputs: Iterable[int]) -> dict[int, list[int]]:
    """The arguments of an operator, grouped by storage."""
    by_storage: dict[int, list[int]] = {}
    for index in inputs:
        by_storage.setdefault(record.tensors[index].storage, []).append(index)
    return by_storage


def _argument_for(record: Record, arguments: dict[int, list[int]], index: int) -> int:
    """The operator's argument that covers the tensor a kernel reads; the tensor itself if none."""
    tensor = record.tensors[index]
    candidates = arguments.get(tensor.storage, [])
    if index in candidates:
        return index
    return next((c for c in candidates if covers(record.tensors[c], tensor)), index)
