"""Find the layers of a model that are built equally, the first condition for a replay."""

import inspect
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch

from llmsim_magic.capture.kernels.tensors import values_in

_WITHOUT_FORWARD = (torch.nn.ModuleList, torch.nn.ModuleDict)
INDEX = re.compile(r"(idx|index|id|number)$")
_MODULE_ATTRIBUTES = frozenset(vars(torch.nn.Module()))
_PLAIN = (int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device)
_MAX_DEPTH = 4
# Of whose classes the forward uses a layer's index to select its cache, and no module's path.
_LIBRARIES = ("transformers.", "peft.", "llmsim_magic.")


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """An element of a `ModuleList` with at least one equal element; equal ones share a `kind`.

    `numbers` are the indices under which it keeps its part of the state: the values of its index
    attributes, or its index in the list. `arguments` are the names of its forward's arguments, None
    if none of those may be such an index.
    """

    path: str
    module: torch.nn.Module
    numbers: tuple[int, ...]
    kind: int
    arguments: tuple[str, ...] | None


def matched_layers(model: torch.nn.Module) -> dict[str, Layer]:
    """Find the outermost layers that have an equal layer in the same `ModuleList`.

    Equal layers have the same classes, shapes, dtypes and attributes in all submodules. In classes
    of transformers and peft the layer index is ignored, which only selects the layer's cache, and
    so is a module's own path. A layer without an equal is searched for nested layers.

    Args:
        model: The model on the meta device.

    Returns:
        The layers by path.
    """
    names, uses = _names(model), _uses(model)
    found: dict[str, Layer] = {}
    kinds: dict[Any, int] = {}

    def search(path: str, module: torch.nn.Module) -> None:
        elements = list(module) if type(module) is torch.nn.ModuleList else []
        descriptions = _descriptions(elements, path, names)
        counts = Counter(map(_key, descriptions))
        numbers = _numbers(elements)
        for name, child in module.named_children():
            below = f"{path}.{name}" if path else name
            if elements and not isinstance(child, _WITHOUT_FORWARD):
                place = int(name)
                key = _key(descriptions[place])
                if counts[key] > 1:
                    kind = kinds.setdefault((path, key), len(kinds))
                    arguments = _arguments(child, uses)
                    found[below] = Layer(below, child, numbers[place], kind, arguments)
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
    elements: Sequence[torch.nn.Module | None], path: str, names: Mapping[int, str]
) -> list[Facts]:
    """The facts about each element of a list, without its index; none about a gap."""
    found: list[Facts] = []
    for place, element in enumerate(elements):
        if element is None:
            found.append({})
            continue
        facts = dict(_facts(element, f"{path}.{place}" if path else str(place), names))
        found.append(facts | _config_facts(element, place, len(elements)))
    indices = _index_names(found)
    return [
        {name: "its index" if name in indices else fact for name, fact in facts.items()}
        for facts in found
    ]


def _index_names(found: list[Facts]) -> set[str]:
    """The names of the facts that only count the elements.

    The values rise by one from element to element. They may also rise by the number of layer
    indices that each element has for itself: two, where an element holds two attention layers.
    """
    offsets: dict[str, tuple[int, int]] = {}
    for name in dict.fromkeys(name for facts in found for name in facts):
        values = {place: facts[name] for place, facts in enumerate(found) if name in facts}
        if all(isinstance(value, _Index) for value in values.values()):
            line = _line(values)
            if line is not None:
                offsets[name] = line
    counted = {name for name, (step, _) in offsets.items() if step == 1}
    for step in {step for step, _ in offsets.values()} - {1}:
        names = {name for name, (rise, _) in offsets.items() if rise == step}
        starts = {offsets[name][1] for name in names}
        if starts == set(range(min(starts), min(starts) + step)):
            counted |= names
    return counted


def _line(values: Mapping[int, int]) -> tuple[int, int] | None:
    """Step and start of `value = step · place + start`, the step at least 1; None otherwise."""
    (first, low), *others = values.items()
    if not others:
        return 1, low - first
    last, high = others[-1]
    step, remainder = divmod(high - low, last - first)
    start = low - step * first
    fits = not remainder and all(value == step * place + start for place, value in values.items())
    return (step, start) if step >= 1 and fits else None


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
        is_of_library = type(part).__module__.startswith(_LIBRARIES)
        for name, value in vars(part).items():
            if name not in _MODULE_ATTRIBUTES:
                may_count = is_of_library and type(value) is int and INDEX.search(name)
                fact = _fact(value, homes, home if is_of_library else "")
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


