"""A forward that returns before it has computed: generators are run, coroutines refused."""

import asyncio
import itertools
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import llmsim_magic as llmsim
from tests.helpers.real_forward import really_run

WIDTH, STEPS = 4, 3
X = torch.zeros(2, WIDTH)


class Lazy(nn.Module):
    """A module whose forward is a function of its linear layer and its input."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.function, self.lin = function, nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Any:
        return self.function(self.lin, x)


class Steps(nn.Module):
    """A forward that is itself a generator: one output a step, with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Iterator[Tensor]:
        for _ in range(STEPS):
            x = x + self.lin(x)
            yield x


class Outer(nn.Module):
    """A module that passes on the generator of its part."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = Steps()

    def forward(self, x: Tensor) -> Iterator[Tensor]:
        yield from self.steps(x)


def drained(value: Any) -> Any:
    """A list in place of each iterator, as the code of a user would read it."""
    if isinstance(value, Iterator):
        return [drained(each) for each in value]
    if isinstance(value, (tuple, list)):
        return [drained(each) for each in value]
    return {key: drained(each) for key, each in value.items()} if type(value) is dict else value


class Drained(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        return drained(self.module(x))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "generator": Steps,
    "of a part": Outer,
    "expression": lambda: Lazy(lambda lin, x: (lin(x) for _ in range(STEPS))),
    "map": lambda: Lazy(lambda lin, x: map(lin, [x] * STEPS)),
    "itertools": lambda: Lazy(lambda lin, x: itertools.islice(map(lin, itertools.repeat(x)), 3)),
    "in a tuple": lambda: Lazy(lambda lin, x: (x, (lin(x) for _ in range(STEPS)))),
    "in a dict": lambda: Lazy(lambda lin, x: {"steps": map(lin, [x] * STEPS)}),
    "of generators": lambda: Lazy(lambda lin, x: ((lin(x) for _ in range(n)) for n in (1, 2))),
}


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_a_generator_runs_to_its_end(make: Callable[[], nn.Module]) -> None:
    model = make()
    seen = really_run(Drained(model), X)
    report = llmsim.trace(model, inputs=X)
    assert report.ops.op.tolist().count("Linear") == STEPS
    assert report.summary.value["flops"] == seen.flops == STEPS * 2 * 2 * WIDTH * WIDTH
    assert report.modules.output_shapes.iloc[0] == seen.outputs[""]


def test_operators_of_a_generator_have_their_path_their_line_and_their_dependencies() -> None:
    ops = llmsim.trace(Steps(), inputs=X).ops
    assert ops.op.tolist() == ["Linear", "add"] * STEPS
    assert ops.path.tolist() == ["lin", ""] * STEPS
    assert all("test_lazy_forwards.py" in source for source in ops.source)
    assert set(ops.depends_on[2]) == {1}


def test_a_forward_without_iterators_returns_what_it_returned() -> None:
    output = [X, (X, {"x": X})]
    report = llmsim.trace(Lazy(lambda lin, x: output), inputs=X)
    assert report.modules.output_shapes.iloc[0] == [(2, WIDTH)] * 3


def test_an_endless_generator_is_refused() -> None:
    model = Lazy(lambda lin, x: (lin(x) for _ in itertools.count()))
    with pytest.raises(llmsim.LlmsimError, match="generator of more than 1,000 items"):
        llmsim.trace(model, inputs=X)


class Coroutine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(WIDTH, WIDTH)

    async def forward(self, x: Tensor) -> Any:
        return self.lin(x)


class AsynchronousSteps(Steps):
    async def forward(self, x: Tensor) -> AsyncIterator[Tensor]:  # type: ignore[override]
        yield self.lin(x)


@pytest.mark.parametrize("make", [Coroutine, AsynchronousSteps])
def test_an_asynchronous_forward_is_refused_without_a_warning(make: Callable[[], Any]) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(llmsim.LlmsimError, match=r"asynchronous \(async def\)") as caught:
            llmsim.trace(make(), inputs=X)
    assert not seen
    assert "\n" not in str(caught.value)


def test_a_forward_that_runs_an_asynchronous_part_is_traced() -> None:
    class Runs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Coroutine()

        def forward(self, x: Tensor) -> Any:
            return asyncio.run(self.part(x))

    report = llmsim.trace(Runs(), inputs=X)
    assert report.ops.op.tolist() == ["Linear"]
