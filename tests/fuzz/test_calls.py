"""trace(), sweep() and size() with random keywords give an answer or a one-line error."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

import llmsim_magic as llmsim
from tests.helpers import small_models
from tests.helpers.bad_values import NUMBERS, TEXTS, anything, odd, real
from tests.helpers.outcomes import check_outcome

MODELS: dict[str, Callable[[], Any]] = {
    "a name": lambda: "distilgpt2",
    "decoder": small_models.qwen3,
    "experts": small_models.mixtral,
    "encoder": small_models.bert,
    "live": lambda: transformers.AutoModelForCausalLM.from_config(small_models.gpt2()),
    "linear": lambda: torch.nn.Linear(4, 4),
}
_flags = st.booleans()
_sizes = st.sampled_from((1, 2, 3, 16, 128))
_some_sizes = _sizes | st.lists(_sizes, max_size=2)
_phases = st.sampled_from(("prefill", "decode", "train"))
_dtypes = st.sampled_from(("bfloat16", "fp16", "float32", torch.float16, None))
_parts = st.sampled_from((1, 1, 1, 2))
_names = st.sampled_from(("H100", "A100,L40S", ["H100", "MI300X"], "all", "TPU v5e", ()))
_stored = st.sampled_from(("int8", "fp8", "bf16", "bfloat16", None))
_BUILT = {
    "dtype": _dtypes,
    "attn": st.sampled_from(("sdpa", "eager", None)),
    "base": _flags,
    "replay": _flags,
}
_DEPLOYED = {
    "hardware": _names,
    "weight_dtype": _stored,
    "kv_dtype": _stored,
    "launch": st.sampled_from(("graph", "eager")),
    "tp": _parts,
    "pp": _parts,
    "ep": _parts,
}
_TRAINING = {
    "optimizer": st.sampled_from(("adamw", "sgd", "adafactor", "adamw_8bit", "lion", "muon")),
    "precision": st.sampled_from(("bf16", "fp32", "amp", None)),
    "checkpointing": _flags,
    "lora": st.sampled_from(("r=4", "r=8,targets=all-linear", "r=2,targets=q_proj", None)),
    "qlora": _flags,
    "accumulate": _parts,
    "packed": _flags,
    "zero": st.sampled_from((0, 1, 2, 3)),
    "dp": _parts,
}
_INPUTS: st.SearchStrategy[Any] = st.sampled_from(
    [torch.ones(2, 4), (torch.ones(1, 4),), {"input": torch.ones(4)}, [torch.ones(0, 4)]]
)
LEGAL: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "trace": {
        **_BUILT,
        **_DEPLOYED,
        **_TRAINING,
        "phase": _phases,
        "batch": _sizes,
        "context": _sizes,
        "inputs": _INPUTS,
        "progress": st.just(len),
    },
    "sweep": {
        **_BUILT,
        **_TRAINING,
        "phase": _phases | st.just("both"),
        "batch": _some_sizes,
        "context": _some_sizes,
        "sure": _flags,
        "executor": st.none(),
        "cancelled": st.sampled_from((lambda: False, lambda: True)),
        "progress": st.just(len),
    },
    "size": {
        **{key: value for key, value in _BUILT.items() if key != "replay"},
        **_DEPLOYED,
        **_TRAINING,
        "phase": st.just("train"),
        "batch": _sizes,
        "context": _sizes,
        "cancelled": st.just(lambda: False),
        "progress": st.just(len),
    },
}
QUICK: dict[str, dict[str, Any]] = {  # where nothing else is asked: not for 8 workloads, 80 devices
    "trace": {},
    "sweep": {"batch": 1, "context": 4},
    "size": {"hardware": "H100"},
}
_CALLED = ("progress", "cancelled")  # what a function of the caller's raises is the caller's
_hostile = st.sampled_from((*NUMBERS, *TEXTS)) | odd | anything


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, Any, dict[str, Any]]:
    """What is called, with which model, and with which keywords, most of them legal."""
    called = draw(st.sampled_from(("trace", "trace", "sweep", "size")))
    legal = LEGAL[called]
    names = draw(st.lists(st.sampled_from(sorted(legal)), max_size=4, unique=True))
    trains = draw(st.booleans())  # these options are legal in no other phase
    names = [name for name in names if trains or name not in _TRAINING]
    model = draw(st.sampled_from(sorted(MODELS)))
    if model == "linear":
        names = ["inputs"] if called == "trace" else names
    else:
        names = [name for name in names if name != "inputs"]
    keywords = QUICK[called] | {name: draw(legal[name]) for name in names}
    if trains:
        keywords["phase"] = "train"
    for name in draw(st.lists(st.sampled_from(sorted(legal)), max_size=1)):
        keywords[name] = draw(anything if name in _CALLED else _hostile)
    return called, draw(st.sampled_from((*[model] * 9, None))) or draw(odd), keywords


@pytest.mark.slow
@given(cases())
def test_a_call_ends_in_a_right_answer_or_one_line(case: tuple[str, Any, dict[str, Any]]) -> None:
    called, model, keywords = case
    given = MODELS[model]() if model in MODELS else real(model)
    keywords = {name: real(value) for name, value in keywords.items()}
    check_outcome(lambda: getattr(llmsim, called)(given, **keywords))
