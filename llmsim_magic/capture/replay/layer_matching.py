"""Find the layers of a model that are built equally, the first condition for a replay."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch

from llmsim_magic.capture.kernels.tensors import values_in

_WITHOUT_FORWARD = (torch.nn.ModuleList, torch.nn.ModuleDict)
_INDEX = re.compile(r"(idx|index|id|number)$")
_MODULE_ATTRIBUTES = frozenset(vars(torch.nn.Module())) | {"forward"}
_PLAIN = (int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device)
_MAX_DEPTH = 4


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """An element of a `ModuleList` with at least one equal element; equal ones share a `kind`.

    `number` is the value of its index attribute, or its index in the list.
    """

    path: str
    module: torch.nn.Module
    number: int
    kind: int


def matched_layers(model: torch.nn.Module) -> dict[str, Layer]:
    """Find the outermost layers that have an equal layer in the same `ModuleList`.

    Equal layers have the same classes, shapes, dtypes and attributes in all submodules. The layer
    index is ignored in classes of transformers, where it only selects the layer's cache. A layer
    without an equal is searched for nested layers.

    Args:
        model: The model on the meta device.

    Returns:
        The layers by path.
    """
    names = _names(model)
    found: dict[str, Layer] = {}
    kinds: dict[Any, int] = {}

    def search(path: str, module: torch.nn.Module) -> None:
        elements = list(module) if type(module) is torch.nn.ModuleList else []
        descriptions = _descriptions(elements, path, names)
        counts = Counter(map(_key, descriptions))
        for name, child in module.named_children():
            below = f"{path}.{name}" if path else name
            if elements and not isinstance(child, _WITHOUT_FORWARD):
                place = int(name)
                key = _key(descriptions[place])
                if counts[key] > 1:
                    kind = kinds.setdefault((path, key), len(kinds))
                    found[below] = Layer(below, child, _number(child, place), kind)
                    continue
            search(below, child)

    search("", model)
    return found


Facts = dict[str, Any]


class _Index(int):
    """An integer attribute that may be the index of its layer."""


def _key(facts: Facts) -> Any:
    return tuple(facts.items())


def _names(model: torch.nn.Module) -> dict[int, str]:
    """The first name of every module, parameter and buffer, which the record uses, by id."""
    found: dict[int, str] = {}
    for path, module in model.named_modules():
        found[id(module)] = path
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            found.setdefault(id(tensor), f"{path}.{name}")
    return found


def _descriptions(
    elements: list[torch.nn.Module], path: str, names: Mapping[int, str]
) -> list[Facts]:
    """The facts about each element of a list, without its index."""
    found = []
    for place, element in enumerate(elements):
        facts = dict(_facts(element, f"{path}.{place}" if path else str(place), names))
        found.append(facts | _config_facts(element, place, len(elements)))
    for name in dict.fromkeys(name for facts in found for name in facts):
        offsets = {
            facts[name] - place if isinstance(facts[name], _Index) else None
            for place, facts in enumerate(found)
            if name in facts
        }
        if len(offsets) == 1 and None not in offsets:
            for facts in found:
                if name in facts:
                    facts[name] = "its index"
    return found


def _facts(
    element: torch.nn.Module, home: str, names: Mapping[int, str]
) -> Iterator[tuple[str, Any]]:
    """Yield everything that can distinguish two elements, by path and name inside them."""
    parts = dict(element.named_modules())
    homes = {id(part): path for path, part in parts.items()}
    for path, part in parts.items():
        here = f"{home}.{path}" if path else home
        children = [(name, homes.get(id(child))) for name, child in part._modules.items()]
        yield path, (type(part), _shared(part, here, names), tuple(children))
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            shared = _shared(tensor, f"{here}.{name}", names)
            yield f"{path}.{name}", (_tensor(tensor), shared)
        counts = type(part).__module__.startswith("transformers.")
        for name, value in vars(part).items():
            if name not in _MODULE_ATTRIBUTES:
                may_count = counts and type(value) is int and _INDEX.search(name)
                fact = _fact(value, homes)
                yield f"{path}.{name}", _Index(value) if may_count else fact


def _shared(value: Any, here: str, names: Mapping[int, str]) -> str | None:
    """The first name of a shared module or tensor; None if it is not shared."""
    name = None if value is None else names[id(value)]
    return None if name == here else name


def _tensor(tensor: torch.Tensor | None) -> Any:
    if tensor is None:
        return None
    values = None if tensor.is_meta else values_in(tensor)
    return (tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.requires_grad, values)


def _fact(value: Any, homes: Mapping[int, str], depth: int = 0) -> Any:
    """A key that is equal for the corresponding value of an equal layer, and for no other."""
    if type(value) in (int, str, bool):
        return value
    if isinstance(value, _PLAIN):
        return (type(value), value)
    if id(value) in homes:
        return ("module", homes[id(value)])
    again = partial(_fact, homes=homes, depth=depth + 1)
    if depth > _MAX_DEPTH or isinstance(value, (torch.Tensor, FunctionType, type)):
        return id(value)
    if isinstance(value, (tuple, list)):
        return (type(value), tuple(map(again, value)))
    if isinstance(value, Mapping):
        return (type(value), tuple((key, again(item)) for key, item in value.items()))
    if isinstance(value, MethodType):
        return (value.__func__, again(value.__self__))
    if isinstance(value, partial):
        return (value.func, again(value.args), again(value.keywords))
    return id(value)


def _config_facts(element: torch.nn.Module, place: int, number: int) -> Facts:
    """The layer's items in those lists of its configs that have one item per layer."""
    configs = {
        id(config): config
        for part in element.modules()
        if hasattr(config := getattr(part, "config", None), "to_dict")
    }
    return {
        f"config.{which}.{name}": repr(value[place])
        for which, config in enumerate(configs.values())
        for name, value in vars(config).items()
        if isinstance(value, (tuple, list)) and len(value) == number
    }


def _number(element: torch.nn.Module, place: int) -> int:
    """The index under which a layer keeps its cache."""
    for part in element.modules():
        number = vars(part).get("layer_idx", vars(part).get("layer_id"))
        if type(number) is int:
            return number
    return place
