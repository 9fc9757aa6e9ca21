"""Training steps of live modules: their own loss, inputs and frozen parts; left as found."""

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch.nn import BatchNorm1d, Dropout, Linear, Module, ReLU, Sequential
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.flop_counter import FlopCounterMode

import llmsim_magic as llmsim
from llmsim_magic.records.errors import CannotTrace, InvalidValue
from llmsim_magic.records.trace.trace import Trace
from tests.helpers import small_models


class Net(Module):
    """A small classifier with statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Linear(6, 8)
        self.norm = BatchNorm1d(8)
        self.drop = Dropout(0.5)
        self.last = Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.drop(torch.relu(self.norm(self.first(x)))))


def _loss(target: torch.Tensor) -> Any:
    return lambda output: cross_entropy(output, target)


X, TARGET = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])


def _step(module: Module, inputs: Any = (X,), **options: Any) -> Trace:
    options = {"loss": _loss(TARGET)} | options
    return llmsim.trace(module, inputs=inputs, phase="train", **options).trace


def _names(trace: Trace, role: str) -> set[str | None]:
    return {storage.name for storage in trace.recorded.storages if storage.role == role}


@pytest.mark.parametrize("is_training", [True, False])
def test_a_module_is_left_as_it_was(is_training: bool) -> None:
    net = Net().train(is_training)
    net.last.weight.grad = torch.ones_like(net.last.weight)
    net.first.weight.requires_grad_(False)
    calls: list[str] = []
    net.register_forward_hook(lambda *_: calls.append("hook"))
    x = X.clone().requires_grad_()
    state = copy.deepcopy(net.state_dict())
    flags = [module.training for module in net.modules()]
    random = torch.get_rng_state()
    _step(net, (x,))
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == flags
    assert not net.first.weight.requires_grad
    assert torch.equal(net.last.weight.grad, torch.ones_like(net.last.weight))
    assert net.last.bias.grad is None
    assert x.grad is None
    assert calls == []
    assert torch.equal(torch.get_rng_state(), random)
    assert TARGET.tolist() == [0, 1, 2, 0]


def test_frozen_parts_have_neither_gradients_nor_states() -> None:
    net = Net()
    net.first.requires_grad_(False)
    trace = _step(net)
    trained = {"norm.weight", "norm.bias", "last.weight", "last.bias"}
    assert _names(trace, "gradient") == trained
    assert {str(name).rpartition(".")[0] for name in _names(trace, "optimizer")} == trained
    backward = [each.path for each in trace.operators if each.part == "backward"]
    assert "first" not in backward


def test_an_input_that_requires_a_gradient_gets_one() -> None:
    trace = _step(Net(), {"x": X.clone().requires_grad_()})
    assert "x" in _names(trace, "gradient")
    assert "x" not in _names(_step(Net()), "gradient")
    flops = {
        name: sum(kernel.flops or 0 for kernel in each.recorded.kernels)
        for name, each in (("with", trace), ("without", _step(Net())))
    }
    assert flops["with"] - flops["without"] == 2 * 4 * 6 * 8  # the gradient of x alone


def test_flops_are_those_of_a_real_step() -> None:
    net = Net()
    with FlopCounterMode(display=False) as counter:
        cross_entropy(net(X), TARGET).backward()
    counted = sum(kernel.flops or 0 for kernel in _step(Net()).recorded.kernels)
    assert counted == counter.get_total_flops()


def test_modules_in_evaluation_mode_stay_so_inside_a_module_in_training_mode() -> None:
    frozen = Net().train()
    frozen.norm.eval()
    counter = "norm.num_batches_tracked"  # of what batch normalisation counts in training
    assert counter in _written(_step(Net().train()))
    assert counter not in _written(_step(frozen))
    dropouts = [Counter(k.name for k in _step(each).kernels) for each in (frozen, Net())]
    assert dropouts[0]["aten.native_dropout.default"] == dropouts[1]["aten.native_dropout.default"]


def _written(trace: Trace) -> set[str | None]:
    """Names of the buffers that the forward writes."""
    record = trace.recorded
    written = {record.tensors[index].storage for k in record.kernels for index in k.writes}
    return {record.storages[number].name for number in written}


def test_a_module_in_evaluation_mode_is_trained_and_a_note_says_so() -> None:
    trained, evaluated = _step(Net().train()), _step(Net().eval())
    assert [k.name for k in trained.kernels] == [k.name for k in evaluated.kernels]
    note = "your module is in evaluation mode; the trace is of training mode"
    assert note in evaluated.notes
    assert note not in trained.notes


def test_a_module_may_return_its_loss() -> None:
    class WithLoss(Net):
        def forward(self, x: torch.Tensor, target: torch.Tensor) -> Any:  # type: ignore[override]
            return cross_entropy(super().forward(x), target)

    class InDict(Net):
        def forward(self, x: torch.Tensor) -> Any:
            return {"loss": super().forward(x).square().mean()}

    assert _step(WithLoss(), (X, TARGET), loss=None).training is not None
    assert _step(InDict(), loss=None).training is not None


def test_layers_of_a_module_repeat_as_in_a_pass() -> None:
    deep = Sequential(*(Sequential(Linear(6, 6), ReLU()) for _ in range(3)))
    trace = _step(deep, loss=lambda output: mse_loss(output, torch.zeros(4, 6)))
    assert [each.path for each in trace.operators if each.part == "backward"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": None}, "Net computes no loss: in Python, pass loss=, a function of its output"),
        ({"loss": lambda output: output}, "the loss is (4, 3), not a scalar tensor"),
        ({"loss": lambda output: 1.0}, "the loss is float, not a scalar tensor"),
        ({"loss": lambda output: output.detach().sum()}, "depends on no parameter"),
    ],
)
def test_a_wrong_loss_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CannotTrace) as caught:
        _step(Net(), **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": 3}, "loss must be a function of the output that returns a scalar tensor"),
        ({"phase": "prefill"}, "loss has no effect without phase train"),
        ({"accumulate": 2}, "inputs cannot be combined with accumulate or packed"),
        ({"batch": 2}, "inputs cannot be combined with batch, context or a phase other than"),
        ({"context": 2}, "inputs cannot be combined with batch, context or a phase other than"),
    ],
)
def test_what_a_step_on_given_inputs_does_not_take(options: dict[str, Any], message: str) -> None:
    given = {"phase": "train", "loss": _loss(TARGET), "inputs": (X,)} | options
    with pytest.raises(InvalidValue) as caught:
        llmsim.trace(Net(), **given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_to_train_is_one_line() -> None:
    with pytest.raises(CannotTrace, match="no parameter that requires a gradient"):
        _step(Net().requires_grad_(False))


def test_a_model_without_a_loss_trains_with_one_given() -> None:
    config = small_models.qwen3()
    with pytest.raises(CannotTrace, match="pass loss="):
        llmsim.trace(config, base=True, phase="train", context=4)
    options: dict[str, Any] = {"base": True, "phase": "train", "context": 4}
    short = llmsim.trace(config, loss=lambda o: o.last_hidden_state.mean(), **options)
    long = llmsim.trace(config, loss=lambda o: o.last_hidden_state.square().mean(), **options)
    assert len(long.trace.kernels) > len(short.trace.kernels)  # no loss answers for another


def test_a_report_of_given_inputs_shows_itself() -> None:
    report = llmsim.trace(Net(), inputs=(X,), phase="train", loss=_loss(TARGET))
    assert "train on the given inputs" in str(report)
    assert "<svg" in report.dependency_graph().svg
    assert '"context": null' in report.json()
