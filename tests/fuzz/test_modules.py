"""Any module with any inputs gives a correct report or an error, and changes no state."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from torch import Tensor, nn

import llmsim_magic as llmsim
from llmsim_magic.simulate.report import Report
from tests.helpers.global_state import assert_state_unchanged, plain
from tests.helpers.modules.arguments import INPUTS, valid_input
from tests.helpers.modules.forwards import Own
from tests.helpers.modules.module_kinds import ODD
from tests.helpers.modules.valid_modules import SOUND
from tests.helpers.modules.wrappers import ODD_WRAPS, SAME
from tests.helpers.outcomes import check_outcome
from tests.helpers.real_forward import differences, really_run
from tests.helpers.real_training import differences as differences_of_steps
from tests.helpers.real_training import mean_of_output, real_step, traced_step

GOES_THROUGH = (KeyboardInterrupt, SystemExit, GeneratorExit, Own)  # no Exception: not ours to stop
pytestmark = pytest.mark.slow  # `test_odd_modules.py` has what was found


@dataclass(frozen=True)
class Plan:
    """How a module is composed of others, in the end of parts by name."""

    way: str
    of: tuple["Plan | str", ...]

    def __repr__(self) -> str:
        return f"{self.way}({', '.join(map(repr, self.of))})"


class Composed(nn.Module):
    """Parts in a list, and a way to call them."""

    def __init__(self, way: Callable[[list[nn.Module], Tensor], Any], parts: list[Any]) -> None:
        super().__init__()
        self.way = way
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Any:
        return self.way(list(self.parts), x)


def _one_by_one(parts: list[nn.Module], x: Tensor) -> Any:
    for part in parts:
        x = part(x)
    return x


def _beside(parts: list[nn.Module], x: Tensor) -> Any:
    for part in parts:
        x = x + part(x)
    return x


def _all_of(parts: list[nn.Module], x: Tensor) -> Any:
    return torch.stack([part(x) for part in parts]).mean(0)


def _twice(parts: list[nn.Module], x: Tensor) -> Any:
    return _one_by_one(parts, _one_by_one(parts, x))


def _gated(parts: list[nn.Module], x: Tensor) -> Any:
    gate, *rest = parts
    return gate(x).sigmoid() * _one_by_one(rest, x)


def _dictionary(parts: list[nn.Module], x: Tensor) -> Any:
    return {"out": _one_by_one(parts, x)}["out"]


WAYS: dict[str, Callable[[list[nn.Module], Tensor], Any]] = {
    "chain": _one_by_one,
    "residual": _beside,
    "mean": _all_of,
    "twice": _twice,
    "gated": _gated,
    "dictionary": _dictionary,
}
MOST_PARTS = 40


def built(plan: Plan | str) -> nn.Module:
    if isinstance(plan, str):
        return (SOUND | ODD)[plan]()
    if plan.way == "sequential":
        return nn.Sequential(*map(built, plan.of))
    if plan.way == "alike":  # layers of one kind, of which one may stand for the others
        return Composed(_one_by_one, [built(plan.of[0]) for _ in range(3)])
    if plan.way == "the same":  # one layer several times
        return Composed(_one_by_one, [built(plan.of[0])] * 3)
    return Composed(WAYS[plan.way], list(map(built, plan.of)))


def plans(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    ways = st.sampled_from([*WAYS, "sequential", "alike", "the same"])
    return st.recursive(
        parts,
        lambda inner: st.builds(Plan, ways, st.lists(inner, min_size=1, max_size=3).map(tuple)),
        max_leaves=6,
    )


def around(odd: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """A module with sound parts before, beside or after an odd one."""
    sound = st.lists(plans(st.sampled_from(list(SOUND))), max_size=2)
    composed = st.builds(
        lambda way, before, part, after: Plan(way, (*before, part, *after)),
        st.sampled_from([*WAYS, "sequential", "alike", "the same"]),
        sound,
        odd,
        sound,
    )
    return odd | composed


def agrees(module: nn.Module, report: Report, x: Tensor) -> None:
    """Hold a trace against what hooks and torch's own counter see of the real forward."""
    module = uncompiled(module).eval()
    for part in module.modules():
        for name, child in part.named_children():
            part._modules[name] = uncompiled(child)
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one kernel that no counter knows
    try:
        with torch.backends.mkldnn.flags(enabled=False):  # the same, of an LSTM
            seen = really_run(module, x)
    except Exception:  # accelerate brings no weights that a forward reads by itself
        return
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    assert report.summary.value["parameters"] == parameters
    assert differences(module, seen, report.modules) == {}
    assert report.summary.value["flops"] == seen.flops


