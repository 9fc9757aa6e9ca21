"""A live model is traced alike before and after it has really run."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import llmsim_magic as llmsim
from llmsim_magic.records.errors import NoDecode
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import Workload
from llmsim_magic.simulate.report import Report
from tests.helpers import small_models
from tests.helpers.architectures import TYPES
from tests.helpers.global_state import assert_state_unchanged
from tests.helpers.modules.lazy_hooks import LAZY, KeepsMask
from tests.helpers.modules.stateful import STATEFUL, UnderEarlyReturn, UnderFlag, WithPrefix
from tests.helpers.real_forward import differences, real_and_meta_models, really_run
from tests.helpers.reduced_configs import candidates
from tests.helpers.small_backbones import BACKBONES

X = torch.rand(2, 6, 8)


def trace(module: nn.Module, **options: Any) -> Report:
    with assert_state_unchanged(module):
        return llmsim.trace(module, **options)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("qwen3", "t5", "mamba") else pytest.mark.slow)
        for name in small_models.CONFIGS
    ],
)
def test_an_architecture_is_traced_alike_before_and_after_a_real_forward(name: str) -> None:
    model = small_models.build(name)
    phases = [phase for each, phase in small_models.WORKLOADS if each == name]
    wanted = {phase: trace(model, context=5, phase=phase).ops for phase in phases}
    with torch.no_grad():
        for phase in phases:  # transformers' hooks are installed where hidden states are asked for
            model(**small_models.inputs(name, phase, model), output_hidden_states=True)
    for phase in phases:
        assert trace(model, context=5, phase=phase).ops.equals(wanted[phase])


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TYPES)
def test_every_architecture_is_traced_alike_before_and_after_a_real_forward(
    model_type: str,
) -> None:
    if model_type not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    workload = Workload("prefill", 2, 16)
    for config, _ in candidates(model_type):
        try:
            real = real_and_meta_models(config, limit=100_000_000)
            real.prefill(workload)  # of a copy
        except Exception:  # this cut leaves no model that runs
            continue
        before = both_phases(real.model)
        real.prefill_in_place(workload)
        assert both_phases(real.model) == before
        return
    pytest.fail(f"no small {model_type} runs for real")


def both_phases(model: nn.Module) -> list[Trace | str]:
    """The records of both phases, or the line that says that there is no decode step.

    They are without the attributes of modules, in which a forward may leave what it computed.
    """
    prefill = trace(model, batch=2, context=16).trace
    try:
        decode = trace(model, batch=2, context=16, phase="decode").trace
    except NoDecode as error:
        return [replace(prefill, modules=()), str(error)]
    return [replace(prefill, modules=()), replace(decode, modules=())]


@pytest.mark.parametrize("name", BACKBONES)
def test_a_model_that_reads_its_layers_by_hooks_runs_them_in_its_trace(name: str) -> None:
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    torch.manual_seed(0)
    model, given = BACKBONES[name]()
    model.eval().requires_grad_(False)
    before = trace(model, inputs=given)
    seen = really_run(model, **given)
    after = trace(model, inputs=given)
    assert differences(model, seen, after.modules) == {}
    assert after.ops.equals(before.ops)
    assert not any("hooks of your module" in note for note in after.trace.notes)


@pytest.mark.parametrize("kind", LAZY)
def test_what_a_module_installed_at_its_first_forward_is_there_in_its_trace(kind: Any) -> None:
    module = kind()
    wanted = 3 * (2 * 12 * 8 * 8) + 2 * 36 * 8 * 2  # three layers, then all outputs times [8, 2]
    assert trace(module, inputs=X).summary.value["flops"] == wanted
    module(X)
    kept = list(module.seen)
    report = trace(module, inputs=X)
    assert report.summary.value["flops"] == wanted
    assert all(one is other for one, other in zip(module.seen, kept, strict=True))


def test_a_users_hooks_are_left_out_beside_those_of_the_model() -> None:
    module, calls = LAZY[0](), []
    module(X)
    module.layers[0].register_forward_hook(lambda *args: calls.append(args))
    report = trace(module, inputs=X)
    assert not calls
    assert "1 hooks of your module were not run" in report.trace.notes


def test_a_table_that_a_module_computed_at_its_first_forward_keeps_its_values() -> None:
    module = KeepsMask()
    wanted = 2 * 8 * 8 * 8  # four of six rows of each of two
    assert trace(module, inputs=X).summary.value["flops"] == wanted
    module(X)
    assert trace(module, inputs=X).summary.value["flops"] == wanted


@pytest.mark.parametrize("kind", STATEFUL)
def test_what_the_last_forward_left_is_not_in_the_trace(kind: Any) -> None:
    module = kind()
    wanted = trace(module, inputs=X[0])
    module(X.reshape(-1, 8))  # another shape, whose state would be added to this one's
    assert trace(module, inputs=X[0]).ops.equals(wanted.ops)


@pytest.mark.parametrize("kind", [UnderFlag, UnderEarlyReturn])
def test_a_table_whose_flag_says_that_it_was_computed_is_in_the_trace(kind: Any) -> None:
    module = kind()
    module(X[0])
    assert trace(module, inputs=X[0]).summary.value["flops"] == 2 * 6 * 8 * 8


def test_what_only_a_user_sets_is_in_the_trace() -> None:
    module = WithPrefix()
    module.set_prefix(torch.zeros(4, 8))
    module(X[0])
    assert trace(module, inputs=X[0]).summary.value["flops"] == 2 * (4 + 6) * 8 * 8