def _fact(value: Any, homes: Mapping[int, str], layer: str, depth: int = 0) -> Any:
    """A key that is equal for the corresponding value of an equal layer, and for no other.

    `layer` is the path of the layer, if the value may be a path in it; else empty.
    """
    if type(value) is str and layer and (inside := _path_inside(value, layer)) is not None:
        return inside
    if type(value) in (int, str, bool):
        return value
    if isinstance(value, _PLAIN):
        return (type(value), value)
    if id(value) in homes:
        return ("module", homes[id(value)])
    again = partial(_fact, homes=homes, layer=layer, depth=depth + 1)
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
    return type(value) if _is_stateless(value) else id(value)


def _path_inside(value: str, layer: str) -> Any:
    """A path of something in a layer, as that inside the layer; None if it is none.

    A part of the model may have been given it, as `layers.3.mlp` of `model.layers.3.mlp`.
    """
    parts, names = value.split("."), layer.split(".")
    for length in range(min(len(parts), len(names)), 1, -1):
        if parts[:length] == names[-length:]:
            return ("in its layer", length, tuple(parts[length:]))
    return None


def _is_stateless(value: Any) -> bool:
    """Whether a value is an object of a library without attributes, such as a kind of adapter."""
    is_of_library = type(value).__module__.startswith(_LIBRARIES)
    return is_of_library and getattr(value, "__dict__", None) == {}


def _arguments(layer: torch.nn.Module, uses: Counter[int]) -> tuple[str, ...] | None:
    """The names of the arguments of a forward; None if none may be the index of its layer.

    As with attributes, they only select the cache in classes of transformers. But a layer that
    shares a part with others may choose by its index what it uses of that part.
    """
    kind = type(layer)
    if not kind.__module__.startswith("transformers.") or _shares_parts(layer, uses):
        return None
    return tuple(inspect.signature(kind.forward).parameters)[1:]


def _shares_parts(layer: torch.nn.Module, uses: Counter[int]) -> bool:
    """Whether a module or tensor of a layer also stands elsewhere in the model."""
    return any(uses[part] != number for part, number in _uses(layer).items())


def _uses(module: torch.nn.Module) -> Counter[int]:
    """How often each module, parameter and buffer stands in a module, by id."""
    found: Counter[int] = Counter()
    for _, part in module.named_modules(remove_duplicate=False):
        tensors = (*part._parameters.values(), *part._buffers.values())
        found.update(id(each) for each in (part, *tensors) if each is not None)
    return found


def _config_facts(element: torch.nn.Module, place: int, number: int) -> Facts:
    """The layer's items in those lists of its configs that have one item per layer.

    A list of all layers' indices, such as that of the layers that are mixtures of experts, has as
    many items. Two layers are too few to tell such a list from one of flags.
    """
    configs = {
        id(config): config
        for part in element.modules()
        if hasattr(config := getattr(part, "config", None), "to_dict")
    }
    return {
        f"config.{which}.{name}": (
            _Index(value[place]) if type(value[place]) is int and number > 2 else repr(value[place])
        )
        for which, config in enumerate(configs.values())
        for name, value in vars(config).items()
        if isinstance(value, (tuple, list)) and len(value) == number
    }


def _numbers(elements: Sequence[torch.nn.Module | None]) -> list[tuple[int, ...]]:
    """The indices under which each layer keeps its part of the state; none for a gap."""
    found = [
        () if element is None else _indices(element) or (place,)
        for place, element in enumerate(elements)
    ]
    counts = Counter(number for numbers in found for number in numbers)
    is_shared = any(count > 1 for count in counts.values())
    return [numbers[:1] for numbers in found] if is_shared else found


def _indices(element: torch.nn.Module) -> tuple[int, ...]:
    """The index attributes of the innermost modules that have one, each value once."""
    found: dict[str, int] = {}
    for path, part in element.named_modules():
        number = vars(part).get("layer_idx", vars(part).get("layer_id"))
        if type(number) is int:
            outer = {"", *(path[:end] for end, sign in enumerate(path) if sign == ".")}
            for each in outer - {path}:
                found.pop(each, None)
            found[path] = number
    return tuple(dict.fromkeys(found.values()))
