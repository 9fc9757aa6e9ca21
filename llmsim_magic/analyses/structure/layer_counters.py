"""Attributes that number the layers of a model, such as `layer_idx`."""

from collections.abc import Iterator
from dataclasses import dataclass

from llmsim_magic.analyses.graph.layers import list_paths
from llmsim_magic.records.trace.trace import Scalar, Trace

_FEWEST = 3  # layers whose values show a counter that does not begin at 0, or a schedule


def layer_counters(trace: Trace) -> dict[str, frozenset[str]]:
    """The names of the attributes that only number the layers, by the path of their module.

    They differ between layers that are otherwise identical. An attribute numbers the layers of a
    list if it is the index of the layer plus a constant: in each of three layers, or in two without
    the constant. So does one of the same name elsewhere, with fewer layers. A real number that is
    different in each of three or more layers, such as a dropout rate that grows with the depth,
    also follows from the index.
    """
    series = list(_all_series(trace))
    names = {each.name for each in series if each.is_counter}
    found: dict[str, set[str]] = {}
    for each in series:
        if each.is_counter or each.is_schedule or (each.name in names and each.has_one_offset):
            for path in each.paths:
                found.setdefault(path, set()).add(each.name)
    return {path: frozenset(names) for path, names in found.items()}


@dataclass(frozen=True, slots=True)
class _Series:
    """The values of one attribute in the layers of one list, with their indices."""

    name: str
    paths: list[str]
    indices: list[int]
    values: list[Scalar]

    @property
    def has_one_offset(self) -> bool:
        """Whether each value is an integer, the index plus the same constant."""
        return all(type(value) is int for value in self.values) and len(self._offsets) == 1

    @property
    def is_counter(self) -> bool:
        many = len(self.values) >= _FEWEST
        return self.has_one_offset and (many or (len(self.values) == 2 and 0 in self._offsets))

    @property
    def is_schedule(self) -> bool:
        """Whether each value is a real number that no other layer has."""
        values = {value for value in self.values if type(value) is float}
        return len(values) == len(self.values) >= _FEWEST

    @property
    def _offsets(self) -> set[int]:
        pairs = zip(self.values, self.indices, strict=True)
        return {value - index for value, index in pairs if type(value) is int}


def _all_series(trace: Trace) -> Iterator[_Series]:
    """The numbers among the attributes, by list, place in the layer and name."""
    lists = list_paths(trace)
    found: dict[tuple[str, str, str], _Series] = {}
    for module in trace.modules:
        numbers = {
            name: value for name, value in module.attributes.items() if type(value) in (int, float)
        }
        if not numbers:
            continue
        parts = module.path.split(".")
        for depth, part in enumerate(parts):
            stack = ".".join(parts[:depth])
            if not part.isdecimal() or stack not in lists:
                continue
            below = ".".join(parts[depth + 1 :])
            for name, value in numbers.items():
                key = (stack, below, name)
                if key not in found:
                    found[key] = _Series(name, [], [], [])
                found[key].paths.append(module.path)
                found[key].indices.append(int(part))
                found[key].values.append(value)
    yield from found.values()
