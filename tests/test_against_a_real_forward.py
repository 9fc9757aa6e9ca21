"""Every module's shapes and calls are those of a real forward pass with real weights."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pytest
import torch

import llmsim_magic as llmsim
from tests.small import BATCH, CONFIGS, CONTEXT, ENCODERS, WORKLOADS, build, inputs

Shapes = list[tuple[int, ...]]


def shapes_in(value: Any) -> Iterator[tuple[int, ...]]:
    """The shape of every tensor in nested tuples, lists and mappings, in order."""
    if isinstance(value, torch.Tensor):
        yield tuple(value.shape)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from shapes_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from shapes_in(item)


@dataclass
class Seen:
    """What hooks saw of a real forward: shapes of each module's first call, and all calls."""

    inputs: dict[str, Shapes] = field(default_factory=dict)
    outputs: dict[str, Shapes] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)

    def before(self, path: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            self.calls[path] += 1
            self.inputs.setdefault(path, list(shapes_in((args, kwargs))))

        return hook

    def after(self, path: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
            self.outputs.setdefault(path, list(shapes_in(output)))

        return hook


def really_run(model: torch.nn.Module, *args: Any, **kwargs: Any) -> Seen:
    """What hooks see of one forward of the model on the CPU, with real weights."""
    seen = Seen()
    for path, module in model.named_modules():
        module.register_forward_pre_hook(seen.before(path), with_kwargs=True)
        module.register_forward_hook(seen.after(path))
    with torch.no_grad():
        model(*args, **kwargs)
    return seen


def differences(model: torch.nn.Module, seen: Seen, modules: pd.DataFrame) -> dict[str, Any]:
    """The modules whose row disagrees with what hooks saw: shapes in, shapes out, calls."""
    found = {}
    for path, _ in model.named_modules():
        real = (seen.inputs.get(path, []), seen.outputs.get(path, []), seen.calls[path])
        ours = tuple(modules.loc[path, ["input_shapes", "output_shapes", "calls"]])
        if ours != real:
            found[path] = {"real": real, "ours": ours}
    return found


@pytest.mark.parametrize(("name", "phase"), WORKLOADS)
def test_every_module_has_the_shapes_and_calls_of_a_real_forward(name: str, phase: str) -> None:
    model = build(name)
    keywords = inputs(name, phase, model)
    modules = llmsim.trace(CONFIGS[name](), phase=phase, batch=BATCH, context=CONTEXT).modules

    assert list(modules.index) == [path for path, _ in model.named_modules()]
    assert modules["type"].tolist() == [type(module).__name__ for module in model.modules()]
    assert not differences(model, really_run(model, **keywords), modules)


class GivenTwice(torch.nn.Module):
    """Hands one tensor to a module under two arguments, as SigLIP's pooling head does."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed = torch.nn.Bilinear(8, 8, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.mixed(x, input2=x)
        return y, y


class CalledTwice(torch.nn.Module):
    """Calls one module on two shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.linear(x[:1])


@pytest.mark.parametrize("module_class", [GivenTwice, CalledTwice])
def test_a_module_shows_every_tensor_of_its_first_call(module_class: type[Any]) -> None:
    model, x = module_class(), torch.zeros(2, 3, 8)
    modules = llmsim.trace(model, inputs=(x,)).modules
    assert not differences(model, really_run(model, x), modules)


@pytest.mark.parametrize("name", ENCODERS)
def test_decode_of_an_encoder_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(llmsim.LlmsimError, match="decode does not exist") as caught:
        llmsim.trace(CONFIGS[name](), phase="decode", batch=BATCH, context=CONTEXT)
    assert "\n" not in str(caught.value)
