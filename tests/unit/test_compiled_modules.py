"""What `torch.compile` wraps is traced as it is written: nothing is compiled, nothing warns."""

import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from torch import Tensor, nn
from transformers import LlamaForCausalLM

import llmsim_magic as llmsim
from llmsim_magic.notebook.variables import find_model
from llmsim_magic.records.errors import InvalidValue
from tests.helpers import small_models
from tests.helpers.global_state import assert_state_unchanged
from tests.helpers.shells import NO_HISTORY

WIDTH = 8
X = torch.zeros(2, WIDTH)


class Plain(nn.Module):
    """A linear layer and a ReLU, by a helper method."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(WIDTH, WIDTH)

    def helper(self, x: Tensor) -> Tensor:
        return torch.relu(self.lin(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.helper(x)


class Decorated(Plain):
    forward = torch.compile(Plain.forward, dynamic=True)


class DecoratedHelper(Plain):
    helper = torch.compile(Plain.helper)


class HoldsFunction(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.function = torch.compile(super().helper, fullgraph=True)

    def helper(self, x: Tensor) -> Tensor:
        return self.function(x)


class CompilesWhenItRuns(Plain):
    def helper(self, x: Tensor) -> Tensor:
        return torch.relu(torch.compile(self.lin)(x))


class ForwardOfPart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Plain()
        self.forward = torch.compile(self.part).forward


def _patched(**options: Any) -> nn.Module:
    module = Plain()
    module.forward = torch.compile(module.forward, **options)  # type: ignore[method-assign]
    return module


MODULES: dict[str, Callable[[], Any]] = {
    "module": lambda: torch.compile(Plain()),
    "module, twice": lambda: torch.compile(torch.compile(Plain())),
    "forward": lambda: torch.compile(Plain().forward),
    "forward, not compiled": lambda: Plain().forward,
    "forward in its place": _patched,
    "forward, as for generation": lambda: _patched(mode="reduce-overhead", fullgraph=True),
    "forward of a part": lambda: nn.Sequential(_patched(backend="eager")),
    "forward of a compiled part": ForwardOfPart,
    "forward of the class": Decorated,
    "helper": DecoratedHelper,
    "function": HoldsFunction,
    "in the forward": CompilesWhenItRuns,
    "disabled": lambda: torch.compiler.disable(Plain()),
}


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_a_compiled_module_is_traced_as_it_is_written(make: Callable[[], Any]) -> None:
    model = make()
    with warnings.catch_warnings(record=True) as seen, assert_state_unchanged():
        warnings.simplefilter("always")
        report = llmsim.trace(model, inputs=X)
    assert not [str(each.message) for each in seen]
    assert report.ops.op.tolist() == ["Linear", "relu"]
    assert report.ops.params.sum() == WIDTH * (WIDTH + 1)
    assert report.summary.value["flops"] == 2 * 2 * WIDTH * WIDTH


def test_a_method_that_is_no_forward_is_refused() -> None:
    with pytest.raises(llmsim.LlmsimError, match="model must be a hub id"):
        llmsim.trace(torch.compile(Plain().helper), inputs=X)


class Fails(Plain):
    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def helper(self, x: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_compilation_is_on_again_after_a_failed_trace(error: type[BaseException]) -> None:
    compiled: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward  # type: ignore[no-any-return]

    with pytest.raises((llmsim.LlmsimError, KeyboardInterrupt)):
        llmsim.trace(Fails(error), inputs=X)
    torch.compile(torch.relu, backend=backend)(X)
    assert compiled


def test_traces_in_threads_leave_compilation_on() -> None:
    threads = [
        threading.Thread(target=llmsim.trace, args=(Decorated(),), kwargs={"inputs": X})
        for _ in range(4)
    ]
    with assert_state_unchanged():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("name", ["compiled", "method", "model.forward"])
def test_a_variable_may_hold_the_forward_of_a_module(name: str) -> None:
    model = LlamaForCausalLM(small_models.llama())
    shell = InteractiveShell(config=NO_HISTORY)
    shell.run_line_magic("load_ext", "llmsim_magic")
    shell.user_ns |= {
        "model": model,
        "compiled": torch.compile(model.forward),
        "method": model.forward,
    }
    report = shell.run_line_magic("llmsim", f"{name} --context 4 ;")
    assert report.trace.model.class_name == type(model).__name__
    assert repr(llmsim.panel(shell.user_ns["compiled"]))


@pytest.mark.parametrize(
    "value", [Plain().helper, torch.compile(Plain().helper), small_models.qwen3]
)
def test_a_variable_that_holds_another_function_is_refused(value: Any) -> None:
    with pytest.raises(InvalidValue, match="holds an object of type"):
        find_model("value", {"value": value})
