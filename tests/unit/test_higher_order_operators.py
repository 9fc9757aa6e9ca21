"""Higher-order operators are traced as what they stand for, flex attention by its block mask."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch._higher_order_ops import associative_scan, scan, while_loop
from torch._higher_order_ops import map as higher_order_map
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import llmsim_magic as llmsim
from llmsim_magic.simulate.report import Report
from tests.helpers.global_state import assert_state_unchanged

ROWS = torch.zeros(3, 8)
LINEAR = 2 * 3 * 8 * 8  # of all rows
HEADS = torch.zeros(1, 2, 256, 16)
WHOLE = 2 * 2 * (2 * 256 * 256 * 16)  # two matmuls, two heads
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


class Forward(nn.Module):
    def __init__(self, body: Callable[[nn.Module, Tensor], Any], **held: Any) -> None:
        super().__init__()
        self.body, self.lin = body, nn.Linear(8, 8)
        vars(self).update(held)

    def forward(self, x: Tensor) -> Any:
        return self.body(self.lin, x)


def trace(body: Callable[[Any, Tensor], Any], x: Tensor = ROWS) -> Report:
    module = Forward(body).eval()
    with assert_state_unchanged(module):
        return llmsim.trace(module, inputs=x)


def flops(report: Report) -> int:
    return int(report.summary.value["flops"])


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (lambda lin, x: torch.cond(torch.tensor(True), lin, torch.sin, (x,)), LINEAR),
        (lambda lin, x: torch.cond(torch.tensor(False), lin, torch.sin, (x,)), 0),
        (lambda lin, x: torch.cond(x.sum() > 0, lin, lambda y: lin(y) + 1, (x,)), LINEAR),
        (
            lambda lin, x: while_loop(
                lambda i, y: i < 3, lambda i, y: (i + 1, lin(y)), (torch.tensor(0), x)
            ),
            3 * LINEAR,
        ),
        (lambda lin, x: higher_order_map(lin, x), LINEAR),
        (lambda lin, x: scan(lambda c, y: (c + lin(y), c.clone()), x[0], x), LINEAR),
        (lambda lin, x: lin(associative_scan(torch.add, x, 0)), LINEAR),
        (lambda lin, x: lin(associative_scan(torch.add, x, 0, combine_mode="generic")), LINEAR),
    ],
)
def test_a_higher_order_operator_counts_what_it_calls(
    body: Callable[[Any, Tensor], Any], wanted: int
) -> None:
    assert flops(trace(body)) == wanted


def test_the_outputs_have_the_shapes_of_those_of_a_real_call() -> None:
    def body(lin: Any, x: Tensor) -> Any:
        carried, outputs = scan(lambda c, y: (c + lin(y), (c * 2)[:4]), x[0], x)
        return carried, outputs, higher_order_map(lambda y: y[:5] * 2, x)

    real = [tuple(each.shape) for each in Forward(body)(ROWS)]
    assert real == [(8,), (3, 4), (3, 5)]
    assert trace(body).modules.output_shapes[""] == real


def test_a_branch_that_data_chooses_is_said() -> None:
    report = trace(lambda lin, x: torch.cond(x.sum() > 0, lin, torch.sin, (x,)))
    assert "is assumed to be False" in report.trace.notes[-1]


def test_an_operator_that_cannot_be_traced_is_named() -> None:
    class Unknown(torch._ops.HigherOrderOperator):
        def __init__(self) -> None:
            super().__init__("llmsim_unknown")

        def __call__(self, x: Tensor) -> Any:
            return super().__call__(x)

    unknown = Unknown()
    with pytest.raises(llmsim.LlmsimError, match=r"calls llmsim_unknown.*plain Python") as caught:
        trace(lambda lin, x: unknown(x))
    assert "object at" not in str(caught.value)


# flex attention


def causal(batch: Any, head: Any, query: Any, key: Any) -> Any:
    return query >= key


def test_flex_attention_without_a_mask_is_a_whole_attention() -> None:
    report = trace(lambda lin, x: flex_attention(x, x, x), HEADS)
    assert flops(report) == WHOLE
    attention = report.ops[report.ops.op == "flex_attention"]
    assert attention.output_shapes.iloc[0][0] == (1, 2, 256, 16)
    assert attention.flops.tolist() == [WHOLE]
    times = llmsim.trace(
        Forward(lambda lin, x: flex_attention(x, x, x)), inputs=HEADS, hardware="H100"
    )
    assert (times.latency.time_s > 0).all()
    assert report.summary.value["kernels_not_counted"] == 0


def test_a_known_block_mask_counts_the_blocks_that_it_keeps() -> None:
    def within(lin: Any, x: Tensor) -> Tensor:
        mask = create_block_mask(causal, None, None, 256, 256, device=x.device)
        return flex_attention(x, x, x, block_mask=mask)

    given = create_block_mask(causal, None, None, 256, 256, device="cpu")
    for body in (within, lambda lin, x: flex_attention(x, x, x, block_mask=given)):
        report = trace(body, HEADS)
        assert flops(report) == WHOLE * 3 // 4  # blocks of 128: three of four
        assert any("75.0% of the score matrix" in note for note in report.trace.notes)


def test_a_block_mask_of_data_counts_in_full_and_is_said() -> None:
    def body(lin: Any, x: Tensor) -> Tensor:
        def chosen(batch: Any, head: Any, query: Any, key: Any) -> Any:
            return x[batch, head, query, 0] > 0

        mask = create_block_mask(chosen, 1, 1, 256, 256, device=x.device)
        return flex_attention(x, x, x, block_mask=mask)

    report = trace(body, HEADS)
    assert flops(report) == WHOLE
    assert any("counted in full" in note for note in report.trace.notes)


@pytest.mark.parametrize(
    "body",
    [
        lambda lin, x: torch.compile(flex_attention)(x, x, x),
        lambda lin, x: flex_attention(x, x[:, :1], x[:, :1], enable_gqa=True),
        lambda lin, x: flex_attention(x, x, x, score_mod=lambda score, b, h, q, k: score + q - k),
    ],
    ids=["compiled", "grouped", "scores"],
)
def test_other_calls_of_flex_attention_count_alike(body: Callable[[Any, Tensor], Any]) -> None:
    assert flops(trace(body, HEADS)) == WHOLE


def test_a_live_model_with_flex_attention_is_traced_with_sdpa_and_says_so() -> None:
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=64,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    for phase in ("prefill", "decode"):
        model.set_attn_implementation("sdpa")
        wanted = llmsim.trace(model, context=8, phase=phase)
        model.set_attn_implementation("flex_attention")
        report = llmsim.trace(model, context=8, phase=phase)
        assert report.ops.equals(wanted.ops)
        assert report.trace.model.attention == "sdpa"
        assert any("flex_attention" in note for note in report.trace.notes)
        assert model.config._attn_implementation == "flex_attention"
