"""Steps with autograd functions, checkpoints and in-place writes of the model's own."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import llmsim_magic as llmsim
from llmsim_magic.capture.models.live_model_copy import copy_without_weights
from llmsim_magic.capture.train.step import run_step_with_inputs
from llmsim_magic.records.errors import CannotTrace
from llmsim_magic.records.trace.recorded import Operator, Record
from llmsim_magic.records.trace.training import Training


def step(net: nn.Module, *, replay: bool = True) -> Record:
    loss: dict[str, Any] = {"loss": lambda output: output.pow(2).mean(), "phase": "train"}
    return llmsim.trace(net, inputs=(torch.ones(4, 8),), replay=replay, **loss).trace.recorded


def flops(record: Record) -> Counter[str]:
    found: Counter[str] = Counter()
    for kernel in record.kernels:
        if kernel.flops and kernel.operator is not None:
            found[record.operators[kernel.operator].part] += kernel.flops
    return found


def of_part(record: Record, part: str) -> list[Operator]:
    return [operator for operator in record.operators if operator.part == part]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(4)
        )

    def run_layer(self, layer: nn.Module, x: Tensor) -> Any:
        return layer(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = self.run_layer(layer, x)
        return x


# layers that run again


class Reentrant(Net):
    def run_layer(self, layer: nn.Module, x: Tensor) -> Any:
        return checkpoint(layer, x, use_reentrant=True)


class NotReentrant(Net):
    def run_layer(self, layer: nn.Module, x: Tensor) -> Any:
        return checkpoint(layer, x, use_reentrant=False)


class ReentrantAroundFunctions(Net):
    def run_layer(self, layer: nn.Module, x: Tensor) -> Any:
        return checkpoint(lambda y: layer(torch.relu(y)) + y, x, use_reentrant=True)


class NotReentrantAroundFunctions(Net):
    def run_layer(self, layer: nn.Module, x: Tensor) -> Any:
        return checkpoint(lambda y: layer(torch.relu(y)) + y, x, use_reentrant=False)


class NotReentrantAfterFunction(Net):
    """What runs before the layer saves nothing, but has to run again for it."""

    def run_layer(self, layer: nn.Module, x: Tensor) -> Any:
        return checkpoint(lambda y: layer(y * 2), x, use_reentrant=False)


class NotReentrantAroundTwo(Net):
    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        for one, other in zip(self.layers[::2], self.layers[1::2], strict=True):
            both = nn.Sequential(one, other)
            x = checkpoint(both, x, use_reentrant=False)
        return x


class ReentrantAroundAll(Net):
    def forward(self, x: Tensor) -> Any:
        return checkpoint(super().forward, x.requires_grad_(), use_reentrant=True)


class RunsAgain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module) -> Any:
        ctx.save_for_backward(x)
        ctx.layer = layer
        with torch.no_grad():
            return layer(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            ctx.layer(x).backward(gradient)
        return x.grad, None


class OwnCheckpoint(Net):
    def run_layer(self, layer: nn.Module, x: Tensor) -> Any:
        return RunsAgain.apply(x, layer)


AGAIN = [
    *(Reentrant, NotReentrant, ReentrantAroundFunctions, NotReentrantAroundFunctions),
    *(NotReentrantAfterFunction, NotReentrantAroundTwo, ReentrantAroundAll, OwnCheckpoint),
]


@pytest.mark.parametrize("kind", AGAIN)
def test_the_backward_of_a_layer_that_runs_again_is_backward(kind: type[Net]) -> None:
    plain, record = step(Net(), replay=False), step(kind(), replay=False)
    assert flops(record)["forward"] == flops(plain)["forward"]
    # The gradient of the input is not needed, unless a reentrant checkpoint asks for it.
    own = 2 * 4 * 8 * 8 if kind is ReentrantAroundAll else 0
    assert flops(record)["backward"] == flops(plain)["backward"] + own
    forward = {(each.path, each.op) for each in of_part(record, "forward")}
    again = {(each.path, each.op) for each in of_part(record, "recompute")}
    assert again
    assert again <= forward
    # A checkpoint that is not reentrant stops once it has what backward reads.
    last = {(f"layers.{n}.2", "Linear") for n in range(4)} | {("", "add")}
    inside = {
        each for each in forward if each[0].startswith("layers") or each[1] in ("relu", "add")
    }
    missing = last if kind.__name__.startswith("Not") else set()
    assert inside - again <= missing


@pytest.mark.parametrize("kind", AGAIN)
def test_steps_whose_layers_run_again_are_the_same_with_replay(kind: type[Net]) -> None:
    net = kind()
    assert step(net) == step(net, replay=False)


# functions of the model's own


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Any:
        y = x @ weight
        ctx.save_for_backward(x, weight, y)
        return y * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        x, weight, _ = ctx.saved_tensors
        return gradient @ weight.t(), x.t() @ gradient


class WithProduct(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.weight = nn.Parameter(torch.ones(8, 8))

    def forward(self, x: Tensor) -> Any:
        return self.last(Product.apply(self.first(x), self.weight))


class EndsWithProduct(WithProduct):
    def forward(self, x: Tensor) -> Any:
        return Product.apply(self.first(x), self.weight)


@pytest.mark.parametrize("kind", [WithProduct, EndsWithProduct])
def test_what_a_function_of_the_model_saves_is_saved_for_it(kind: type[nn.Module]) -> None:
    record = step(kind())
    (product,) = (each for each in of_part(record, "forward") if each.op == "matmul")
    assert [record.tensors[each].shape for each in product.saved] == [(4, 8), (8, 8), (4, 8)]
    after = record.operators[record.operators.index(product) + 1 :]
    others = [each for each in after if each.part == "forward" and each.saved]
    # a Linear saves its input and its weight, a power its input
    assert [len(each.saved) for each in others] == ([2, 1] if kind is WithProduct else [1])


# what backward refuses, and what it leaves


class WritesSaved(Net):
    def forward(self, x: Tensor) -> Any:
        y = torch.relu(super().forward(x))
        return y.add_(1)


class WritesSavedInEachLayer(Net):
    def run_layer(self, layer: nn.Module, x: Tensor) -> Any:
        y = torch.relu(layer(x))
        y += 1
        return y


@pytest.mark.parametrize("kind", [WritesSaved, WritesSavedInEachLayer])
def test_a_saved_tensor_that_is_written_is_refused_as_on_a_device(kind: type[Net]) -> None:
    net, message = kind(), "modified by an inplace operation"
    with pytest.raises(RuntimeError, match=message):
        net(torch.ones(4, 8)).sum().backward()
    with pytest.raises(CannotTrace, match=message) as raised:
        step(net)
    assert "\n" not in str(raised.value)


class WritesUnsaved(Net):
    def forward(self, x: Tensor) -> Any:
        y = torch.relu(super().forward(x))
        y.data.add_(1)
        return (y + 1).mul_(2)


def test_a_tensor_that_backward_does_not_read_may_be_written() -> None:
    net = WritesUnsaved()
    net(torch.ones(4, 8)).sum().backward()
    assert step(net) == step(net, replay=False)


class DropsOutput(Net):
    def forward(self, x: Tensor) -> Any:
        y = self.first(x)
        torch.sigmoid(y)
        return y * 2


def test_an_output_that_is_dropped_ends_though_its_own_derivative_would_read_it() -> None:
    record = step(DropsOutput())
    sigmoid = next(each for each in record.kernels if each.name == "aten.sigmoid.default")
    assert sigmoid.frees == tuple(record.tensors[each].storage for each in sigmoid.writes)


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight


def test_a_loss_without_kernels_is_one_line() -> None:
    with pytest.raises(CannotTrace, match="run no kernel") as raised:
        llmsim.trace(Constant(), inputs=(torch.ones(4),), loss=lambda loss: loss, phase="train")
    assert "\n" not in str(raised.value)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return x + self.linear(x) * scale


class SharesParameter(Net):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))
        self.layers = nn.ModuleList(Scaled() for _ in range(4))

    def run_layer(self, layer: nn.Module, x: Tensor) -> Any:
        return layer(x, self.scale)


def test_a_step_leaves_no_hook_on_a_parameter() -> None:
    model = copy_without_weights(SharesParameter().train(), "net")
    run_step_with_inputs(
        model, (torch.ones(4, 8),), {}, Training(), loss=lambda output: output.sum()
    )
    assert not any(parameter._backward_hooks for parameter in model.module.parameters())
