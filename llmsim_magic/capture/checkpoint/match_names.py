"""Match the names in a checkpoint's `quantization_config` with parameters of the built model."""

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import translate
from typing import Any

import torch

from llmsim_magic.capture.checkpoint.checkpoint_names import CheckpointNames
from llmsim_magic.records.errors import clip, shorten
from llmsim_magic.records.trace.quantization_config import KEPT_BY_DEFAULT, module_names

_REGEX_ONLY = re.compile(r"\.\*|[\\^$+|()]")
_MAX_NAMED = 4


def match_parameters(
    module: torch.nn.Module, quantization: Mapping[str, Any]
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Return the parameters that each name in a `quantization_config` matches.

    A name is a path, a part of one, a pattern with `*`, or a regular expression (`re:`). It is
    compared with the paths of the built model and with those of checkpoints that its class loads.
    Where no path matches, it is the name of a class, or of one that a class inherits from, and
    matches the weights that its modules hold themselves.

    Args:
        module: The model as built.
        quantization: The `quantization_config`.

    Returns:
        For each name, the paths of the parameters of two or more dimensions that it matches, and
        notes for the report: one if some names match no module, none if all do.
    """
    names = module_names(quantization)
    if not names:
        return {}, []
    checkpoint = CheckpointNames(module)
    paths = {
        name: _module_paths(checkpoint.in_checkpoints(name))
        for name, _ in module.named_parameters(remove_duplicate=False)
    }
    matrices = {name for name, parameter in module.named_parameters() if parameter.dim() > 1}
    modules = {path for path, _ in module.named_modules()}
    weights_by_class = _weights_by_class(module)
    matched: dict[str, tuple[str, ...]] = {}
    unmatched = []
    for name in names:
        if name == KEPT_BY_DEFAULT:
            matched[name] = tuple(each for each in _kept_by_default(module) if each in matrices)
            continue
        matches = _matcher(name)
        found = [each for each, aliases in paths.items() if any(map(matches, aliases))]
        if not found:
            current = checkpoint.in_model(f"{name}.weight")
            found = [each for each in paths if each in (current, current.removesuffix(".weight"))]
        if not found:
            found = weights_by_class.get(name, [])
        if quantizable := tuple(each for each in found if each in matrices):
            matched[name] = quantizable
        if not found and name not in weights_by_class and not any(map(matches, modules)):
            unmatched.append(name)
    return matched, _note(unmatched)


def _kept_by_default(module: torch.nn.Module) -> list[str]:
    """The weights of the head and of the last module, as `get_keys_to_not_convert` has them."""
    head = None
    with contextlib.suppress(Exception):  # a class without embeddings
        head = module.get_output_embeddings()  # type: ignore[operator]
    paths = [path for path, part in module.named_modules() if head is not None and part is head]
    last = [name for name, _ in module.named_parameters()][-1:]
    return [*(f"{path}.weight" for path in paths), *last]


def _weights_by_class(module: torch.nn.Module) -> dict[str, list[str]]:
    """The weights of all modules by the names of their classes; a class may have none."""
    found: dict[str, list[str]] = {}
    for path, part in module.named_modules():
        has_weight = isinstance(getattr(part, "weight", None), torch.nn.Parameter)
        for each in type(part).__mro__:
            names = found.setdefault(each.__name__, [])
            if has_weight:
                names.append(f"{path}.weight".removeprefix("."))
    return found


def _module_paths(names: Iterable[str]) -> set[str]:
    """Paths of a parameter's module: its names without `.weight`; other parameters' whole names."""
    return {name.removesuffix(".weight").removesuffix(".base_layer") for name in names}


def _matcher(name: str) -> Callable[[str], bool]:
    """Return a test of whether a module's path matches a name, or is inside of a match."""
    text = re.sub(r"^[+-]:", "", name)  # GPTQModel marks regular expressions so
    if text != name or text.startswith("re:"):
        return _regex(text.removeprefix("re:"))
    patterns = []
    if any(character in text for character in "*?["):
        patterns.append(_glob(text))
    if _REGEX_ONLY.search(text):
        patterns.append(_regex(rf"({text})(\.|$)"))
    if patterns:
        return lambda path: any(pattern(path) for pattern in patterns)
    return lambda path: f".{text}." in f".{path}."


def _glob(text: str) -> Callable[[str], bool]:
    matches = re.compile(translate(text)).match

    def is_inside(path: str) -> bool:
        parts = path.split(".")
        return any(matches(".".join(parts[: end + 1])) for end in range(len(parts)))

    return is_inside


def _regex(text: str) -> Callable[[str], bool]:
    try:
        compiled = re.compile(text)
    except re.error:  # matches nothing, which the note says
        return lambda _: False
    return lambda path: compiled.match(path) is not None


def _note(names: list[str]) -> list[str]:
    if not names:
        return []
    named = ", ".join(shorten(name) for name in names[:_MAX_NAMED])
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return [clip(f"quantization_config names no module of this model: {named}{more}", 300)]
