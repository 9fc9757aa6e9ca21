"""Backward passes and losses that fail, draw at random or end early: one line, and nothing left."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import llmsim_magic as llmsim
from llmsim_magic.records.errors import LlmsimError
from tests.helpers.global_state import assert_state_unchanged

X = torch.ones(2, 4)


class Hostile(nn.Module):
    """Does something in its backward."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.last = nn.Linear(4, 4)
        self.acts = [act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        act = self.acts[0]

        class Identity(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
                return x.view_as(x)

            @staticmethod
            def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
                act()
                return gradient

        return self.last(Identity.apply(self.first(x)))


def _summed(output: torch.Tensor) -> torch.Tensor:
    return output.sum()


def _raising(error: BaseException) -> Callable[..., Any]:
    def act(*args: Any) -> Any:
        raise error

    return act


def _trained(module: nn.Module, loss: Callable[[Any], Any] = _summed) -> Any:
    return llmsim.trace(module, inputs=X, phase="train", loss=loss).trace


@pytest.mark.parametrize(
    "error",
    [ValueError("the gate\nis shut"), RuntimeError("no"), AssertionError(), StopIteration()],
)
def test_a_backward_that_raises_is_one_line_that_says_so(error: Exception) -> None:
    module = Hostile(_raising(error))
    with assert_state_unchanged(module), pytest.raises(LlmsimError) as caught:
        _trained(module)
    line = str(caught.value)
    assert "\n" not in line
    assert "backward" in line
    assert type(error).__name__ in line


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interrupt_of_backward_goes_through_and_leaves_nothing(
    error: type[BaseException],
) -> None:
    module = Hostile(_raising(error()))
    with assert_state_unchanged(module), pytest.raises(error):
        _trained(module)
    module.acts[0] = lambda: None
    fresh = Hostile(lambda: None)
    assert [each.op for each in _trained(module).recorded.operators] == [
        each.op for each in _trained(fresh).recorded.operators
    ]


@pytest.mark.parametrize("draw", [lambda: torch.rand(3), random.random], ids=["torch", "python"])
def test_a_backward_that_draws_on_the_host_leaves_the_generator_where_it_was(
    draw: Callable[[], object],
) -> None:
    module = Hostile(draw)
    with assert_state_unchanged(module):
        _trained(module)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (_raising(KeyError("missing")), "missing"),
        (lambda output: output, "(2, 4)"),
        (lambda output: None, "NoneType"),
        (lambda output: 3.0, "float"),
        (lambda output: output.detach().sum(), "no parameter"),
    ],
    ids=["raises", "vector", "none", "number", "detached"],
)
def test_a_loss_that_is_none_is_one_line(loss: Callable[[Any], Any], words: str) -> None:
    module = Hostile(lambda: None)
    with assert_state_unchanged(module), pytest.raises(LlmsimError) as caught:
        _trained(module, loss)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_part_that_runs_without_gradients_gets_none() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                x = self.first(x)
            return self.last(x)

    module = Frozen()
    with assert_state_unchanged(module):
        trace = _trained(module)
    found = {each.name for each in trace.recorded.storages if each.role == "gradient"}
    assert found == {"last.weight", "last.bias"}


def test_a_write_into_a_leaf_is_refused_as_torch_does() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.lin.weight[0] = 1.0
            return self.lin(x)

    module = Writes()
    with assert_state_unchanged(module), pytest.raises(LlmsimError, match="leaf Variable"):
        _trained(module)


def test_a_leaf_that_a_forward_makes_gets_its_gradient_beside_the_weights() -> None:
    class Made(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            bias = torch.zeros(2, 4)
            bias.requires_grad = True
            other = torch.zeros(2, 4, requires_grad=True)
            return self.lin(x) + bias + other

    module = Made()
    with assert_state_unchanged(module):
        trace = _trained(module)
    found = {each.name for each in trace.recorded.storages if each.role == "gradient"}
    assert found == {"lin.weight", "lin.bias"}


def test_a_backward_that_reads_its_tensors_twice_is_one_line() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.lin(x).exp()
            y.sum().backward()
            return y

    module = Twice()
    with assert_state_unchanged(module), pytest.raises(LlmsimError) as caught:
        _trained(module)
    assert "\n" not in str(caught.value)


WRITES: dict[str, Callable[[torch.Tensor, torch.Tensor], object]] = {
    "rows": lambda zeros, x: zeros.__setitem__(slice(1, 2), x[:1]),
    "mask": lambda zeros, x: zeros.__setitem__(torch.tensor([True, False]), x[:1]),
    "sum": lambda zeros, x: zeros.__iadd__(x),
    "index_add": lambda zeros, x: zeros.index_add_(0, torch.tensor([1, 0]), x),
    "copy": lambda zeros, x: zeros.copy_(x),
    "copy to a view": lambda zeros, x: zeros[:1].copy_(x[:1]),
    "scatter": lambda zeros, x: zeros.scatter_(1, torch.tensor([[0], [1]]), x[:, :1]),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_what_is_written_into_known_values_gets_its_gradient(
    write: Callable[[torch.Tensor, torch.Tensor], object],
) -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            zeros = torch.zeros(2, 4)
            write(zeros, self.lin(x))
            return zeros * 2

    trace = _trained(Writes())
    gradients = {each.name for each in trace.recorded.storages if each.role == "gradient"}
    assert gradients == {"lin.weight", "lin.bias"}


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.quantile(x, torch.tensor([0.5, 0.2])),
        lambda x: torch.stft(
            x.flatten().repeat(64), 16, window=torch.hann_window(16), return_complex=True
        ).abs(),
    ],
    ids=["quantile", "stft"],
)
def test_a_function_of_known_and_unknown_values_keeps_its_derivative(
    function: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return function(self.lin(x))

    trace = _trained(Mixed())
    gradients = {each.name for each in trace.recorded.storages if each.role == "gradient"}
    assert gradients == {"lin.weight", "lin.bias"}
