"""Folds the rows of identical layers into one block: `model.layers.0–27 ×28`."""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from llmsim_magic.analyses.graph.layers import index_spans
from llmsim_magic.records.trace.recorded import PASSES

Key = tuple[Hashable, ...]
_INDENT = "  "
OWN_ROW = "(layer)"  # label of a function that a layer itself calls


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a folded table.

    Attributes:
        label: the path, below a block relative to its layer, indented.
        rows: positions of the rows of the table that the line stands for, one for each layer;
            empty for the head of a block that has no row of its own.
        is_block: whether it is the head of a block of layers.
        stack: the path of the list that the layers of a block are in.
        indices: the layers of a block, in the order of their rows.
    """

    label: str
    rows: tuple[int, ...]
    is_block: bool = False
    stack: str = ""
    indices: tuple[int, ...] = ()

    @property
    def layers(self) -> int:
        """How many layers the line stands for."""
        return len(self.indices) or 1

    @property
    def depth(self) -> int:
        """In how many blocks the line is."""
        return (len(self.label) - len(self.label.lstrip())) // len(_INDENT)


class _Layer(NamedTuple):
    stack: str
    number: int

    @property
    def path(self) -> str:
        return f"{self.stack}.{self.number}" if self.stack else str(self.number)


def fold_by_pass(paths: Sequence[str], keys: Sequence[Key], parts: Sequence[str]) -> list[Line]:
    """As `fold` for each pass of a training step, below a head that names the pass.

    Args:
        paths: as in `fold`.
        keys: as in `fold`.
        parts: the pass of each row.
    """
    lines: list[Line] = []
    for part in sorted(dict.fromkeys(parts), key=_place_of_pass):
        places = [place for place, own in enumerate(parts) if own == part]
        lines.append(Line(part, (), is_block=True))
        rows: list[tuple[int, ...]] = [(place,) for place in places]
        lines += _fold(rows, [paths[p] for p in places], [keys[p] for p in places], 1)
    return lines


def _place_of_pass(part: str) -> int:
    return PASSES.index(part) if part in PASSES else len(PASSES)


def fold(paths: Sequence[str], keys: Sequence[Key]) -> list[Line]:
    """Fold layers whose rows are equal, in the order of their first rows.

    A layer is a number in a path, as in `model.layers.3.mlp`. Layers of one stack fold if they have
    the same rows in the same order: equal keys, and equal paths below the layer. Layers inside a
    layer, such as experts, fold in turn.

    Args:
        paths: the path of each row; a function follows its module after a colon.
        keys: what has to be equal. Paths in a key count relative to the layer.
    """
    rows: list[tuple[int, ...]] = [(place,) for place in range(len(paths))]
    return _fold(rows, list(paths), list(keys), 0)


def _fold(rows: list[tuple[int, ...]], paths: list[str], keys: list[Key], depth: int) -> list[Line]:
    members: dict[_Layer, list[int]] = {}  # positions in `rows`
    layer_of = [_layer(path) for path in paths]
    for place, layer in enumerate(layer_of):
        if layer is not None:
            members.setdefault(layer, []).append(place)
    groups: dict[Hashable, list[_Layer]] = {}
    for layer, places in members.items():
        prefix = layer.path
        content = tuple(
            [(_below(paths[place], prefix), *_relative_key(keys[place], layer)) for place in places]
        )
        groups.setdefault((layer.stack, content), []).append(layer)
    folded_stacks = {group[0].stack for group in groups.values() if len(group) > 1}
    group_of = {group[0]: group for group in groups.values()}
    repeated = {layer for group in groups.values() for layer in group[1:]}
    lines: list[Line] = []
    done: set[_Layer] = set()
    for place, layer in enumerate(layer_of):
        if layer is None or layer.stack not in folded_stacks:
            lines.append(Line(_INDENT * depth + (paths[place] or "(model)"), rows[place]))
        elif layer not in repeated and layer not in done:
            done.add(layer)
            lines += _block(group_of[layer], members, (rows, paths, keys), depth)
    return lines


def _block(
    group: list[_Layer],
    members: dict[_Layer, list[int]],
    table: tuple[list[tuple[int, ...]], list[str], list[Key]],
    depth: int,
) -> list[Line]:
    rows, paths, keys = table
    first = group[0]
    places = members[first]
    below = [_below(paths[place], first.path) for place in places]
    together = [
        tuple(row for layer in group for row in rows[members[layer][position]])
        for position in range(len(places))
    ]
    own = below.count("") == 1 and below[0] == ""
    spans = index_spans(layer.number for layer in group).replace("-", "–")
    stack = f"{first.stack}." if first.stack else ""
    times = f" ×{len(group)}" if len(group) > 1 else ""
    head = Line(
        f"{_INDENT * depth}{stack}{spans}{times}",
        together[0] if own else (),
        is_block=True,
        stack=first.stack,
        indices=tuple(layer.number for layer in group),
    )
    start = 1 if own else 0
    inner_keys = [_relative_key(keys[place], first) for place in places[start:]]
    names = [name or OWN_ROW for name in below[start:]]
    return [head, *_fold(together[start:], names, inner_keys, depth + 1)]


@lru_cache(maxsize=16_384)
def _layer(path: str) -> _Layer | None:
    """The outermost numbered element of a path."""
    parts = path.partition(":")[0].split(".")
    for depth, part in enumerate(parts):
        if part.isdecimal():
            return _Layer(".".join(parts[:depth]), int(part))
    return None


def _below(path: str, layer: str) -> str:
    """`mlp.up_proj` of `model.layers.3.mlp.up_proj`, `:add` of `model.layers.3:add`."""
    return path.removeprefix(layer).removeprefix(".")


def _relative_key(key: Key, layer: _Layer) -> Key:
    return tuple([relative(each, layer.stack, layer.number) for each in key])


def relative(value: Hashable, stack: str, index: int) -> Hashable:
    """A text with the paths of a layer's stack relative to the layer.

    In layer 3, `model.layers.3.mlp:mul` is `mlp:mul` and `model.layers.2:add` is
    `previous layer:add`. A stack whose name has words before it is that of its last word.
    """
    stack = stack.rpartition(" ")[2]
    if not isinstance(value, str) or not stack or stack not in value:
        return value

    def offset(found: re.Match[str]) -> str:
        by = int(found[1]) - index
        if by == 0:
            return ""
        return ("previous layer" if by == -1 else f"layer {by:+d}") + found[2]

    return re.sub(rf"(?<![\w.]){re.escape(stack)}\.(\d+)(\.|(?=[:,]|$))", offset, value)
