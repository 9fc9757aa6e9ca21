"""Write out replayed layers as if they had been run and recorded."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter

from msgspec.structs import replace

from llmsim_magic.records.trace.recorded import (
    Calls,
    Kernel,
    Operator,
    Record,
    Replay,
    Storage,
    Tensor,
)

Key = (
    int | str | tuple[int, int]
)  # a recorded storage, a replayed layer's parameter, or its local storage


def unroll(record: Record, replays: tuple[Replay, ...]) -> Record:
    """The whole pass; tensors are numbered by their first use."""
    written = _UnrolledRecord(record)
    here = _LayerInstance(written)
    places = [
        (replay, _LayerInstance(written, replay, place, own))
        for place, (replay, own) in enumerate(_with_local_storages(record, replays))
    ]
    operators: list[tuple[_LayerInstance, Operator]] = []
    for place, order in _steps(record.operators, here, places, "operator"):
        place.orders[order] = len(operators)
        operators.append((place, record.operators[order]))
    place_of = {id(replay): place for replay, place in [(None, here), *places]}
    kernels = [
        place.kernel(record.kernels[number])
        for place, number in _steps(record.kernels, here, places, "kernel")
    ]
    return Record(
        kernels=tuple(kernels),
        operators=tuple(place.operator(operator) for place, operator in operators),
        calls=tuple(
            place_of[id(called.replay)].calls(path, called, here)
            for path, called in sorted(module_calls(record, replays).items(), key=itemgetter(0))
        ),
        results=here.numbers(record.results),
        tensors=tuple(written.tensors),
        storages=tuple(written.storages),
    )


Instances = list[tuple[Replay, "_LayerInstance"]]


def _steps(
    recorded: tuple[object, ...], here: "_LayerInstance", places: Instances, what: str
) -> Iterator[tuple["_LayerInstance", int]]:
    """Every operator, or kernel, of the pass as its layer instance and recorded index."""
    done = 0
    for replay, place in places:
        before: int = getattr(replay, f"before_{what}")
        first, last = getattr(replay, f"{what}s")
        yield from ((here, number) for number in range(done, before))
        yield from ((place, number) for number in range(first, last))
        done = before
    yield from ((here, number) for number in range(done, len(recorded)))


@dataclass(slots=True)
class ModuleCalls:
    """The number of calls of a module in the whole pass, and its first recorded call."""

    number: int
    first: Calls
    replay: Replay | None


def module_calls(record: Record, replays: tuple[Replay, ...]) -> dict[str, ModuleCalls]:
    """The calls of every module, run or replayed, by path."""
    found = {calls.path: ModuleCalls(calls.number, calls, None) for calls in record.calls}
    for replay in replays:
        for calls in replay.calls:
            path = replay.map_path(calls.path)
            called = found.get(path)
            if called is None:
                found[path] = ModuleCalls(calls.number, calls, replay)
                continue
            called.number += calls.number
            if replay.is_first and path != calls.path:
                called.first, called.replay = calls, replay
    return found


def _with_local_storages(
    record: Record, replays: tuple[Replay, ...]
) -> Iterator[tuple[Replay, frozenset[int]]]:
    """Each replay with the storages that are local to the recorded layer."""
    known: dict[tuple[int, int], frozenset[int]] = {}
    for replay in replays:
        own = known.get(replay.kernels)
        if own is None:
            own = known[replay.kernels] = _local_storages(record, *replay.kernels)
        yield replay, own


def _local_storages(record: Record, first: int, last: int) -> frozenset[int]:
    """Activations and constants that no earlier kernel uses."""
    return frozenset(
        number
        for number in record.new_storages(first, last)
        if record.storages[number].role in ("activation", "constant")
    )


class _UnrolledRecord:
    """Tensors and storages of the pass written out so far."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.tensors: list[Tensor] = []
        self.storages: list[Storage] = []
        self.named = {
            storage.name: number
            for number, storage in enumerate(record.storages)
            if storage.role in ("parameter", "buffer")
        }
        self._numbers: dict[tuple[object, ...], int] = {}
        self._storage_numbers: dict[Key, int] = {}

    def number(self, tensor: Tensor, key: Key, storage: Storage) -> int:
        """The number of a tensor on a storage that other tensors may view."""
        place = (key, tensor.offset, tensor.shape, tensor.strides, tensor.dtype)
        number = self._numbers.get(place)
        if number is None:
            number = self._numbers[place] = self.add(tensor, key, storage)
        return number

    def add(self, tensor: Tensor, key: Key, storage: Storage) -> int:
        home = self._storage_numbers.setdefault(key, len(self.storages))
        if home == len(self.storages):
            self.storages.append(storage)
        self.tensors.append(
            Tensor(tensor.shape, tensor.dtype, tensor.itemsize, home, tensor.offset, tensor.strides)
        )
        return len(self.tensors) - 1


