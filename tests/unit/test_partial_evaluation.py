"""Operations that `meta` lacks give the shapes and dtypes that torch gives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import PerChannelMinMaxObserver

import llmsim_magic as llmsim
from llmsim_magic.capture.kernels.tensors import tensors_in
from llmsim_magic.capture.meta.evaluation_modes import evaluating_partially

CALLS: dict[str, Callable[[Tensor], Any]] = {
    "topk": lambda x: x.topk(2),
    "topk along the first": lambda x: x.topk(2, dim=0),
    "topk of a scalar": lambda x: x.sum().topk(1),
    "argmax": lambda x: x.argmax(-1),
    "argmax of all": lambda x: x.argmax(),
    "argmax of all, kept": lambda x: x.argmax(keepdim=True),
    "argmax, kept": lambda x: x.argmax(1, keepdim=True),
    "max along": lambda x: x.max(0),
    "min along, kept": lambda x: x.min(-1, keepdim=True),
    "sort": lambda x: x.sort(dim=0, descending=True),
    "sort, stable": lambda x: x.sort(stable=True, dim=-1),
    "argsort": lambda x: x.argsort(-1),
    "multinomial": lambda x: x.abs().multinomial(2),
    "histc": lambda x: x.histc(7),
    "histogram": lambda x: x.histogram(7),
    "histogram, given edges": lambda x: x.histogram(torch.tensor([0.0, 0.5, 1.0])),
    "least squares": lambda x: torch.linalg.lstsq(x, x[:, :2]),
    "least squares, vector": lambda x: torch.linalg.lstsq(x, x[:, 0]),
    "least squares, tall": lambda x: torch.linalg.lstsq(x.T, x[:2].T, driver="gels"),
    "least squares, batch": lambda x: torch.linalg.lstsq(
        x.T.expand(2, 4, 3), x.T.expand(2, 4, 3), driver="gelsd"
    ),
    "all": lambda x: (x > 0).all(),
    "index by a known mask": lambda x: x[torch.tensor([True, False, True])],
    "index by a mask and a slice": lambda x: x[:, torch.tensor([True, False, True, True])],
    "masked select": lambda x: x.masked_select(torch.tensor([[True], [False], [True]])),
    "index by a topk": lambda x: x[x.topk(2, dim=0).indices[:, 0]],
    "repeat": lambda x: x.repeat_interleave(torch.tensor([1, 0, 2]), 0),
    "lstm": lambda x: nn.LSTM(4, 5, 2, bidirectional=True)(x[None]),
    "gru": lambda x: nn.GRU(4, 5, batch_first=True)(x[None]),
    "rnn": lambda x: nn.RNN(4, 5)(x),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_answer_has_the_shapes_and_dtypes_of_the_real_one(call: Callable[..., Any]) -> None:
    x = torch.rand(3, 4)
    with evaluating_partially():
        answered = list(tensors_in(call(x.to("meta"))))
    real = list(tensors_in(call(x)))
    assert [tensor.shape for tensor in answered] == [tensor.shape for tensor in real]
    assert [tensor.dtype for tensor in answered] == [tensor.dtype for tensor in real]


def test_choices_are_balanced_and_known() -> None:
    scores = torch.empty(16, 8, device="meta")
    with evaluating_partially() as answers:
        chosen = scores.topk(2).indices
        assert answers.is_known(chosen)
    assert chosen.flatten().bincount().tolist() == [4] * 8
    assert (chosen[:, 0] != chosen[:, 1]).all()


def test_what_was_overwritten_with_data_gives_nothing_known() -> None:
    data = torch.empty(4, device="meta")
    with evaluating_partially() as answers:
        state = torch.zeros(4)
        state.copy_(data)
        assert not answers.is_known(state[:2])
        assert not answers.is_known(state.sort().values)
        torch.add(data, 1, out=(out := torch.zeros(4)))
        assert not answers.is_known(out)
    with evaluating_partially(answers) as later:
        assert not later.is_known(state)


def test_a_recurrent_layer_is_one_kernel_with_its_matmuls_counted() -> None:
    batch, time, width, hidden = 2, 5, 8, 16
    report = llmsim.trace(nn.LSTM(width, hidden), inputs=torch.zeros(time, batch, width))
    kernels = report.kernels[~report.kernels["is_view"]]
    lstm = kernels[kernels["kernel"] == "aten.lstm.input"]
    assert lstm["flops"].tolist() == [2 * time * batch * 4 * hidden * (width + hidden)]


def test_whole_numbers_among_the_inputs_are_known() -> None:
    class Splits(nn.Module):
        def forward(self, x: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
            return tuple(part.exp() for part in x.split(sizes.tolist()))

    given = {"x": torch.zeros(5, 4), "sizes": torch.tensor([2, 3])}
    kernels = llmsim.trace(Splits(), inputs=given).kernels
    shapes = kernels[kernels["kernel"] == "aten.exp.default"]["output_shapes"]
    assert shapes.tolist() == [[(2, 4)], [(3, 4)]]


def test_any_and_all_of_the_same_unknown_values_agree() -> None:
    data = torch.empty(4, device="meta")
    with evaluating_partially():
        stopped = data > 0
        assert not stopped.any()
        assert not stopped.all()
        assert (data > 0).all()  # a validity check


def test_a_loop_that_ends_once_all_are_done_runs_to_its_end() -> None:
    class Steps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            done = []
            for step in range(3):
                x = x.exp()
                stopped = x.mean(-1) > 5 if step < 2 else torch.ones(2, dtype=torch.bool)
                if stopped.any():
                    done.append(x[stopped])
                    x = x[~stopped]
                if stopped.all():
                    break
            return torch.cat(done)

    kernels = llmsim.trace(Steps(), inputs=torch.zeros(2, 4)).kernels["kernel"].tolist()
    assert kernels.count("aten.exp.default") == 3


def test_a_buffer_that_a_pass_resizes_gets_its_size_back() -> None:
    observer = PerChannelMinMaxObserver()
    for _ in range(2):
        trace = llmsim.trace(nn.Sequential(nn.Linear(8, 8), observer), inputs=torch.zeros(3, 8))
        assert trace.summary.loc["flops", "value"] == 2 * 3 * 8 * 8
    assert observer.min_val.shape == (0,)


STEPS: dict[str, Callable[[Tensor], Any]] = {
    "a number in a message": lambda x: f"{x.mean():.3f} of {x.argmax():d}, {x.sum()}",
    "pinned": lambda x: x.pin_memory().cuda(non_blocking=True),
    "pinned, new": lambda x: x + torch.zeros(4, pin_memory=True),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_step_that_needs_values_or_an_accelerator_runs(step: Callable[[Tensor], Any]) -> None:
    class Steps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            step(x)
            return x.exp()

    kernels = llmsim.trace(Steps(), inputs=torch.zeros(2, 4)).kernels["kernel"].tolist()
    assert kernels.count("aten.exp.default") == 1


def test_the_text_of_several_unknown_numbers_is_refused_as_torch_does() -> None:
    def text(x: Tensor) -> str:
        return f"{x:.3f}"

    with pytest.raises(TypeError, match="unsupported format string"):
        text(torch.zeros(2))
    with evaluating_partially(), pytest.raises(TypeError, match="unsupported format string"):
        text(torch.zeros(2, device="meta"))


def test_a_small_buffer_keeps_its_values_and_gets_them_back() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("steps", torch.tensor(2))

        def forward(self, x: Tensor) -> Tensor:
            self.steps += 1
            for _ in range(int(self.steps)):
                x = x.exp()
            return x

    module = Counts()
    for _ in range(2):
        kernels = llmsim.trace(module, inputs=torch.zeros(2)).kernels["kernel"].tolist()
        assert kernels.count("aten.exp.default") == 3
    assert module.steps == 2
