"""Recurrent layers in a training step: cuDNN's kernel and its derivative, with what they keep."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

import llmsim_magic as llmsim
from llmsim_magic.capture.meta.evaluation_modes import evaluating_partially

BATCH, TIME, WIDTH, HIDDEN = 2, 7, 8, 5
KINDS = {
    "lstm": nn.LSTM,
    "projected": lambda *sizes, **options: nn.LSTM(*sizes, proj_size=3, **options),
    "gru": nn.GRU,
    "rnn": nn.RNN,
}


def _gradients(kind: Any, device: str, *, packed: bool, **options: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    layer = kind(WIDTH, HIDDEN, 2, batch_first=True, device=device, **options)
    x = torch.zeros(BATCH, TIME, WIDTH, device=device, requires_grad=True)
    is_traced = device == "meta"
    with evaluating_partially(with_gradients=True) if is_traced else nullcontext():
        given: Any = x
        if packed:
            lengths = torch.tensor([TIME, 4])
            given = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        output, _ = layer(given)
        output = output.data if packed else output
        output.sum().backward()
    named = {**dict(layer.named_parameters()), "x": x}
    found = {name: each.grad.shape for name, each in named.items() if each.grad is not None}
    return found | {"output": output.shape}


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_weight_gets_a_gradient_as_on_a_cpu(
    kind: Any, bidirectional: bool, packed: bool
) -> None:
    options = {"packed": packed, "bidirectional": bidirectional}
    wanted = _gradients(kind, "cpu", **options)
    assert _gradients(kind, "meta", **options) == wanted


def test_the_derivative_of_an_lstm_is_one_kernel_of_twice_the_flops() -> None:
    """Products with 4 gates of `[hidden, width + hidden]` for each step of each sample."""

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(WIDTH, HIDDEN, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lstm(x)[0]

    report = llmsim.trace(
        Tagger(), inputs=torch.zeros(BATCH, TIME, WIDTH), phase="train", loss=torch.sum
    )
    flops = 2 * BATCH * TIME * 4 * HIDDEN * (WIDTH + HIDDEN)
    kernels = report.kernels.set_index("kernel")["flops"]
    assert kernels["aten.lstm.input"] == flops
    assert kernels["aten._cudnn_rnn_backward.default"] == 2 * flops
    kept = BATCH * TIME * HIDDEN * (4 + 1)  # gates and cell states
    saved = report.ops.loc[report.ops["pass"] == "forward", "saved_bytes"].sum()
    assert saved >= 4 * kept


def test_the_derivative_of_ctc_has_the_shape_of_its_scores() -> None:
    with evaluating_partially(with_gradients=True):
        scores = torch.empty(9, 2, 4, device="meta", requires_grad=True)
        loss = nn.functional.ctc_loss(
            scores.log_softmax(-1),
            torch.ones(2, 3, dtype=torch.long),
            torch.tensor([9, 9]),
            torch.tensor([3, 2]),
        )
        loss.backward()
    assert scores.grad is not None
    assert scores.grad.shape == scores.shape
