"""Write out replayed layers as if they had been run and recorded."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count as count_from
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

Key = int | tuple[str, str]  # a recorded storage, or role and name of a replayed layer's own
_NAMED_BY_PATH = ("parameter", "buffer", "gradient", "optimizer")
Range = tuple[int, int]


def unroll(record: Record, replays: tuple[Replay, ...]) -> Record:
    """The whole pass; tensors are numbered by their first use."""
    written = _UnrolledRecord(record)
    here = _LayerInstance(written)
    places = _instances(written, replays)
    in_order = list(_segments(len(record.operators), here, places, "operator"))
    count = 0
    for place, (first, last) in in_order:
        place.orders |= zip(range(first, last), range(count, count + last - first), strict=True)
        count += last - first
    place_of = {id(replay): place for replay, place in [(None, here), *places]}
    parts = _Parts(record)
    kernels: list[Kernel] = []
    ends: list[int] = []  # the number of kernels after each replay
    unrolled: dict[int, int] = {}  # the place of each recorded kernel
    for place, bounds in _segments(len(record.kernels), here, places, "kernel"):
        if place is here:
            unrolled |= zip(range(*bounds), count_from(len(kernels)), strict=False)
        kernels += place.kernels(*parts.kernels(bounds))
        if place is not here:
            ends.append(len(kernels))
    if any(kernel.frees for kernel in record.kernels):
        _free_outside(kernels, unrolled, record, places)
        _free_after_replays(kernels, ends, replays, here)
        _free_once(kernels)
    operators = [
        operator
        for place, bounds in in_order
        for operator in place.operators(*parts.operators(bounds))
    ]
    return Record(
        kernels=tuple(kernels),
        operators=tuple(operators),
        calls=tuple(
            place_of[id(called.replay)].calls(path, called, here)
            for path, called in sorted(module_calls(record, replays).items(), key=itemgetter(0))
        ),
        results=here.numbers(record.results),
        tensors=tuple(written.tensors),
        storages=tuple(written.storages),
    )


Instances = list[tuple[Replay, "_LayerInstance"]]


def _instances(written: "_UnrolledRecord", replays: tuple[Replay, ...]) -> Instances:
    """Each replay with its instance of the layer; a backward has that of its forward."""
    record = written.record
    backwards = {each.resumes: each for each in replays if each.resumes is not None}
    local: dict[Range, frozenset[int]] = {}
    found: Instances = []
    for number, replay in enumerate(replays):
        if replay.resumes is not None:
            found.append((replay, found[replay.resumes][1]))
            continue
        parts = [replay] if number not in backwards else [replay, backwards[number]]
        for part in parts:
            if part.kernels not in local:
                local[part.kernels] = _local_storages(record, *part.kernels)
        own = frozenset().union(*(local[part.kernels] for part in parts))
        found.append((replay, _LayerInstance(written, parts, own)))
    return found


def _free_outside(
    kernels: list[Kernel], unrolled: dict[int, int], record: Record, places: Instances
) -> None:
    """Free what is local to replayed layers where its counterpart ends outside the layer that ran.

    The casts of weights that autocast keeps, for one, end with its region.
    """
    ends = {each: place for place, kernel in enumerate(record.kernels) for each in kernel.frees}
    spans: dict[int, list[Range]] = defaultdict(list)
    for replay, instance in places:
        spans[id(instance)].append(replay.kernels)
    added: dict[int, list[int]] = defaultdict(list)
    for instance in {id(instance): instance for _, instance in places}.values():
        inside = spans[id(instance)]
        for storage, own in instance.local_storages.items():
            end = ends.get(storage)
            if end is not None and not any(first <= end < last for first, last in inside):
                added[unrolled[end]].append(own)
    for place, storages in added.items():
        kernels[place] = replace(kernels[place], frees=(*kernels[place].frees, *storages))


def _free_after_replays(
    kernels: list[Kernel], ends: list[int], replays: tuple[Replay, ...], here: "_LayerInstance"
) -> None:
    """Free what nothing refers to after a replayed layer, unless a kernel is known to end it."""
    known = {storage for kernel in kernels for storage in kernel.frees}
    for end, replay in zip(ends, replays, strict=True):
        frees = [storage for storage in here.freed(replay.frees) if storage not in known]
        if frees and end:
            last = kernels[end - 1]
            kernels[end - 1] = replace(last, frees=(*last.frees, *frees))


def _free_once(kernels: list[Kernel]) -> None:
    """Free each storage after the last kernel that is said to.

    A tensor between two replayed layers ends as in the layers that ran; in a replayed step nothing
    refers to it earlier.
    """
    last: dict[int, int] = {}
    for place, kernel in enumerate(kernels):
        for storage in kernel.frees:
            last[storage] = place
    for place, kernel in enumerate(kernels):
        if kernel.frees:
            frees = tuple(sorted({each for each in kernel.frees if last[each] == place}))
            if frees != kernel.frees:
                kernels[place] = replace(kernel, frees=frees)


def _segments(
    count: int, here: "_LayerInstance", places: Instances, what: str
) -> Iterator[tuple["_LayerInstance", Range]]:
    """The operators, or kernels, of the pass as ranges of recorded ones with their instances."""
    done = 0
    for replay, place in places:
        before: int = getattr(replay, f"before_{what}")
        if done < before:
            yield here, (done, before)
        yield place, getattr(replay, f"{what}s")
        done = before
    yield here, (done, count)


class _Rows:
    """Tensors of consecutive kernels or operators, which each layer instance numbers anew.

    Args:
        rows: For each kernel or operator, the recorded tensors of each of its fields.

    Attributes:
        tensors: The tensors of all fields, one after another.
        fields: For each kernel or operator, the place of each of its fields in `tensors`.
        distinct: Each tensor once, in the order of their first use.
    """

    def __init__(self, rows: Iterable[tuple[tuple[int, ...], ...]]) -> None:
        self.tensors: list[int] = []
        self.fields: list[list[slice]] = []
        for row in rows:
            fields: list[slice] = []
            for tensors in row:
                first = len(self.tensors)
                self.tensors += tensors
                fields.append(slice(first, len(self.tensors)))
            self.fields.append(fields)
        self.distinct = tuple(dict.fromkeys(self.tensors))


class _Parts:
    """The recorded kernels and operators of each range, prepared once for all its replays."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._kernels: dict[Range, tuple[Sequence[Kernel], _Rows]] = {}
        self._operators: dict[Range, tuple[Sequence[Operator], _Rows]] = {}

    def kernels(self, bounds: Range) -> tuple[Sequence[Kernel], _Rows]:
        found = self._kernels.get(bounds)
        if found is None:
            kernels = self._record.kernels[slice(*bounds)]
            rows = _Rows((each.inputs, each.outputs, each.writes, each.held) for each in kernels)
            found = self._kernels[bounds] = kernels, rows
        return found

    def operators(self, bounds: Range) -> tuple[Sequence[Operator], _Rows]:
        found = self._operators.get(bounds)
        if found is None:
            operators = self._record.operators[slice(*bounds)]
            rows = _Rows((each.inputs, each.outputs, each.held, each.saved) for each in operators)
            found = self._operators[bounds] = operators, rows
        return found


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
            (storage.role, storage.name): number
            for number, storage in enumerate(record.storages)
            if storage.role in _NAMED_BY_PATH
        }
        self._numbers: dict[tuple[object, ...], int] = {}
        self._storage_numbers: dict[Key, int] = {}

    def number(self, tensor: Tensor, key: Key, storage: Storage) -> int:
        """The number of a tensor on a storage that other tensors may view."""
        place = (key, tensor.offset, tensor.shape, tensor.strides, tensor.dtype)
        number = self._numbers.get(place)
        if number is None:
            home = self._storage_numbers.setdefault(key, len(self.storages))
            if home == len(self.storages):
                self.storages.append(storage)
            number = self._numbers[place] = self.add(tensor, home)
        return number

    def storage_number(self, key: Key) -> int | None:
        """The number of a storage that tensors viewed so far; None for another."""
        return self._storage_numbers.get(key)

    def add(self, tensor: Tensor, storage: int) -> int:
        """Add a tensor on a storage of the unrolled record, and return its number."""
        self.tensors.append(
            Tensor(
                tensor.shape, tensor.dtype, tensor.itemsize, storage, tensor.offset, tensor.strides
            )
        )
        return len(self.tensors) - 1


