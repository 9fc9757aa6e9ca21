"""Seventy-eight architectures, one or more for each reason why `meta` alone would not do.

Each is its default configuration made small, held against a forward pass with real weights on the
CPU: the shapes and calls of every module, the parameters, the FLOPs and the bytes of the cache.
`benchmarks/coverage.py` does the same for every type that transformers knows.
"""

import pytest
import transformers

import llmsim_magic as llmsim
from llmsim_magic.records.trace.workload import Workload
from llmsim_magic.simulate.report import Report
from tests.helpers.architectures import CAUSES, TYPES
from tests.helpers.real_forward import (
    Real,
    Seen,
    cache_bytes,
    comparable_flops,
    differences,
    real_and_meta_models,
)
from tests.helpers.reduced_configs import candidates

BATCH, CONTEXT = 2, 16


def hold(real: Real, seen: Seen, report: Report) -> None:
    """Everything of a trace that a real forward shows as well."""
    assert not differences(real.model, seen, report.modules)
    parameters = sum(parameter.numel() for parameter in real.model.parameters())
    assert report.summary.loc["parameters", "value"] == parameters
    assert comparable_flops(report.kernels) == seen.flops
    assert report.summary.loc["cache_bytes", "value"] == cache_bytes(real.model, seen.output)


@pytest.mark.parametrize("model_type", TYPES)
def test_a_trace_is_true_to_a_real_forward(model_type: str) -> None:
    if model_type not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    prefill, decode = (Workload(phase, BATCH, CONTEXT) for phase in ("prefill", "decode"))
    for config, _ in candidates(model_type):
        try:
            real = real_and_meta_models(config, limit=100_000_000)
            seen = real.prefill(prefill)
        except Exception:  # this cut leaves no model that runs
            continue
        break
    else:
        pytest.fail(f"no small {model_type} runs for real")
    asked = {"batch": BATCH, "context": CONTEXT, "dtype": "float32"}
    hold(real, seen, llmsim.trace(config, **asked))
    step = real.decode(decode)
    if step is None:
        with pytest.raises(llmsim.LlmsimError, match="decode does not exist"):
            llmsim.trace(config, phase="decode", **asked)
    else:
        hold(real, step, llmsim.trace(config, phase="decode", **asked))


@pytest.mark.parametrize("model_type", CAUSES["experts in a grouped matmul"].split())
def test_a_small_mixture_keeps_a_layer_with_experts(model_type: str) -> None:
    kernels = llmsim.trace(next(candidates(model_type)).config, context=CONTEXT).kernels
    assert kernels["kernel"].str.contains("_grouped_mm").any()


@pytest.mark.parametrize(
    ("model_type", "said"),
    [
        ("switch_transformers", "assumed to be balanced"),
        ("fastspeech2_conformer", "an integer that depends on the data is assumed to be 1"),
        ("vits", "an integer that depends on the data is assumed to be 1"),
    ],
)
def test_what_only_data_decides_is_assumed_and_said(model_type: str, said: str) -> None:
    config = next(candidates(model_type)).config
    report = llmsim.trace(config, batch=BATCH, context=CONTEXT)
    assert any(said in note for note in report.trace.notes)
    shown = "balanced expert routing" if "balanced" in said else said
    assert sum(shown in note for note in report.notes) == 1


def test_experts_in_a_loop_get_an_even_share_of_the_tokens() -> None:
    config = next(candidates("switch_transformers")).config
    modules = llmsim.trace(config, batch=BATCH, context=CONTEXT).modules
    experts = modules[modules.index.str.fullmatch(r"encoder.*\.expert_\d+")]
    rows = [shapes[0][0] for shapes in experts["input_shapes"]]
    assert rows == [BATCH * CONTEXT // config.num_experts] * len(experts)


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("mistralai/Mixtral-8x7B-v0.1", 46.7e9, 12.9e9),  # arXiv:2401.04088, section 2
        ("deepseek-ai/DeepSeek-V3", 671e9, 37e9),  # arXiv:2412.19437, abstract
        ("Qwen/Qwen3-235B-A22B", 235e9, 22e9),  # arXiv:2505.09388, table 2
        ("Qwen/Qwen3-0.6B", 0.6e9, 0.6e9),
    ],
)
def test_active_parameters_are_those_published(name: str, total: float, active: float) -> None:
    summary = llmsim.trace(name, context=8).summary
    assert summary.loc["parameters", "value"] == pytest.approx(total, rel=0.02)
    assert summary.loc["parameters_active", "value"] == pytest.approx(active, rel=0.02)
