"""What a drawing of a pass holds: operators that stand for others, boxes, and edges between.

Layers that do the same are folded into the first of them, modules are opened to a depth. Every
edge of the pass lies inside a node or is one of the drawing's.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from llmsim_magic.analyses.graph.dataflow import Edge, depends_on, edges, ranks
from llmsim_magic.analyses.graph.layers import Layer, Repeat, apart, differences, folded, layers
from llmsim_magic.analyses.kernels.elementwise_work import short_name
from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.analyses.kernels.operator_kinds import operator_kinds
from llmsim_magic.records.trace.selection import Level, Selection, Unfolded
from llmsim_magic.records.trace.trace import Trace

Flow = Literal["tensor", "residual", "cache", "next layer"]
MOST = 40  # nodes that fit a screen
FEWEST = 12


@dataclass(frozen=True, slots=True)
class Node:
    """An operator, or a module that is not opened with all its operators.

    `box` is the module whose box it stands in.
    """

    orders: tuple[int, ...]
    closed: str | None
    box: str

    @property
    def order(self) -> int:
        """Its name among the nodes: the order of its first operator."""
        return self.orders[0]


@dataclass(frozen=True, slots=True)
class Line:
    """Tensors that one node hands another: `tensor`, `residual`, `cache` or `next layer`.

    A residual goes past what else leads from the one to the other; `next layer` goes from a
    folded layer to the one that follows it, drawn where they all are. `tensors` are recorded.
    """

    source: int
    target: int
    flow: Flow
    tensors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Given:
    """A tensor that was there before the pass: an input, or the cache."""

    name: str
    tensor: int
    readers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Outline:
    """Nodes in the order of the pass, lines between them, and what each group of layers is.

    `drawn_as` has for every operator of the pass the order of the node that stands for it.
    """

    nodes: tuple[Node, ...]
    drawn_as: tuple[int | None, ...]
    lines: tuple[Line, ...]
    given: tuple[Given, ...]
    groups: dict[str, Repeat]
    differences: dict[str, str]

    def group_of(self, path: str) -> str | None:
        """The path of the folded layer in which a module lies."""
        return next((box for box in boxes(path) if box in self.groups), None)


def outline(trace: Trace, selection: Selection) -> Outline:
    """What is drawn of a pass; raises `InvalidValue` for a layer that the model does not have."""
    groups = apart(trace, selection.layers)
    twins = folded(trace, groups)
    closing = _Closing(trace, selection.depth, selection.level)
    stands_for, shown = _shown(trace, twins, closing)
    inside: dict[int, list[int]] = {place: [] for place in shown}
    for order, place in enumerate(stands_for):
        if place is not None and twins[order] == order:
            inside[place].append(order)
    return Outline(
        tuple(
            Node(tuple(inside[place]), closed, closing.box(place, closed))
            for place, closed in shown.items()
        ),
        tuple(stands_for),
        tuple(_lines(trace, groups, twins, stands_for)),
        tuple(_given(trace, twins, stands_for)),
        {group.first.path: group for group in groups},
        {layer.path: told for layer, told in differences(trace, groups).items()},
    )


def screenful(trace: Trace, unfolded: Unfolded = ()) -> int | None:
    """The depth at which a drawing fits a screen; None where all of it does."""
    twins = folded(trace, apart(trace, unfolded))
    deepest = max((path.count(".") + 1 for path in trace.paths), default=1)
    numbers = {
        depth: len(_shown(trace, twins, _Closing(trace, depth, "operator"))[1])
        for depth in range(1, deepest + 2)
    }
    if numbers[deepest + 1] <= MOST:
        return None
    fitting = max((depth for depth in numbers if numbers[depth] <= MOST), default=1)
    too_few = numbers[fitting] < FEWEST and numbers[fitting + 1] <= 2 * MOST
    return fitting + 1 if too_few else fitting


def _shown(
    trace: Trace, twins: Sequence[int], closing: "_Closing"
) -> tuple[list[int | None], dict[int, str | None]]:
    """The node that each operator is drawn as, if any; and each node's module that is closed."""
    first: dict[str, int] = {}
    shown: dict[int, str | None] = {}
    stands_for: list[int | None] = []
    for order, twin in enumerate(twins):
        if order != twin:
            stands_for.append(stands_for[twin])
            continue
        closed = closing.closed(order)
        if closed is None and operator_kinds(trace)[order] == "nothing":
            stands_for.append(None)
            continue
        place = order if closed is None else first.setdefault(closed, order)
        stands_for.append(place)
        shown[place] = closed
    return stands_for, shown


def boxes(path: str) -> list[str]:
    """The boxes from the outermost to the module's own: `a`, `a.b`, `a.b.0`; lists get none."""
    parts = path.split(".") if path else []
    paths = [".".join(parts[: depth + 1]) for depth in range(len(parts))]
    return [
        box
        for depth, box in enumerate(paths)
        if depth + 1 == len(parts) or not parts[depth + 1].isdigit()
    ]


