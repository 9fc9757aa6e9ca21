"""Shapes and calls of every module equal those of a real forward pass."""

from typing import Any

import pytest
import torch

import llmsim_magic as llmsim
from tests.helpers.real_forward import differences, really_run
from tests.helpers.small_models import BATCH, CONFIGS, CONTEXT, ENCODERS, WORKLOADS, build, inputs


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