class _LayerInstance:
    """Maps recorded tensors, kernels and operators to the recorded layer or to a replay of it."""

    def __init__(
        self,
        written: _UnrolledRecord,
        replay: Replay | None = None,
        place: int = 0,
        own: frozenset[int] = frozenset(),
    ) -> None:
        self.orders: dict[int, int] = {}
        self._written = written
        self._replay = replay
        self._place = place
        self._own = own
        self._known: dict[int, int] = {}
        self._boundary_tensors = dict(replay.tensors) if replay else {}
        self._storages = replay.map_storages(written.record.tensors) if replay else {}

    def numbers(self, tensors: Iterable[int]) -> tuple[int, ...]:
        known = self._known
        return tuple([known[index] if index in known else self._number(index) for index in tensors])

    def kernel(self, kernel: Kernel) -> Kernel:
        inputs, outputs = self.numbers(kernel.inputs), self.numbers(kernel.outputs)
        return Kernel(
            kernel.name,
            None if kernel.operator is None else self.orders[kernel.operator],
            inputs,
            outputs,
            outputs if kernel.writes is kernel.outputs else self.numbers(kernel.writes),
            kernel.is_view,
            kernel.pointwise,
            kernel.causal,
            kernel.flops,
            self.numbers(kernel.held),
        )

    def operator(self, operator: Operator) -> Operator:
        return replace(
            operator,
            path=self._path(operator.path),
            inputs=self.numbers(operator.inputs),
            outputs=self.numbers(operator.outputs),
            held=self.numbers(operator.held),
        )

    def calls(self, path: str, called: ModuleCalls, here: "_LayerInstance") -> Calls:
        """The calls of a module; `here` maps tensors outside replayed layers."""
        first, replay = called.first, self._replay
        inputs, outputs = self.numbers(first.inputs), self.numbers(first.outputs)
        if replay is not None and path == replay.path:
            held = here.numbers(replay.held)
        else:
            held = self.numbers(first.held)
        return Calls(path, called.number, inputs, outputs, held)

    def _path(self, path: str) -> str:
        return self._replay.map_path(path) if self._replay else path

    def _number(self, index: int) -> int:
        tensor = self._written.record.tensors[self._boundary_tensors.get(index, index)]
        is_boundary = index in self._boundary_tensors
        if not is_boundary and tensor.storage in self._storages:
            tensor = tensor.shifted(self._storages[tensor.storage][1])
        key, storage = self._storage(tensor.storage, is_boundary)
        add = self._written.add if isinstance(key, tuple) else self._written.number
        number = self._known[index] = add(tensor, key, storage)
        return number

    def _storage(self, number: int, is_boundary: bool) -> tuple[Key, Storage]:
        record = self._written.record
        storage = record.storages[number]
        if self._replay is None or is_boundary:
            return number, storage
        if number in self._storages:
            other, _ = self._storages[number]
            return other, record.storages[other]
        if number in self._own:
            return (self._place, number), storage
        if storage.name is not None and storage.role in ("parameter", "buffer"):
            name = self._replay.map_path(storage.name)
            known = self._written.named.get(name)
            if known is None:
                return name, replace(storage, name=name)
            return known, record.storages[known]
        return number, storage
