"""Rewrite the record of a training step: insert operators and change tensors and storages."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from llmsim_magic.records.trace.recorded import (
    Kernel,
    Operator,
    Pass,
    Record,
    Role,
    Storage,
    Tensor,
)

# The tensor that a kernel or operator uses instead: of a kernel's index and a tensor.
TensorMap = Callable[[int, int], int]


@dataclass(slots=True)
class NewOperator:
    """An operator to insert, with its kernels."""

    operator: Operator
    kernels: list[Kernel]

    def free_after(self, storages: Iterable[int]) -> None:
        """Free storages once the last kernel has run."""
        last = self.kernels[-1]
        self.kernels[-1] = replace(last, frees=(*last.frees, *storages))


class StepRewriter:
    """Changes to a record, whose tensors and storages keep their numbers; new ones follow.

    Attributes:
        record: The record as it is before.
        storages: All storages; assign an element to change one.
        tensors: All tensors.
        kernels: The kernels of the record; assign an element to change one.
        parts: The pass of each kernel of the record.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self.storages: list[Storage] = list(record.storages)
        self.tensors: list[Tensor] = list(record.tensors)
        self.kernels: list[Kernel] = list(record.kernels)
        self.parts = record.kernel_parts
        self._frees = [list(kernel.frees) for kernel in record.kernels]
        self._inserted: dict[int, list[NewOperator]] = {}
        self._dropped: set[int] = set()

    def new_storage(self, nbytes: int, role: Role = "activation", name: str | None = None) -> int:
        """Add a storage."""
        self.storages.append(Storage(nbytes, role, name))
        return len(self.storages) - 1

    def new_tensor(
        self, storage: int, shape: tuple[int, ...], like: Tensor, offset: int = 0
    ) -> int:
        """Add a contiguous tensor of a dtype, `offset` elements into a storage."""
        strides, step = [], 1
        for size in reversed(shape):
            strides.append(step)
            step *= max(size, 1)
        self.tensors.append(
            Tensor(shape, like.dtype, like.itemsize, storage, offset, tuple(reversed(strides)))
        )
        return len(self.tensors) - 1

    def new_buffer(self, elements: int, like: Tensor, role: Role = "activation") -> int:
        """Add a vector with a storage of its own."""
        return self.new_tensor(self.new_storage(elements * like.itemsize, role), (elements,), like)

    def end_of(self, *parts: Pass) -> int:
        """The index after the last kernel of some passes; 0 if there is none."""
        places = (place for place, part in enumerate(self.parts) if part in parts)
        return max(places, default=-1) + 1

    def insert(
        self, before: int, path: str, op: str, part: Pass, kernels: Sequence[Kernel]
    ) -> NewOperator:
        """Insert an operator before a kernel of the record, after those inserted there already."""
        inputs = [index for kernel in kernels for index in kernel.inputs]
        outputs = [index for kernel in kernels for index in kernel.outputs]
        operator = Operator(
            path=path,
            op=op,
            kind="function",
            inputs=tuple(dict.fromkeys(each for each in inputs if each not in {*outputs})),
            outputs=tuple(dict.fromkeys(outputs)),
            source=None,
            part=part,
        )
        new = NewOperator(operator, list(kernels))
        self._inserted.setdefault(before, []).append(new)
        return new

    def drop_kernel(self, place: int) -> None:
        """Leave a kernel out; what it frees is freed after the kernel before it."""
        self._dropped.add(place)

    def free_after(self, place: int, storages: Iterable[int]) -> None:
        """Free storages once a kernel of the record has run."""
        self._frees[place] += storages

    def keep(self, storages: Iterable[int]) -> dict[int, int]:
        """Free storages nowhere; return the kernel that freed each."""
        kept = set(storages)
        found: dict[int, int] = {}
        for place, frees in enumerate(self._frees):
            if not kept.isdisjoint(frees):
                found |= {each: place for each in frees if each in kept}
                self._frees[place] = [each for each in frees if each not in kept]
        return found

    def finish(self, mapped: TensorMap | None = None) -> Record:
        """The changed record.

        Args:
            mapped: The tensor that a kernel uses instead of one of the record; None if it is the
                same everywhere.
        """
        return _Assembly(self, mapped, self._frees, self._inserted, self._dropped).record()


