"""How unlike two modules are, for an alignment of two models: 0 for equal ones, below 2 for others.

Leaving out one module and inserting the other costs 2, so two modules correspond if what they have
in common is cheaper to keep.
"""

import re
from difflib import SequenceMatcher
from functools import lru_cache

from llmsim_magic.analyses.structure.module_tree import ModuleNode
from llmsim_magic.records.trace.trace import numel

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_DIMENSIONS = re.compile(r"\d+[dD]?$")
_OTHER_NAME = 0.1
_OTHER_ATTRIBUTE = 0.02
_MOST_ATTRIBUTES = 10  # differences in attributes that count


def renaming_cost(first: ModuleNode, second: ModuleNode) -> float:
    """What differs between two modules themselves, their names aside."""
    costs = [_weight_cost(first, second), _attribute_cost(first, second)]
    if first.type != second.type:
        costs.append(0.5 if is_same_kind(first, second) else 1.0)
    return sum(costs)


def place_cost(first: ModuleNode, second: ModuleNode) -> float:
    """What differs in their names, which a model itself does not have, or the number of layers."""
    if first.is_layer and second.is_layer:
        few, many = sorted((len(first.place.indices), len(second.place.indices)))
        return _OTHER_NAME * (1 - few / many) / 2
    has_names = first.name and second.name
    return _OTHER_NAME * _name_distance(first.name, second.name) if has_names else 0.0


def may_correspond(first: ModuleNode, second: ModuleNode) -> bool:
    """Whether there is a reason to compare two modules, apart from what is below them.

    They have the same name, are both layers, are of one kind, or have the same weights. Of one kind
    are classes whose names end with one word, if both modules have weights or neither has.
    """
    if first.is_layer or second.is_layer:
        return first.is_layer and second.is_layer
    if first.name == second.name or (first.shapes and first.shapes == second.shapes):
        return True
    return bool(first.shapes) == bool(second.shapes) and is_same_kind(first, second)


def is_same_kind(first: ModuleNode, second: ModuleNode) -> bool:
    """Whether their classes are equal or end with one word: `LayerNorm`, `Qwen3RMSNorm`."""
    return first.type == second.type or _last_word(first.type) == _last_word(second.type)


@lru_cache(maxsize=4096)
def _name_distance(first: str, second: str) -> float:
    """0 for equal names, 1 for names without a common letter."""
    return 1 - SequenceMatcher(None, first, second, autojunk=False).ratio()


def _last_word(name: str) -> str:
    words: list[str] = _WORD.findall(_DIMENSIONS.sub("", name))
    return words[-1].lower() if words else name


def _weight_cost(first: ModuleNode, second: ModuleNode) -> float:
    if first.shapes == second.shapes:
        return 0.0
    sizes = sorted((_elements(first), _elements(second)))
    return 0.5 + 0.25 * (1 - sizes[0] / sizes[1]) if sizes[1] else 0.5


def _elements(node: ModuleNode) -> int:
    return sum(map(numel, node.shapes.values()))


def _attribute_cost(first: ModuleNode, second: ModuleNode) -> float:
    common = first.attributes.keys() & second.attributes.keys()
    differing = sum(first.attributes[name] != second.attributes[name] for name in common)
    return _OTHER_ATTRIBUTE * min(differing, _MOST_ATTRIBUTES)
