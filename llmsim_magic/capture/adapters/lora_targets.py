"""The modules of a model that an adapter can be added to, and the errors that name them."""

import importlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from torch import nn

from llmsim_magic.records.errors import InvalidValue, clip, shorten
from llmsim_magic.records.spelling import likeness
from llmsim_magic.records.trace.lora import ALL_LINEAR

_KINDS: Mapping[str, tuple[type[nn.Module], ...]] = {
    "linear layers": (nn.Linear,),
    "embeddings": (nn.Embedding,),
    "convolutions": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    "attention": (nn.MultiheadAttention,),
}
_LINEAR = next(iter(_KINDS))
# In a message: names of each kind, and characters of all of them, which leave room for the rest.
_MAX_NAMES = 16
_MAX_LENGTH = 280
_MAX_NEAREST = 3
_ALIKE = 0.5  # similarity of a name that is suggested


def check_targets(model: nn.Module, names: Iterable[str]) -> None:
    """Raise `InvalidValue` for names that no adapted or adaptable module has."""
    kinds = dict(_adaptable(model))
    wrong = [name for name in names if name != ALL_LINEAR and not _has(kinds, name)]
    if not wrong:
        return
    name = wrong[0]
    found = next((part for path, part in model.named_modules() if _is_named(path, name)), None)
    if found is not None:
        fault = f"target {shorten(name)} is a {clip(type(found).__name__, 40)}"
    else:
        fault = f"no module of the model is named {' or '.join(map(_quoted, wrong[:4]))}"
    near = _nearest(name, kinds)
    meant = f"did you mean {' or '.join(near)}? Targets" if near else "targets"
    legal = f"are {ALL_LINEAR}, or names of its {_names_by_kind(kinds)}"
    if not kinds:
        raise InvalidValue(f"lora: {fault}; the model has no {', '.join(_KINDS)} to adapt")
    raise InvalidValue(f"lora: {fault}; {meant} {legal}")


def named_targets(model: nn.Module) -> str:
    """The names of a model's adaptable modules by kind, as an error lists them; empty if none."""
    kinds = dict(_adaptable(model))
    return f"; name targets among its {_names_by_kind(kinds)}" if kinds else ""


def _quoted(name: str) -> str:
    return shorten(name, 40)


def _has(paths: Iterable[str], name: str) -> bool:
    return any(_is_named(path, name) for path in paths)


def _is_named(path: str, name: str) -> bool:
    """Whether peft finds a module by a name: its path, or the end of it."""
    return path == name or path.endswith(f".{name}")


def _adaptable(model: nn.Module) -> Iterator[tuple[str, str]]:
    """The modules that peft adapts, by path, with their kind.

    Those that it has adapted have their former path.
    """
    conv1d = importlib.import_module("transformers.pytorch_utils").Conv1D
    for path, part in model.named_modules():
        if any(each in path for each in (".lora_A.", ".lora_B.")):
            continue
        former = path.removesuffix(".base_layer")
        kind = next((kind for kind, types in _KINDS.items() if isinstance(part, types)), None)
        if kind is not None or isinstance(part, conv1d):
            yield former, kind or _LINEAR


def _nearest(name: str, paths: Iterable[str]) -> list[str]:
    """The names most like one, at most as many parts of a path long."""
    count = name.count(".") + 1
    scores = {end: _alike(name, end) for end in (_end(path, count) for path in paths)}
    best = sorted(scores, key=lambda end: -scores[end])[:_MAX_NEAREST]
    return [clip(end, 60) for end in best if scores[end] >= _ALIKE]


def _alike(name: str, end: str) -> float:
    """From 0 to 1; the last parts of two paths weigh twice as much as those before."""
    before, _, last = name.rpartition(".")
    other_before, _, other_last = end.rpartition(".")
    of_last = likeness(last, other_last)
    return (2 * of_last + likeness(before, other_before)) / 3 if before else of_last


def _end(path: str, count: int) -> str:
    """The last parts of a path, from the index of a layer on."""
    parts = path.split(".")[-count:]
    while len(parts) > 1 and parts[0].isdecimal():
        parts = parts[1:]
    return ".".join(parts)


def _names_by_kind(kinds: Mapping[str, str]) -> str:
    """`linear layers q_proj, k_proj and 3 more; embeddings wte`: the most frequent names first."""
    found = {kind: Counter[str]() for kind in _KINDS}
    for path, kind in kinds.items():
        found[kind][_short_name(path)] += 1
    shown, length = [], 0
    for kind, counts in found.items():
        names = [clip(name, 40) for name, _ in counts.most_common(_MAX_NAMES)]
        while len(names) > 1 and length + len(", ".join(names)) > _MAX_LENGTH:
            names.pop()
        more = f" and {len(counts) - len(names)} more" if len(names) < len(counts) else ""
        if names:
            shown.append(f"{kind} {', '.join(names)}{more}")
            length += len(shown[-1])
    return "; ".join(shown)


def _short_name(path: str) -> str:
    """The last name of a path; where that is an index, the last two."""
    parts = path.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdecimal() else parts[-1]
