"""Known values are computed; unknown ones are assumed, and the report says so."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import llmsim_magic as llmsim
from llmsim_magic.capture.configs.resolve import ConfigSource
from llmsim_magic.capture.meta import partial_evaluation
from llmsim_magic.capture.models.meta_model import from_config
from llmsim_magic.simulate.report import Report
from tests.helpers.small_models import gpt2


class Branches(nn.Module):
    """Runs `yes` or `no` by a value that it asks for."""

    def __init__(self, ask: str) -> None:
        super().__init__()
        self.ask = ask
        self.yes = nn.Linear(4, 4)
        self.no = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[:-1], device=x.device, dtype=torch.bool)
        positions = torch.arange(x.shape[-2], device=x.device)
        written = torch.zeros(x.shape, device=x.device)
        written[0] = x[0]
        answer = {
            "a mask of ones": mask.all(),
            "the last position": positions[-1] == x.shape[-2] - 1,
            "a mask moved to the activations": mask.to(x.device).sum() == mask.numel(),
            "an activation": (x > 0).any(),
            "a constant with an activation in it": (written == 0).any(),
            "all of an activation": (x > 0).all(),
        }[self.ask]
        return self.yes(x) if answer else self.no(x)


def _traced(ask: str) -> Report:
    return llmsim.trace(Branches(ask), inputs=torch.zeros(2, 3, 4))


def _calls(report: Report) -> dict[str, int]:
    return report.modules["calls"].loc[["yes", "no"]].to_dict()


@pytest.mark.parametrize(
    "ask", ["a mask of ones", "the last position", "a mask moved to the activations"]
)
def test_a_known_value_decides_as_it_would_on_a_device(ask: str) -> None:
    report = _traced(ask)
    assert _calls(report) == {"yes": 1, "no": 0}
    assert not report.trace.notes[1:]


@pytest.mark.parametrize("ask", ["an activation", "a constant with an activation in it"])
def test_an_unknown_value_is_answered_no_and_the_report_says_so(ask: str) -> None:
    report = _traced(ask)
    assert _calls(report) == {"yes": 0, "no": 1}
    assert any("assumed to be False" in note for note in report.trace.notes)


def test_a_check_that_all_of_the_data_is_well_passes_and_the_report_says_so() -> None:
    report = _traced("all of an activation")
    assert _calls(report) == {"yes": 1, "no": 0}
    assert any("assumed to be True" in note for note in report.trace.notes)


def test_moving_between_host_and_model_is_no_operator() -> None:
    class Moves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + torch.arange(4, dtype=torch.float32).to(x.device)

    ops = llmsim.trace(Moves(), inputs=torch.zeros(2, 4)).ops
    assert ops["op"].tolist() == ["Linear", "arange", "add"]
    assert ops["depends_on"].tolist() == [[], [], [0, 1]]


def test_large_known_values_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_evaluation, "MAX_KNOWN_ELEMENTS", 5)
    report = _traced("a mask of ones")
    assert any("assumed to be True" in note for note in report.trace.notes)


def test_token_ids_are_known_and_none_is_special() -> None:
    report = llmsim.trace("roberta-base", context=4)
    assert not report.trace.notes
    assert not [name for name in report.kernels["kernel"] if "local_scalar" in name]


def test_a_build_draws_no_random_numbers_for_weights_that_it_does_not_have() -> None:
    drawn = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if torch.Tag.nondeterministic_seeded in func.tags:
                drawn.append(func)
            return func(*args, **kwargs or {})

    with Watch():
        from_config(ConfigSource("gpt2", gpt2(), "config object"))
    assert not drawn