def uncompiled(module: nn.Module) -> nn.Module:
    return getattr(module, "_orig_mod", module)


@given(plans(st.sampled_from(list(SOUND))), st.sampled_from(list(SAME)))
def test_a_sound_module_is_traced_as_it_really_runs(plan: Plan | str, wrap: str) -> None:
    torch.manual_seed(0)
    module = built(plan)
    try:
        module = SAME[wrap](module)
    except Exception as error:  # what wraps it may not take it
        event(f"{wrap}: {type(error).__name__}")
        return
    x = valid_input().to(
        next((p.dtype for p in module.parameters() if wrap == "double"), torch.float)
    )
    with assert_state_unchanged(module):
        report = check_outcome(lambda: llmsim.trace(module, inputs=x))
    if isinstance(report, Report):
        agrees(module, report, x)
    else:  # of doubles beside halves, which torch refuses as well
        with pytest.raises(RuntimeError):
            module(x)


# Which have other kernels on a CPU than on the GPU whose step is traced.
OTHERWISE_ON_CPU = (
    *("bag", "attention", "encoder layer", "encoder", "transformer", "autocast"),
    *("lstm", "lstm both ways", "gru", "rnn"),
)


@given(plans(st.sampled_from([name for name in SOUND if name not in OTHERWISE_ON_CPU])))
def test_a_step_of_a_sound_module_is_traced_as_it_really_runs(plan: Plan | str) -> None:
    torch.manual_seed(0)
    module, x = built(plan), valid_input()
    with assert_state_unchanged(module):
        report = check_outcome(
            lambda: llmsim.trace(module, inputs=x, phase="train", loss=mean_of_output)
        )
    named = next(iter(inspect.signature(module.forward).parameters))
    try:
        real = real_step(module.train(), {named: x}, mean_of_output)
        torch.optim.AdamW(module.parameters()).step()
    except RuntimeError:  # such as of nothing that is trained
        assert isinstance(report, str)
    else:
        assert isinstance(report, Report)
        assert dict(differences_of_steps(real, traced_step(report.trace))) == {}


@given(around(st.sampled_from(list(ODD))), st.sampled_from(list(ODD_WRAPS)))
def test_whatever_a_module_is_or_does_ends_well(plan: Plan | str, wrap: str) -> None:
    torch.manual_seed(0)
    try:
        module = ODD_WRAPS[wrap](built(plan))
    except (Exception, *GOES_THROUGH):
        return
    ends_well(module, valid_input())


@given(
    around(st.sampled_from(list(SOUND)) | st.sampled_from(list(ODD))),
    st.sampled_from(list(INPUTS)),
)
def test_whatever_a_module_is_given_ends_well(plan: Plan | str, inputs: str) -> None:
    torch.manual_seed(0)
    try:
        module = built(plan)
    except Exception:
        return
    ends_well(module, INPUTS[inputs]())


def ends_well(module: Any, inputs: Any) -> None:
    """Asked of a module, with inputs and without any."""
    modules = [module] if isinstance(module, nn.Module) else []
    with assert_state_unchanged(*modules):
        before = plain(inputs)
        for ask in (
            lambda: llmsim.trace(module, inputs=inputs),
            lambda: llmsim.trace(module, inputs=inputs, phase="train", loss=mean_of_output),
            lambda: llmsim.trace(module),
        ):
            try:
                answer = check_outcome(ask)
            except GOES_THROUGH:
                event("went through")
            else:
                event("a line" if isinstance(answer, str) else "a report")
        assert plain(inputs) == before