class _Assembly:
    """Writes kernels and operators in their new order."""

    def __init__(
        self,
        rewriter: StepRewriter,
        mapped: TensorMap | None,
        frees: Sequence[Sequence[int]],
        inserted: dict[int, list[NewOperator]],
        dropped: set[int],
    ) -> None:
        self._rewriter = rewriter
        self._mapped = mapped
        self._frees = frees
        self._inserted = inserted
        self._dropped = dropped
        self._kernels: list[Kernel] = []
        self._operators: list[Operator] = []
        self._numbers: list[int] = []  # the new number of each operator of the record
        self._first = _first_kernels(rewriter.record)

    def record(self) -> Record:
        record = self._rewriter.record
        for place, kernel in enumerate(self._rewriter.kernels):
            self._insert(place)
            if kernel.operator is not None:
                self._open(kernel.operator + 1)
            if place not in self._dropped:
                self._kernels.append(self._changed(place, kernel))
            elif self._frees[place]:
                last = self._kernels[-1]
                self._kernels[-1] = replace(last, frees=(*last.frees, *self._frees[place]))
        self._open(len(record.operators))
        self._insert(len(record.kernels))
        operators = [
            each
            if each.backward_of is None
            else replace(each, backward_of=self._numbers[each.backward_of])
            for each in self._operators
        ]
        return Record(
            storages=tuple(self._rewriter.storages),
            tensors=tuple(self._rewriter.tensors),
            kernels=tuple(self._kernels),
            operators=tuple(operators),
            calls=record.calls,
            results=record.results,
        )

    def _open(self, end: int) -> None:
        """Write the operators of the record up to one."""
        for number in range(len(self._numbers), end):
            self._numbers.append(len(self._operators))
            operator = self._rewriter.record.operators[number]
            place = self._first[number]
            self._operators.append(
                replace(
                    operator,
                    inputs=self._all_mapped(place, operator.inputs),
                    outputs=self._all_mapped(place, operator.outputs),
                    held=self._all_mapped(place, operator.held),
                    saved=self._saved(place, operator),
                )
            )

    def _saved(self, place: int, operator: Operator) -> tuple[int, ...]:
        """What autograd keeps; of a gathered parameter it keeps nothing but the reference."""
        tensors, storages = self._rewriter.tensors, self._rewriter.storages
        mapped = self._all_mapped(place, operator.saved)
        return tuple(each for each in mapped if storages[tensors[each].storage].role != "gathered")

    def _insert(self, place: int) -> None:
        for new in self._inserted.get(place, ()):
            number = len(self._operators)
            self._operators.append(new.operator)
            self._kernels += [replace(kernel, operator=number) for kernel in new.kernels]

    def _changed(self, place: int, kernel: Kernel) -> Kernel:
        return replace(
            kernel,
            operator=None if kernel.operator is None else self._numbers[kernel.operator],
            inputs=self._all_mapped(place, kernel.inputs),
            outputs=self._all_mapped(place, kernel.outputs),
            writes=self._all_mapped(place, kernel.writes),
            held=self._all_mapped(place, kernel.held),
            frees=tuple(self._frees[place]),
        )

    def _all_mapped(self, place: int, tensors: tuple[int, ...]) -> tuple[int, ...]:
        if self._mapped is None:
            return tensors
        return tuple([self._mapped(place, index) for index in tensors])


def _first_kernels(record: Record) -> list[int]:
    """The first kernel of each operator; of one without kernels, that of the next operator."""
    found: dict[int, int] = {}
    for place, kernel in enumerate(record.kernels):
        if kernel.operator is not None:
            found.setdefault(kernel.operator, place)
    places, after = [], len(record.kernels) - 1
    for number in reversed(range(len(record.operators))):
        after = found.get(number, after)
        places.append(after)
    return places[::-1]


def data_kernel(
    name: str,
    inputs: Sequence[int],
    outputs: Sequence[int],
    *,
    ranks: int = 0,
    frees: Sequence[int] = (),
) -> Kernel:
    """A kernel that copies or exchanges data; its outputs are written."""
    return Kernel(
        name=name,
        operator=None,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        writes=tuple(outputs),
        is_view=False,
        pointwise=False,
        causal=False,
        flops=None,
        frees=tuple(frees),
        ranks=ranks,
    )
