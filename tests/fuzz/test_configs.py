"""Real configs with some keys changed give a correct report or a one-line error."""

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

import llmsim_magic as llmsim
from llmsim_magic.capture.configs.config_sanitizer import sanitized
from llmsim_magic.catalog import models
from llmsim_magic.simulate.report import Report
from tests.helpers.bad_values import anything
from tests.helpers.outcomes import TimedOut, check_outcome, resource_limits
from tests.helpers.reduced_configs import shallower, with_small_vocabulary

MODELS = 30
MISSING, DEEP = "@missing@", "@deep@"  # marks for what is no value: no key, 10,000 lists in another
_NESTED = "[" * 10_000 + "]" * 10_000
Path_ = tuple[str | int, ...]
COMMON = (  # keys that any config may have
    *(key for key in transformers.PretrainedConfig().to_dict() if key != "transformers_version"),
    *("num_labels", "torch_dtype", "attn_implementation", "_attn_implementation", "auto_map"),
    *("quantization_config", "layer_types", "rope_scaling", "rope_parameters", "sliding_window"),
    *("text_config", "vision_config", "torchscript", "tie_word_embeddings", "head_dim"),
)


@dataclass(frozen=True)
class Case:
    """A model of the catalogue, what is changed in its config, and how it is asked for."""

    model: str
    is_whole: bool
    is_file: bool
    phase: str
    changes: tuple[tuple[Path_, Any], ...]

    @property
    def keys(self) -> dict[str, Any]:
        keys = copy.deepcopy(_keys(self.model, self.is_whole))
        for path, value in self.changes:
            _change(keys, path, value)
        return keys


@cache
def chosen() -> tuple[str, ...]:
    """A model of each architecture, the first in the catalogue."""
    first: dict[str, str] = {}
    for name, entry in models.entries().items():
        first.setdefault(entry.config["model_type"], name)
    return tuple(first.values())[:MODELS]


@cache
def _keys(model: str, is_whole: bool) -> dict[str, Any]:
    keys = models.entries()[model].config
    return keys if is_whole else with_small_vocabulary(shallower(keys))


@cache
def _paths(model: str) -> tuple[Path_, ...]:
    return tuple(_within(models.entries()[model].config))


def _within(part: Any, path: Path_ = ()) -> Iterator[Path_]:
    """The way to each value of a config, and to the first of each list."""
    if path:
        yield path
    if isinstance(part, list):
        part = dict(enumerate(part[:1]))
    for key, value in part.items() if isinstance(part, dict) else ():
        yield from _within(value, (*path, key))


def _at(keys: Any, path: Path_) -> Any:
    for key in path:
        keys = keys[key]
    return keys


def _change(keys: Any, path: Path_, value: Any) -> None:
    """Where another change took away what the path leads through, nothing is left to change."""
    try:
        around = _at(keys, path[:-1])
        if value == MISSING:
            del around[path[-1]]
        else:
            around[path[-1]] = value
    except (KeyError, IndexError, TypeError):
        return


def _twisted(value: Any) -> Iterator[Any]:
    """Values like one that is right."""
    yield from (None, MISSING, DEEP, str(value), [value], [value] * 3, {"key": value})
    if isinstance(value, (int, float)):
        yield from (-value, value + 1, value * 2, value * 10**6, value / 2, float(value))
    if isinstance(value, list):
        yield from (value * 2, value[1:], value[0] if value else 0, dict.fromkeys(map(str, value)))
    if isinstance(value, str):
        yield from (value.upper(), value + "\n", value[:-1], list(value))


@st.composite
def changes(draw: st.DrawFn, model: str) -> tuple[Path_, Any]:
    if draw(st.sampled_from((*[False] * 5, True))):
        return (draw(st.sampled_from(COMMON) | st.text(max_size=20)),), draw(anything)
    path = draw(st.sampled_from(_paths(model)))
    twisted = tuple(_twisted(_at(models.entries()[model].config, path)))
    return path, draw(st.sampled_from(twisted) | anything)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    model = draw(st.sampled_from(chosen()))
    return Case(
        model,
        draw(st.sampled_from((*[False] * 19, True))),
        draw(st.sampled_from((True, True, True, False))),
        draw(st.sampled_from(("prefill", "prefill", "decode", "train"))),
        tuple(draw(st.lists(changes(model), min_size=1, max_size=2))),
    )


@pytest.mark.slow
@given(cases())
def test_a_changed_config_ends_in_a_right_report_or_one_line(case: Case) -> None:
    keys = case.keys
    with TemporaryDirectory(prefix="fuzz") as folder:
        (Path(folder) / "config.json").write_text(
            json.dumps(keys).replace(json.dumps(DEEP), _NESTED)
        )
        model = folder if case.is_file else _object(case)
        answer = check_outcome(lambda: llmsim.trace(model, phase=case.phase, context=8))
    llmsim.forget()
    if isinstance(answer, Report):
        try:
            with resource_limits():  # transformers itself may take all memory for what we answer
                made = _parameters(answer, model, keys)
        except (MemoryError, TimedOut):
            return
        assert answer.summary.loc["parameters", "value"] == made


def _object(case: Case) -> Any:
    """A config object to which the same was done, as far as its class lets it."""
    whole = _keys(case.model, case.is_whole)
    config = transformers.CONFIG_MAPPING[whole["model_type"]].from_dict(copy.deepcopy(whole))
    for path, value in case.changes:
        part = config
        try:
            for key in path[:-1]:
                part = part[key] if isinstance(part, (dict, list)) else getattr(part, str(key))
            if isinstance(part, (dict, list)):
                _change(part, path[-1:], value)
            elif value == MISSING:
                delattr(part, str(path[-1]))
            else:
                setattr(part, str(path[-1]), value)
        except Exception:
            continue
    return config


def _parameters(answer: Report, model: Any, keys: dict[str, Any]) -> int:
    """How many transformers itself makes of the config."""
    config = copy.deepcopy(model)
    if isinstance(model, str):
        config_class = getattr(transformers, answer.trace.model.class_name).config_class
        config = config_class.from_dict(copy.deepcopy(keys))
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    sanitized(config, "", trust_remote_code=False)  # its attention has no parameters
    with torch.device("meta"):
        built = getattr(transformers, answer.trace.model.class_name)._from_config(config)
    return sum(parameter.numel() for parameter in built.parameters())
