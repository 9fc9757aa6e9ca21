"""Aligns the modules of two models: which module of the one is which of the other.

The alignment is that of the constrained edit distance between ordered trees by K. Zhang,
"Algorithms for the constrained editing distance between ordered labeled trees and related
problems", Pattern Recognition 28(3), 1995: the cheapest one in which separate subtrees correspond
to separate subtrees. To leave out or insert a module costs 1, and to make one into another what
`module_similarity` says. A module around a part of a model, or missing around it, shifts the part
by a level. What is below two modules that correspond is aligned by names first: modules with one
name correspond, in whatever order. The others are aligned in the order in which they run; where
another alignment is as cheap, as when two equal modules face one, they stay apart. Layers of lists
of one length correspond by index, unless other layers are more alike; in lists of other lengths by
structure and order, and kinds that take turns by structure alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from operator import itemgetter
from typing import Literal

from llmsim_magic.analyses.structure.module_similarity import (
    is_same_kind,
    may_correspond,
    place_cost,
    renaming_cost,
)
from llmsim_magic.analyses.structure.module_tree import ModuleNode, at_place
from llmsim_magic.analyses.structure.sequence_alignment import align_sequences

Siblings = tuple[ModuleNode, ...]
Pair = tuple[ModuleNode | None, ModuleNode | None]  # None: the model has no such module
_INFINITE = float("inf")
_MARGIN = 0.015  # less than one attribute more that differs
_RENAMED = 0.1  # the most that a module costs of which only the name differs
_LEAST_IN_COMMON = 0.2  # share of the modules below two that correspond for no other reason


def align(first: ModuleNode, second: ModuleNode) -> list[Pair]:
    """The modules of two trees, those that correspond as pairs, in the order in which they run."""
    return list(_Aligner().pairs(first, second))


@dataclass(frozen=True, slots=True)
class _Choice:
    """The cheapest way to align two trees, or what is below two modules.

    Attributes:
        cost: its cost.
        how: `match` aligns them with each other; `into first` aligns the second with the part of
            the first that is in its child `child`, and leaves out the rest; `into second` likewise.
        child: the index of that child.
    """

    cost: float
    how: Literal["match", "into first", "into second"] = "match"
    child: int = 0


@dataclass(frozen=True, slots=True)
class _Children:
    """The children of two modules, and which of them correspond, ordered by the second."""

    cost: float
    first: Siblings
    second: Siblings
    matches: list[tuple[int, int]]


class _Aligner:
    """Alignments of the subtrees of two trees; each is computed once."""

    def __init__(self) -> None:
        self._trees: dict[tuple[str, str], _Choice] = {}
        self._below: dict[tuple[str, str], _Choice] = {}
        self._sequences: dict[tuple[str, str], _Children] = {}

    def pairs(self, first: ModuleNode, second: ModuleNode) -> Iterator[Pair]:
        """The pairs of two trees."""
        choice = self._tree(first, second)
        if choice.how == "match":
            yield first, second
            yield from self._pairs_below(first, second)
        else:
            yield (first, None) if choice.how == "into first" else (None, second)
            yield from _around(choice, first, second, self.pairs)

    def _pairs_below(self, first: ModuleNode, second: ModuleNode) -> Iterator[Pair]:
        """The pairs of what is below two modules."""
        choice = self._forest(first, second)
        if choice.how == "match":
            yield from self._children_pairs(first, second)
            return

        def inside(a: ModuleNode, b: ModuleNode) -> Iterator[Pair]:
            yield (a, None) if choice.how == "into first" else (None, b)
            yield from self._pairs_below(a, b)

        yield from _around(choice, first, second, inside)

    def _children_pairs(self, first: ModuleNode, second: ModuleNode) -> Iterator[Pair]:
        """The pairs below two modules whose children are aligned with each other.

        What only the first has is before what only the second has at the same place.
        """
        found = self._children(first, second)
        matched = {a for a, _ in found.matches}
        done = [0, 0]
        for a, b in [*found.matches, (len(found.first), len(found.second))]:
            for place in range(done[0], a):
                if place not in matched:
                    yield from _only_first(found.first[place])
            for place in range(done[1], b):
                yield from _only_second(found.second[place])
            if b < len(found.second):
                yield from self.pairs(found.first[a], found.second[b])
            done = [max(done[0], a), b + 1]

    def _tree(self, first: ModuleNode, second: ModuleNode) -> _Choice:
        """The cheapest way to align two trees.

        A single module, or one with the name of the other, is found inside the other only if it is
        there unchanged.
        """
        key = first.place.path, second.place.path
        if key not in self._trees:
            has_one_name = first.name == second.name != ""
            is_single = not (first.children and second.children)
            most = _RENAMED if has_one_name or is_single else _INFINITE
            cost = self._match_cost(first, second)
            self._trees[key] = _descend(first, second, cost, self._tree, most)
        return self._trees[key]

    def _match_cost(self, first: ModuleNode, second: ModuleNode) -> float:
        """The cost of two trees whose roots correspond."""
        may = may_correspond(first, second)
        if not (first.children and second.children):
            if not may:
                return _INFINITE
            below: float = first.size + second.size - 2
        else:
            below = self._forest(first, second).cost
            if not may and below > (1 - _LEAST_IN_COMMON) * (first.size + second.size - 2):
                return _INFINITE
        return renaming_cost(first, second) + place_cost(first, second) + below

    def _forest(self, first: ModuleNode, second: ModuleNode) -> _Choice:
        """The cheapest way to align what is below two modules."""
        key = first.place.path, second.place.path
        if key not in self._below:
            cost = self._children(first, second).cost
            self._below[key] = _descend(first, second, cost, self._forest, _INFINITE)
        return self._below[key]

    def _children(self, first: ModuleNode, second: ModuleNode) -> _Children:
        """The children of two modules, aligned with each other.

        Layers of lists of one length are aligned by index, unless fewer modules differ otherwise.
        """
        key = first.place.path, second.place.path
        if key not in self._sequences:
            found = self._align_children(first.children, second.children)
            by_index = self._align_by_index(first, second)
            if by_index is not None and by_index.cost < found.cost + 1:
                found = by_index
            self._sequences[key] = found
        return self._sequences[key]

    def _align_by_index(self, first: ModuleNode, second: ModuleNode) -> _Children | None:
        """Layers aligned by index, of which those that are alike in both models are one.

        None if the lists have other indices, or too many layers differ.
        """
        layers = [
            {index: node for node in module.children for index in node.place.indices}
            for module in (first, second)
        ]
        are_layers = all(child.is_layer for child in (*first.children, *second.children))
        if not are_layers or layers[0].keys() != layers[1].keys():
            return None
        groups: dict[tuple[str, str], list[int]] = {}
        for index in sorted(layers[0]):
            groups.setdefault((layers[0][index].name, layers[1][index].name), []).append(index)
        if len(groups) > len(first.children) + len(second.children):
            return None
        nodes = [
            tuple(
                at_place(below[group[0]], module.place.below("", tuple(group)))
                for group in groups.values()
            )
            for module, below in zip((first, second), layers, strict=True)
        ]
        cost = sum(self._tree(a, b).cost for a, b in zip(*nodes, strict=True))
        return _Children(cost, nodes[0], nodes[1], [(place, place) for place in range(len(groups))])

    def _align_children(self, first: Siblings, second: Siblings) -> _Children:
        partners = dict(self._sure_partners(first, second))
        taken = set(partners.values())
        others = (
            [node for i, node in enumerate(first) if i not in partners],
            [node for j, node in enumerate(second) if j not in taken],
        )
        costs = [
            [
                self._tree(a, b).cost
                if partners.get(i) == j
                or (i not in partners and j not in taken and _is_plausible(a, b, *others))
                else _INFINITE
                for j, b in enumerate(second)
            ]
            for i, a in enumerate(first)
        ]
        for match in align_sequences(costs, _sizes(first), _sizes(second), _MARGIN):
            if match.is_certain or first[match.first].is_layer:
                partners[match.first] = match.second
        paired = sum(costs[a][b] for a, b in partners.items())
        alone_first = sum(node.size for i, node in enumerate(first) if i not in partners)
        matched = set(partners.values())
        alone_second = sum(node.size for j, node in enumerate(second) if j not in matched)
        in_order = sorted(partners.items(), key=itemgetter(1))
        return _Children(paired + alone_first + alone_second, first, second, in_order)

    def _sure_partners(self, first: Siblings, second: Siblings) -> Iterator[tuple[int, int]]:
        """Children that correspond wherever they are: of one name, or kinds of layers by turns."""
        if _alternates(first) or _alternates(second):
            yield from self._nearest_layers(first, second)
        place_of = {node.name: j for j, node in enumerate(second) if not node.is_layer}
        for i, node in enumerate(first):
            if not node.is_layer and node.name in place_of:
                yield i, place_of[node.name]

    def _nearest_layers(self, first: Siblings, second: Siblings) -> Iterator[tuple[int, int]]:
        """Groups of layers, the most alike first."""
        pairs = [
            (self._tree(a, b).cost, i, j)
            for (i, a), (j, b) in product(enumerate(first), enumerate(second))
            if a.is_layer and b.is_layer
        ]
        done_first: set[int] = set()
        done_second: set[int] = set()
        for cost, i, j in sorted(pairs):
            alone = first[i].size + second[j].size
            if cost < alone and i not in done_first and j not in done_second:
                done_first.add(i)
                done_second.add(j)
                yield i, j


def _descend(
    first: ModuleNode,
    second: ModuleNode,
    match_cost: float,
    align_inside: Callable[[ModuleNode, ModuleNode], _Choice],
    most: float,
) -> _Choice:
    """The cheaper of a match and of an alignment with what is in a child of one of them.

    Args:
        first: a module of the first model.
        second: a module of the second model.
        match_cost: the cost of the match.
        align_inside: aligns with a child; costs at least the difference of the sizes.
        most: what that may cost.
    """
    best = _Choice(match_cost)
    inside: list[tuple[_Choice, ModuleNode, ModuleNode]] = [
        (_Choice(first.size - child.size, "into first", place), child, second)
        for place, child in _candidates(first, second)
    ]
    inside += [
        (_Choice(second.size - child.size, "into second", place), first, child)
        for place, child in _candidates(second, first)
    ]
    for around, a, b in inside:
        if around.cost + abs(a.size - b.size) < best.cost:
            cost = align_inside(a, b).cost
            if cost <= most and around.cost + cost < best.cost:
                best = replace(around, cost=around.cost + cost)
    return best


def _candidates(outer: ModuleNode, inner: ModuleNode) -> Iterator[tuple[int, ModuleNode]]:
    """The children of one module that may have all of another inside, with their indices.

    Nothing beside such a child has the name of a module below the other one. A layer does not stand
    around what is no layer.
    """
    if not outer.children or (outer.is_layer and not inner.is_layer):
        return
    names = {node.name for node in inner.children if not node.is_layer}
    shared = [
        place
        for place, child in enumerate(outer.children)
        if not child.is_layer and child.name in names
    ]
    for place, child in enumerate(outer.children):
        if shared in ([], [place]):
            yield place, child


def _around(
    choice: _Choice,
    first: ModuleNode,
    second: ModuleNode,
    inside: Callable[[ModuleNode, ModuleNode], Iterator[Pair]],
) -> Iterator[Pair]:
    """The pairs below a module of which one child has all that corresponds."""
    if choice.how == "into first":
        for place, child in enumerate(first.children):
            yield from inside(child, second) if place == choice.child else _only_first(child)
    else:
        for place, child in enumerate(second.children):
            yield from inside(first, child) if place == choice.child else _only_second(child)


def _is_plausible(
    first: ModuleNode, second: ModuleNode, firsts: list[ModuleNode], seconds: list[ModuleNode]
) -> bool:
    """Whether two of the modules that are left may correspond though their weights differ.

    That two linear layers have different shapes says little: there have to be as many modules of
    their kind on both sides, or both are the first that are left.
    """
    if first.children or second.children or first.is_layer or first.shapes == second.shapes:
        return True
    counts = [sum(is_same_kind(first, node) for node in nodes) for nodes in (firsts, seconds)]
    return counts[0] == counts[1] or (first is firsts[0] and second is seconds[0])


def _alternates(nodes: Siblings) -> bool:
    """Whether layers of one kind are between layers of another."""
    return any(
        node.place.indices[-1] - node.place.indices[0] >= len(node.place.indices)
        for node in nodes
        if node.is_layer
    )


def _sizes(nodes: Siblings) -> list[int]:
    return [node.size for node in nodes]


def _only_first(node: ModuleNode) -> Iterator[Pair]:
    yield node, None
    for child in node.children:
        yield from _only_first(child)


def _only_second(node: ModuleNode) -> Iterator[Pair]:
    yield None, node
    for child in node.children:
        yield from _only_second(child)
