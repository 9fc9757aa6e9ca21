"""Steps of models whose layers may not be replayed are those that ran."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import llmsim_magic as llmsim
from llmsim_magic.capture.configs.resolve import ConfigSource
from llmsim_magic.capture.models.meta_model import from_config
from llmsim_magic.capture.train.step import run_step
from llmsim_magic.capture.train.trainable import trainable
from llmsim_magic.records.trace.recorded import Record
from llmsim_magic.records.trace.training import Training
from llmsim_magic.records.trace.workload import Workload


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.lin(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.layers = nn.ModuleList(Layer() for _ in range(6))

    def run(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.first(x))


class Twice(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.run(self.first(x)))


class OuterResidual(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = x + layer(x)
        return x


class LossOnEach(Net):
    def forward(self, x: Tensor) -> Tensor:
        x, found = self.first(x), []
        for layer in self.layers:
            x = layer(x)
            found.append(x)
        return torch.stack(found)


class LossOnFirst(Net):
    """The gradient of the second layer's input is summed among the layer's own nodes."""

    def forward(self, x: Tensor) -> Tensor:
        x, found = self.first(x), []
        for layer in self.layers:
            x = layer(x)
            found.append(x)
        return x + found[0]


class LossBeside(Net):
    """The gradient of the second layer's input is summed by what else reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.beside = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](self.first(x))
        beside = self.beside(x)
        for layer in self.layers[1:]:
            x = layer(x)
        return x + beside


class ParametersBetween(Net):
    """The gradients of parameters are taken from those between layers, where no operator runs."""

    before: tuple[int, ...] = tuple(range(6))

    def __init__(self) -> None:
        super().__init__()
        self.between = nn.ParameterList(torch.ones(4, 8) for _ in self.layers)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for place, layer in enumerate(self.layers):
            x = layer(x + self.between[place] if place in self.before else x)
        return x


class ParameterBeforeSecond(ParametersBetween):
    before = (1,)


class ParameterBeforeFourth(ParametersBetween):
    before = (3,)


class Cut(Net):
    """Its views of the last layer's output run no kernel; their backward does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :4]


class ViewingLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x[:, 2:6])


class Viewing(Net):
    """Each layer views the output of the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ViewingLayer() for _ in range(6))


class Penalty(Net):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        y = self.run(hidden)
        (gradient,) = torch.autograd.grad(y.sum(), hidden, create_graph=True)
        return y + gradient


class Tied(Net):
    def __init__(self) -> None:
        super().__init__()
        for layer in self.layers:
            layer.lin.weight = self.layers[0].lin.weight


class Hooked(Net):
    """Reads what a hook caught inside each layer, as router logits are caught."""

    def forward(self, x: Tensor) -> Tensor:
        caught: list[Tensor] = []
        handles = [
            layer.lin.register_forward_hook(lambda *given: caught.append(given[-1]))
            for layer in self.layers
        ]
        y = super().forward(x)
        for handle in handles:
            handle.remove()
        return y + torch.stack(caught).sum(0)


class OutputLayer(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x)


class HookedOutput(Hooked):
    """Reads what is the output of each layer as well."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(OutputLayer() for _ in range(6))


class RandomLayer(Layer):
    def forward(self, x: Tensor) -> Tensor:
        once = super().forward(x)
        return once if torch.rand(()) < 0.5 else super().forward(once)


class Random(Net):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(RandomLayer() for _ in range(10))


MODELS = [
    *(Net, Twice, Tied, Penalty, Hooked, HookedOutput, Random),
    *(OuterResidual, LossOnEach, LossOnFirst, LossBeside),
    *(ParametersBetween, ParameterBeforeSecond, ParameterBeforeFourth),
    *(Cut, Viewing),
]


def step(net: Net, *, replay: bool = True) -> Record:
    loss: dict[str, Any] = {"loss": lambda output: output.pow(2).mean(), "phase": "train"}
    return llmsim.trace(net, inputs=(torch.ones(4, 8),), replay=replay, **loss).trace.recorded


@pytest.mark.parametrize("kind", MODELS)
def test_a_step_with_replay_is_the_one_that_ran(kind: type[Net]) -> None:
    net = kind()
    assert step(net) == step(net, replay=False)


@pytest.mark.parametrize(
    ("kind", "makers"),
    [
        (Cut, {"": "layers.5"}),
        (
            Viewing,
            {"layers.0": "first"} | {f"layers.{n}": f"layers.{n - 1}.lin" for n in range(1, 6)},
        ),
    ],
)
def test_the_backward_of_a_view_belongs_to_what_wrote_the_viewed_tensor(
    kind: type[Net], makers: dict[str, str]
) -> None:
    operators = step(kind()).operators
    assert makers == {
        each.path: operators[each.backward_of].path
        for each in operators
        if each.op == "getitem" and each.backward_of is not None
    }


def test_the_loss_of_routers_reads_the_logits_of_every_layer() -> None:
    from transformers import MixtralConfig

    config = MixtralConfig(
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=6,
        vocab_size=64,
        num_local_experts=4,
        output_router_logits=True,
        architectures=["MixtralForCausalLM"],
    )
    model = trainable(from_config(ConfigSource("moe", config, "test")), Training())
    record = run_step(model, Workload("train", 2, 8), Training()).recorded
    (loss,) = [
        operator
        for operator in record.operators
        if operator.op == "load_balancing_loss_func" and operator.part == "forward"
    ]
    assert len(loss.inputs) == 6