class _LayerInstance:
    """Maps recorded tensors, kernels and operators to the recorded layer or to a replay of it."""

    def __init__(
        self,
        written: _UnrolledRecord,
        replays: Sequence[Replay] = (),
        own: frozenset[int] = frozenset(),
    ) -> None:
        self.orders: dict[int, int] = {}
        self._written = written
        self._replay = replays[0] if replays else None
        self._known: dict[int, int] = {}
        self._boundary_tensors: dict[int, int] = {}
        self._storages: dict[int, tuple[int, int]] = {}
        for replay in replays:
            self._boundary_tensors |= dict(replay.tensors)
            self._storages |= replay.map_storages(written.record.tensors)
        self._own = own.difference(self._storages)
        self.local_storages: dict[int, int] = {}  # unrolled numbers by recorded ones

    def numbers(self, tensors: Sequence[int]) -> tuple[int, ...]:
        known = self._known
        for index in tensors:
            if index not in known:
                self._add((index,))
        return tuple([known[index] for index in tensors])

    def _row_numbers(self, rows: _Rows) -> tuple[int, ...]:
        self._add(rows.distinct)
        return tuple(map(self._known.__getitem__, rows.tensors))

    def kernels(self, kernels: Sequence[Kernel], rows: _Rows) -> list[Kernel]:
        orders, numbers = self.orders, self._row_numbers(rows)
        return [
            Kernel(
                kernel.name,
                None if kernel.operator is None else orders[kernel.operator],
                numbers[inputs],
                numbers[outputs],
                numbers[writes],
                kernel.is_view,
                kernel.pointwise,
                kernel.causal,
                kernel.flops,
                numbers[held],
                self.freed(kernel.frees),
                kernel.ranks,
            )
            for kernel, (inputs, outputs, writes, held) in zip(kernels, rows.fields, strict=True)
        ]

    def operators(self, operators: Sequence[Operator], rows: _Rows) -> list[Operator]:
        path, numbers, orders = self._path, self._row_numbers(rows), self.orders
        return [
            Operator(
                path(operator.path),
                operator.op,
                operator.kind,
                numbers[inputs],
                numbers[outputs],
                operator.source,
                numbers[held],
                operator.part,
                None if operator.backward_of is None else orders.get(operator.backward_of),
                numbers[saved],
            )
            for operator, (inputs, outputs, held, saved) in zip(operators, rows.fields, strict=True)
        ]

    def freed(self, storages: Sequence[int]) -> tuple[int, ...]:
        """The unrolled numbers of recorded storages, without those that this layer never uses."""
        if not storages:
            return ()
        found = map(self._storage_number, storages)
        return tuple([number for number in found if number is not None])

    def _storage_number(self, storage: int) -> int | None:
        if storage in self.local_storages:
            return self.local_storages[storage]
        if self._replay is not None and storage not in self._storages:
            return None
        return self._written.storage_number(self._storage(storage, is_boundary=False)[0])

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

    def _add(self, tensors: Iterable[int]) -> None:
        """Number recorded tensors that have no number yet."""
        known, written, own = self._known, self._written, self.local_storages
        recorded, storages = written.record.tensors, written.storages
        for index in tensors:
            if index in known:
                continue
            tensor = recorded[index]
            storage = tensor.storage
            if storage in self._own and index not in self._boundary_tensors:
                if storage not in own:
                    own[storage] = len(storages)
                    storages.append(written.record.storages[storage])
                known[index] = written.add(tensor, own[storage])
            else:
                known[index] = self._number(index)

    def _number(self, index: int) -> int:
        tensor = self._written.record.tensors[self._boundary_tensors.get(index, index)]
        is_boundary = index in self._boundary_tensors
        if not is_boundary and tensor.storage in self._storages:
            tensor = tensor.shifted(self._storages[tensor.storage][1])
        return self._written.number(tensor, *self._storage(tensor.storage, is_boundary=is_boundary))

    def _storage(self, number: int, *, is_boundary: bool) -> tuple[Key, Storage]:
        record = self._written.record
        storage = record.storages[number]
        if self._replay is None or is_boundary:
            return number, storage
        if number in self._storages:
            other, _ = self._storages[number]
            return other, record.storages[other]
        if storage.name is not None and storage.role in _NAMED_BY_PATH:
            name = self._replay.map_path(storage.name)
            known = self._written.named.get((storage.role, name))
            if known is None:
                return (storage.role, name), replace(storage, name=name)
            return known, record.storages[known]
        return number, storage
