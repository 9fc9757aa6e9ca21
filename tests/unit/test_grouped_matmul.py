"""The grouped matmul of experts on meta: forward, and the gradients of rows and weights."""

import pytest
import torch

from llmsim_magic.capture.meta.evaluation_modes import evaluating_partially

GROUPS, ROWS, WIDTH, OUT = 4, 16, 8, 24


def on_meta(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, dtype=torch.bfloat16, device="meta")


@pytest.mark.parametrize(
    ("rows", "weights", "is_grouped"),
    [
        (on_meta(ROWS, WIDTH), on_meta(GROUPS, OUT, WIDTH).transpose(1, 2), True),
        (on_meta(ROWS, WIDTH).t(), on_meta(ROWS, OUT), True),
        (on_meta(GROUPS, ROWS, WIDTH), on_meta(GROUPS * OUT, WIDTH).t(), True),
        (on_meta(GROUPS, ROWS, WIDTH), on_meta(GROUPS, OUT, WIDTH).transpose(1, 2), False),
    ],
)
def test_the_result_has_the_shape_of_the_meta_kernel_of_torch(
    rows: torch.Tensor, weights: torch.Tensor, is_grouped: bool
) -> None:
    ends = torch.empty(GROUPS, dtype=torch.int32, device="meta") if is_grouped else None
    expected = torch._grouped_mm(rows, weights, offs=ends)
    with evaluating_partially():
        found = torch._grouped_mm(rows, weights, offs=ends)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)


def test_the_gradient_of_weights_has_their_shape() -> None:
    weights = on_meta(GROUPS, OUT, WIDTH).requires_grad_()
    rows = on_meta(ROWS, WIDTH).requires_grad_()
    ends = torch.empty(GROUPS, dtype=torch.int32, device="meta")
    with evaluating_partially(), torch.enable_grad():
        torch._grouped_mm(rows, weights.transpose(1, 2), offs=ends).sum().backward()
    assert weights.grad is not None
    assert rows.grad is not None
    assert (weights.grad.shape, rows.grad.shape) == (weights.shape, rows.shape)
