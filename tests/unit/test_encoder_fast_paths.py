"""Encoders of torch are traced by the kernels that run where gradients are on, and say so."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import llmsim_magic as llmsim
from tests.helpers.global_state import assert_state_unchanged
from tests.helpers.real_forward import really_run, shapes_in

WIDTH, HEADS, HIDDEN, BATCH, TIME = 32, 4, 64, 2, 10
X = torch.randn(BATCH, TIME, WIDTH)
RIGHT, LEFT = torch.zeros(BATCH, TIME, dtype=torch.bool), torch.zeros(BATCH, TIME, dtype=torch.bool)
RIGHT[1, 8:], LEFT[1, :2] = True, True
LAYER = 2 * BATCH * TIME * (4 * WIDTH**2 + 2 * WIDTH * HIDDEN) + 4 * BATCH * TIME**2 * WIDTH
CROSS = 2 * BATCH * TIME * 4 * WIDTH**2 + 4 * BATCH * TIME**2 * WIDTH
NOTE = "where gradients are on"


def layer(**options: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, **{"batch_first": True} | options)


class Classifier(nn.Module):
    """Token ids, embedded and encoded with the mask of their padding, as a tutorial has it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, WIDTH, padding_idx=0)
        self.encoder, self.head = nn.TransformerEncoder(layer(), 2), nn.Linear(WIDTH, 3)

    def forward(self, ids: Tensor) -> Tensor:
        encoded: Tensor = self.encoder(self.embed(ids), src_key_padding_mask=ids == 0)
        logits: Tensor = self.head(encoded.mean(1))
        return logits


IDS = torch.randint(1, 50, (BATCH, TIME)).masked_fill(RIGHT, 0)
ENCODERS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], int]] = {
    "layer": (layer, {"src": X}, LAYER),
    "layer with padding": (layer, {"src": X, "src_key_padding_mask": RIGHT}, LAYER),
    "encoder": (lambda: nn.TransformerEncoder(layer(), 2), {"src": X}, 2 * LAYER),
    "encoder with padding": (
        lambda: nn.TransformerEncoder(layer(), 2),
        {"src": X, "src_key_padding_mask": RIGHT},
        2 * LAYER,
    ),
    "padding on the left": (
        lambda: nn.TransformerEncoder(layer(), 2),
        {"src": X, "src_key_padding_mask": LEFT},
        2 * LAYER,
    ),
    "an encoder that trusts its mask": (
        lambda: nn.TransformerEncoder(layer(), 2, mask_check=False),
        {"src": X, "src_key_padding_mask": RIGHT},
        2 * LAYER,
    ),
    "transformer": (
        lambda: nn.Transformer(WIDTH, HEADS, 2, 2, HIDDEN, batch_first=True),
        {"src": X, "tgt": X, "src_key_padding_mask": RIGHT},
        4 * LAYER + 2 * CROSS,
    ),
    "classifier": (Classifier, {"ids": IDS}, 2 * LAYER + 2 * BATCH * WIDTH * 3),
    "attention": (
        lambda: nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
        {"query": X, "key": X, "value": X, "key_padding_mask": RIGHT, "need_weights": False},
        CROSS,
    ),
    "attention with weights": (
        lambda: nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
        {"query": X, "key": X, "value": X},
        CROSS,
    ),
}


@pytest.fixture
def slow_path() -> Iterator[None]:
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(enabled)


@pytest.mark.parametrize(("make", "given", "flops"), ENCODERS.values(), ids=ENCODERS)
def test_an_encoder_costs_what_it_computes_where_gradients_are_on(
    make: Callable[[], nn.Module], given: dict[str, Any], flops: int
) -> None:
    model = make().eval()
    with assert_state_unchanged(model), torch.no_grad():
        report = llmsim.trace(model, inputs=given)
    assert report.summary.value["flops"] == flops
    assert any(NOTE in note for note in report.trace.notes)


@pytest.mark.usefixtures("slow_path")
@pytest.mark.parametrize(("make", "given", "flops"), ENCODERS.values(), ids=ENCODERS)
def test_it_has_the_flops_and_shapes_of_a_real_forward_without_the_fast_path(
    make: Callable[[], nn.Module], given: dict[str, Any], flops: int
) -> None:
    model = make().eval()
    seen, report = really_run(model, **given), llmsim.trace(model, inputs=given)
    assert report.summary.value["flops"] == seen.flops == flops
    assert report.modules.output_shapes.iloc[0] == list(shapes_in(seen.output))
    assert not any(NOTE in note for note in report.trace.notes)


@pytest.mark.parametrize(
    "make",
    [
        lambda: layer(batch_first=False),
        lambda: nn.TransformerEncoderLayer(30, 3, HIDDEN, batch_first=True),
        lambda: nn.Linear(WIDTH, WIDTH),
    ],
    ids=["time first", "an odd number of heads", "no attention"],
)
def test_a_module_without_a_fast_path_has_no_note(make: Callable[[], nn.Module]) -> None:
    model = make()
    width = next(model.parameters()).shape[-1]
    report = llmsim.trace(model, inputs=torch.randn(BATCH, TIME, width))
    assert not any(NOTE in note for note in report.trace.notes)
