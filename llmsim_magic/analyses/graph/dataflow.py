"""What each operator waits for: it reads a tensor that another wrote."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from llmsim_magic.analyses.kernels.aliasing import covers, overlap
from llmsim_magic.analyses.kernels.kernel_arguments import read_arguments
from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.records.trace.recorded import Kernel, Record, Replay, Tensor
from llmsim_magic.records.trace.trace import Trace

Writers = list[tuple[int, Tensor]]  # who wrote which region of a storage, the latest last


@dataclass(frozen=True, slots=True)
class Edge:
    """`target` reads a tensor that `source` wrote; `through` names the cache slot it lies in.

    `tensor` indexes the recorded tensors: of a replayed layer it is the like in the one recorded.
    """

    source: int
    target: int
    tensor: int
    through: str | None


@memoize
def edges(trace: Trace) -> tuple[Edge, ...]:
    """Every dependency between operators, by target and then source.

    Views are followed by their storage, in-place writes by the region they touch. A call that
    runs no kernel (dropout in inference) waits for whoever wrote what it was handed.
    """
    record = trace.recorded
    flow = _Flow(record)
    layers = {
        replay.operators: _Stretch(record, *replay.operators, _made_in(trace, replay))
        for replay in {replay.operators: replay for replay in trace.replays}.values()
    }
    done = 0
    for replay in trace.replays:
        flow.run(_recorded(record, layers, done, replay.before_operator))
        flow.replay(layers[replay.operators], replay)
        done = replay.before_operator
    flow.run(_recorded(record, layers, done, len(record.operators)))
    tensors = record.tensors

    def place(edge: Edge) -> tuple[object, ...]:
        tensor = tensors[edge.tensor]
        return (edge.target, edge.source, tensor.shape, tensor.dtype, edge.through or "")

    return tuple(sorted(flow.edges, key=place))


@memoize
def depends_on(trace: Trace) -> tuple[tuple[int, ...], ...]:
    """For each operator the orders of those that it waits for, ascending."""
    sources: list[dict[int, None]] = [{} for _ in trace.steps]
    for edge in edges(trace):
        sources[edge.target][edge.source] = None
    return tuple(map(tuple, sources))


def ranks(trace: Trace) -> tuple[int, ...]:
    """The length of the longest chain that each operator waits for: equal ranks may run at once."""
    found: list[int] = []
    for sources in depends_on(trace):
        found.append(1 + max((found[source] for source in sources), default=-1))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Read:
    """An operator, counted from the first of its stretch, reads `tensor`, handed it as `handed`."""

    operator: int
    tensor: int
    handed: int


@dataclass(frozen=True, slots=True)
class _Write:
    operator: int
    tensor: int


class _Stretch:
    """Operators in a row: the edges on storages of their own, and what they do to all others."""

    def __init__(
        self, record: Record, first: int, last: int, mine: frozenset[int] = frozenset()
    ) -> None:
        """The operators from `first` to before `last`, which made the storages `mine`."""
        self.size = last - first
        self.inner: dict[tuple[int, int, int], None] = {}
        self.outer: list[_Read | _Write] = []
        self.writers: dict[int, Writers] = {}
        self._tensors = record.tensors
        self._mine = mine
        for place, order in enumerate(range(first, last)):
            inputs, kernels = record.operators[order].inputs, record.kernels_of[order]
            if not kernels:
                for index in inputs:
                    self._read(place, index, index)
            handed = _handed(record, inputs)
            for kernel in kernels:
                for index in _values_read(record, kernel):
                    self._read(place, index, _as_handed(record, handed, index))
                for index in kernel.writes:
                    self._write(place, index)

    def _read(self, place: int, index: int, handed: int) -> None:
        tensor = self._tensors[index]
        if tensor.storage not in self._mine:
            self.outer.append(_Read(place, index, handed))
            return
        for writer in _writers_of(self.writers.get(tensor.storage, ()), tensor):
            if writer != place:
                self.inner[place, writer, handed] = None

    def _write(self, place: int, index: int) -> None:
        tensor = self._tensors[index]
        if tensor.storage in self._mine:
            _write(self.writers, tensor.storage, place, tensor)
        else:
            self.outer.append(_Write(place, index))


def _values_read(record: Record, kernel: Kernel) -> Iterator[int]:
    """The tensors whose values a kernel reads, weights aside: nobody in the pass writes those."""
    for place in read_arguments(kernel):
        index = kernel.inputs[place]
        if record.storages[record.tensors[index].storage].role != "parameter":
            yield index


def _made_in(trace: Trace, replay: Replay) -> frozenset[int]:
    """The storages that the layer recorded made for itself."""
    record = trace.recorded
    handed_on = {record.tensors[own].storage for each in trace.replays for _, own in each.tensors}
    return frozenset(
        number
        for number in record.new_storages(*replay.kernels) - handed_on
        if record.storages[number].role in ("activation", "constant", "cache")
    )


def _recorded(
    record: Record, layers: dict[tuple[int, int], _Stretch], first: int, last: int
) -> Iterable[_Stretch]:
    """The operators that were run from one to before another, the layers among them whole."""
    ends = {bounds: layer for bounds, layer in layers.items() if bounds[0] < bounds[1]}
    while first < last:
        layer = next((bounds for bounds in ends if bounds[0] == first), None)
        following = min((b[0] for b in ends if b[0] > first), default=last)
        until = min(following, last) if layer is None else layer[1]
        yield layers[layer] if layer else _Stretch(record, first, until)
        first = until


class _Flow:
    """Who wrote what so far, and the edges found."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._writers: dict[int, Writers] = {}
        self._done = 0
        self._found: dict[tuple[int, int, int], str | None] = {}

    @property
    def edges(self) -> list[Edge]:
        return [
            Edge(source, target, tensor, through)
            for (target, source, tensor), through in self._found.items()
        ]

    def run(self, stretches: Iterable[_Stretch]) -> None:
        for stretch in stretches:
            self._do(stretch, {})

    def replay(self, stretch: _Stretch, replay: Replay) -> None:
        self._do(stretch, dict(replay.tensors), replayed=True)

    def _do(self, stretch: _Stretch, crossing: dict[int, int], *, replayed: bool = False) -> None:
        start, tensors = self._done, self._record.tensors
        homes = {tensors[one].storage: tensors[other].storage for one, other in crossing.items()}
        for target, source, index in stretch.inner:
            home = homes.get(tensors[index].storage, tensors[index].storage)
            self._edge(start + target, start + source, index, home)
        for access in stretch.outer:
            tensor = tensors[access.tensor]
            home = homes.get(tensor.storage, tensor.storage)
            region = tensors[crossing.get(access.tensor, access.tensor)]
            order = start + access.operator
            if isinstance(access, _Write):
                _write(self._writers, home, order, region)
                continue
            for writer in _writers_of(self._writers.get(home, ()), region):
                if writer != order:
                    self._edge(order, writer, access.handed, home)
        for storage, writers in stretch.writers.items():
            if storage in homes or not replayed:
                self._writers[homes.get(storage, storage)] = [
                    (start + place, region) for place, region in writers
                ]
        self._done += stretch.size

    def _edge(self, target: int, source: int, tensor: int, home: int) -> None:
        storage = self._record.storages[home]
        through = storage.name if storage.role == "cache" else None
        self._found[target, source, tensor] = through


def _writers_of(writers: Sequence[tuple[int, Tensor]], tensor: Tensor) -> list[int]:
    """Whose writes a reader sees: from the latest back to one that covers all that is read."""
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
    """Remember a write; one of all that was written before hides it."""
    known = writers.setdefault(storage, [])
    if known and covers(tensor, known[0][1]) and all(covers(tensor, r) for _, r in known):
        known.clear()
    known.append((order, tensor))


def _handed(record: Record, inputs: Iterable[int]) -> dict[int, list[int]]:
    """The tensors that an operator was handed in each storage, as its author sees them."""
    by_storage: dict[int, list[int]] = {}
    for index in inputs:
        by_storage.setdefault(record.tensors[index].storage, []).append(index)
    return by_storage


def _as_handed(record: Record, handed: dict[int, list[int]], index: int) -> int:
    """The tensor that a kernel reads, as the operator was handed it where it was."""
    tensor = record.tensors[index]
    candidates = handed.get(tensor.storage, [])
    if index in candidates:
        return index
    return next((c for c in candidates if covers(record.tensors[c], tensor)), index)
