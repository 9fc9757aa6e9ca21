"""Active parameters follow the router's choice, however the class multiplies its experts."""

import math
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import llmsim_magic as llmsim
from llmsim_magic.simulate.report import Report
from tests.helpers import small_models

EXPERTS, CHOSEN, WIDTH, INNER = 4, 2, 16, 24
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 100,
}


class Mixture(nn.Module):
    """A router and two stacks of expert matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.up = nn.Parameter(torch.zeros(EXPERTS, WIDTH, INNER))
        self.down = nn.Parameter(torch.zeros(EXPERTS, INNER, WIDTH))

    def gates(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = torch.topk(self.router(x).softmax(-1), CHOSEN, dim=-1)
        return torch.zeros(*x.shape[:-1], EXPERTS).scatter(-1, chosen, weights)


class Einsum(Mixture):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.einsum("bth,ehi->beti", x, self.up).relu()
        outer = torch.einsum("beti,eih->bteh", inner, self.down)
        return (outer * self.gates(x)[..., None]).sum(-2)


class Broadcast(Mixture):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outer = (x[:, None] @ self.up).relu() @ self.down
        return (outer * self.gates(x).transpose(1, 2)[..., None]).sum(1)


class Repeated(Mixture):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, WIDTH)
        routed = rows.repeat(EXPERTS, 1) * self.gates(rows).transpose(0, 1).reshape(-1, 1)
        inner = torch.bmm(routed.view(EXPERTS, -1, WIDTH), self.up).relu()
        return torch.bmm(inner, self.down).sum(0)


class Slices(Mixture):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gates = self.gates(x)
        outer = [(x @ self.up[e]).relu() @ self.down[e] for e in range(EXPERTS)]
        return torch.stack([y * gates[..., e, None] for e, y in enumerate(outer)]).sum(0)


class Rows(Mixture):
    """Stacks of two dimensions: one expert's matrix is a block of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(EXPERTS * INNER, WIDTH))
        self.down = nn.Parameter(torch.zeros(EXPERTS * INNER, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gates = self.gates(x)
        up, down = (each.view(EXPERTS, INNER, WIDTH) for each in (self.up, self.down))
        outer = [(x @ up[e].t()).relu() @ down[e] for e in range(EXPERTS)]
        return torch.stack([y * gates[..., e, None] for e, y in enumerate(outer)]).sum(0)


class Modules(Mixture):
    def __init__(self) -> None:
        super().__init__()
        del self.up, self.down
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gates = self.gates(x)
        return torch.stack(
            [expert(x) * gates[..., e, None] for e, expert in enumerate(self.experts)]
        ).sum(0)


class Routed(Modules):
    """Each expert reads the tokens that are routed to it alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, WIDTH)
        weights, chosen = torch.topk(self.router(rows).softmax(-1), CHOSEN, dim=-1)
        out = torch.zeros_like(rows)
        for e, expert in enumerate(self.experts):
            token, place = torch.where(chosen == e)
            out = out.index_add(0, token, expert(rows[token]) * weights[token, place, None])
        return out


def active_of(module: nn.Module) -> int:
    """The router, and the chosen share of the experts."""
    total = sum(parameter.numel() for parameter in module.parameters())
    router = WIDTH * EXPERTS
    return router + (total - router) * CHOSEN // EXPERTS


def dense_notes(report: Report) -> list[str]:
    return [note for note in report.remarks() if "runs all" in note]


@pytest.mark.parametrize("kind", [Einsum, Broadcast, Repeated, Slices, Rows, Modules])
def test_a_module_that_runs_every_expert_on_every_token_is_named(kind: type[nn.Module]) -> None:
    module = kind()
    report = llmsim.trace(module, inputs=torch.zeros(2, 8, WIDTH))
    assert report.summary.loc["parameters_active", "value"] == active_of(module)
    assert len(dense_notes(report)) == 1
    said = (
        f"{kind.__name__} runs all {EXPERTS} experts on every token; the model routes to {CHOSEN}"
    )
    assert dense_notes(report)[0].startswith(said)
    assert any(note.startswith(said) for note in report.notes)


def test_every_expert_that_runs_is_in_the_flops() -> None:
    report = llmsim.trace(Repeated(), inputs=torch.zeros(2, 8, WIDTH))
    router, experts = WIDTH * EXPERTS, 2 * WIDTH * INNER * EXPERTS
    assert report.summary.loc["flops", "value"] == 2 * 16 * (router + experts)


def test_a_module_that_runs_the_chosen_experts_alone_has_no_such_note() -> None:
    module = Routed()
    report = llmsim.trace(module, inputs=torch.zeros(2, 8, WIDTH))
    assert report.summary.loc["parameters_active", "value"] == active_of(module)
    assert dense_notes(report) == []


def test_a_router_over_as_many_tokens_as_layers_has_no_experts() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = torch.zeros(*ids.shape, WIDTH)
            for layer in self.layers:
                x = layer(x)
            return x[torch.arange(len(ids)), ids.argmax(-1)]

    module = Pooled()
    report = llmsim.trace(module, inputs=torch.zeros(2, 3, dtype=torch.long))
    assert report.summary.loc["parameters_active", "value"] == 3 * (WIDTH * WIDTH + WIDTH)


@pytest.mark.parametrize("chosen", [1, 2])
def test_llama_4_runs_every_expert_and_routes_to_some(chosen: int) -> None:
    config = transformers.Llama4TextConfig(
        **SIZES, intermediate_size_mlp=96, num_local_experts=4, num_experts_per_tok=chosen
    )
    report = llmsim.trace(config, context=24)
    found = report.summary["value"]
    idle = 2 * (4 - chosen) * 3 * 64 * 96  # layers, experts, matrices
    assert found["parameters"] - found["parameters_active"] == idle
    (note,) = dense_notes(report)
    assert note.startswith(
        f"transformers runs all 4 experts on every token; the model routes to {chosen}: "
    )
    sweep = llmsim.sweep(config, batch=1, context=(8, 16))
    assert note in sweep.notes


def test_scout_has_the_active_parameters_that_were_published() -> None:
    report = llmsim.trace(transformers.Llama4TextConfig(), phase="decode", context=15)
    assert report.summary.loc["parameters_active", "value"] == pytest.approx(17e9, rel=0.02)
    assert dense_notes(report) == [
        "transformers runs all 16 experts on every token; the model routes to 1: 17 B active"
    ]


@pytest.mark.parametrize("experts", ["eager", "batched_mm", "grouped_mm"])
def test_active_parameters_do_not_depend_on_the_implementation_of_experts(experts: str) -> None:
    config = transformers.MixtralConfig(**SIZES, num_local_experts=8, num_experts_per_tok=2)
    config._experts_implementation = experts
    report = llmsim.trace(config, context=24)
    found = report.summary["value"]
    assert found["parameters"] - found["parameters_active"] == 2 * 6 * 3 * 64 * 96
    assert dense_notes(report) == []


def test_a_mixture_of_attention_and_of_mlp_counts_both() -> None:
    sizes = {name: value for name, value in SIZES.items() if name != "num_attention_heads"}
    config = transformers.JetMoeConfig(
        **sizes, kv_channels=16, num_local_experts=4, num_experts_per_tok=2
    )
    report = llmsim.trace(config, context=24)
    stacks = [p for p in report.trace.parameters if len(p.shape) == 3]
    idle = sum(math.prod(p.shape) for p in stacks) // 2
    found = report.summary["value"]
    assert found["parameters"] - found["parameters_active"] == idle


@pytest.mark.parametrize(
    "options", [{}, {"lora": "r=2,targets=all-linear"}, {"qlora": True}, {"checkpointing": True}]
)
def test_a_training_step_uses_the_experts_that_its_forward_chooses(options: dict[str, Any]) -> None:
    """Adapters make the stacked weights anew in each pass; backward multiplies by gradients."""
    config = small_models.mixtral()
    step = llmsim.trace(config, phase="train", batch=2, context=8, **options).summary
    forward = llmsim.trace(config, batch=2, context=8).summary

    def unused(summary: Any) -> int:
        return int(summary.value["parameters"] - summary.value["parameters_active"])

    assert unused(step) == unused(forward) > 0
    said = "active per token: 2 of 4 experts, assuming balanced routing"
    assert step.means["parameters_active"] == said