class _Closing:
    """Which modules are not opened."""

    def __init__(self, trace: Trace, depth: int | None, level: Level) -> None:
        self._trace = trace
        self._depth = depth
        self._operators = trace.of_each(trace.recorded.operators)
        self._lists = {module.path for module in trace.modules if module.is_list}
        self._innermost = _innermost(trace) if level == "module" else frozenset()

    def closed(self, order: int) -> str | None:
        """The outermost module that hides an operator; never a list of modules."""
        path = self._trace.paths[order]
        is_function = self._operators[order].kind == "function"
        parts = path.split(".") if path else []
        for length in range(1, len(parts) + is_function):
            module = ".".join(parts[:length])
            if module in self._lists:
                continue
            if module in self._innermost or (self._depth is not None and length >= self._depth):
                return module
        return None

    def box(self, order: int, closed: str | None) -> str:
        path = closed or self._trace.paths[order]
        is_module = closed is not None or self._operators[order].kind == "module"
        box = path.rpartition(".")[0] if is_module else path
        return box.rpartition(".")[0] if box in self._lists else box


@memoize
def _innermost(trace: Trace) -> frozenset[str]:
    """Containers of nothing but leaf modules, the model itself aside."""
    parents = {module.path.rpartition(".")[0] for module in trace.modules if module.path}
    of_containers = {path.rpartition(".")[0] for path in parents if path}
    return frozenset(parents - of_containers - {""})


def _lines(
    trace: Trace, groups: Iterable[Repeat], twins: Sequence[int], stands_for: list[int | None]
) -> Iterator[Line]:
    group_of = {
        (group.first.stack, index): group.first for group in groups for index in group.indices
    }
    homes: list[Home | None] = [
        None if layer is None else (layer, group_of[layer.stack, layer.index])
        for layer in layers(trace)
    ]
    residual: dict[tuple[int, int], bool] = {}
    found: dict[tuple[int, int, Flow], dict[int, None]] = {}
    for edge in edges(trace):
        source, target = stands_for[edge.source], stands_for[edge.target]
        if source is None or target is None:
            continue
        flow: Flow
        if _is_carried(homes[edge.source], homes[edge.target], back=source >= target):
            flow = "next layer"
        elif source == target:
            continue
        elif edge.through is not None:
            flow = "cache"
        else:
            ends = twins[edge.source], twins[edge.target]
            if ends not in residual:
                residual[ends] = _is_residual(trace, edge)
            flow = "residual" if residual[ends] else "tensor"
        found.setdefault((source, target, flow), {})[edge.tensor] = None
    for (source, target, flow), tensors in found.items():
        if flow == "tensor":
            yield Line(
                source, target, flow, (*tensors, *found.get((source, target, "residual"), ()))
            )
        elif flow != "residual" or (source, target, "tensor") not in found:
            yield Line(source, target, flow, tuple(tensors))


Home = tuple[Layer, Layer]  # an operator's layer, and the one that its group is drawn as


def _is_carried(here: Home | None, there: Home | None, *, back: bool) -> bool:
    """Whether an edge leads to a later layer that is drawn at the place of this or an earlier."""
    if here is None or there is None or here[0] == there[0]:
        return False
    return here[1] == there[1] or back


def _is_residual(trace: Trace, edge: Edge) -> bool:
    """Whether an addition takes up, as it is, what was put aside while others worked on it."""
    record = trace.recorded
    storage = record.tensors[edge.tensor].storage
    added = any(
        short_name(kernel.name) in ("add", "add_")
        and any(
            record.tensors[index].storage == storage
            and record.tensors[index].shape == record.tensors[kernel.outputs[0]].shape
            for index in kernel.inputs
        )
        for kernel in record.kernels_of[trace.steps[edge.target][0]]
    )
    others = [other for other in depends_on(trace)[edge.target] if other != edge.source]
    return added and any(_leads(trace, edge.source, other) for other in others)


def _leads(trace: Trace, source: int, target: int) -> bool:
    """Whether what one operator makes goes into another, by whatever way."""
    rank = _ranks(trace)
    open_, seen = [target], {target}
    while open_:
        order = open_.pop()
        if order == source:
            return True
        waits = depends_on(trace)[order]
        fresh = [each for each in waits if each not in seen and rank[each] >= rank[source]]
        seen.update(fresh)
        open_ += fresh
    return False


_ranks = memoize(ranks)


def _given(trace: Trace, twins: Iterable[int], stands_for: list[int | None]) -> Iterator[Given]:
    """Inputs and cache that the drawn operators read before any other writes them."""
    record = trace.recorded
    tensors = record.tensors
    written: set[int] = set()
    readers: dict[int, dict[int, None]] = {}
    homes: dict[int, dict[int, int]] = {id(None): {}}
    for order, twin in enumerate(twins):
        operator, replay = trace.steps[order]
        if replay is not None and id(replay) not in homes:
            pairs = replay.tensors
            homes[id(replay)] = {tensors[a].storage: tensors[b].storage for a, b in pairs}
        home, place = homes[id(replay)], stands_for[order]
        for kernel in record.kernels_of[operator]:
            for index in kernel.inputs if order == twin else ():
                storage = home.get(tensors[index].storage, tensors[index].storage)
                is_given = record.storages[storage].role in ("input", "cache")
                if is_given and storage not in written and place is not None:
                    readers.setdefault(storage, {})[place] = None
            written.update(
                home.get(tensors[index].storage, tensors[index].storage) for index in kernel.writes
            )
    for storage, read in readers.items():
        name = record.storages[storage].name or record.storages[storage].role
        whole = next(place for place, tensor in enumerate(tensors) if tensor.storage == storage)
        yield Given(name, whole, tuple(read))
