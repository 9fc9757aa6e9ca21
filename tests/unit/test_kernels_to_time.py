"""A kernel that is timed is described as the record of a pass describes the same call."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import llmsim_magic as llmsim
from llmsim_magic.analyses.torch_time.kernels import torch_kernels
from llmsim_magic.capture.measure.activation_kernels import (
    ACTIVATIONS,
    ROUTERS,
    SEVERAL_ROWS,
    Case,
    activation_job,
)
from llmsim_magic.capture.measure.bench import Bench
from llmsim_magic.capture.measure.product_kernels import (
    attention_job,
    attention_operands,
    batched_job,
    grouped_job,
    matmul_job,
)
from llmsim_magic.catalog import accelerators
from llmsim_magic.records.hardware.torch_kernel import TorchKernel

BENCH = Bench.on(torch.device("meta"), torch.bfloat16, 2**20)
H100 = accelerators.find("H100-SXM")


class _Call(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *operands: Tensor) -> Any:
        return self.function(*operands)


def _recorded(function: Callable[..., Any], *operands: Tensor) -> list[TorchKernel]:
    record = llmsim.trace(_Call(function), inputs=operands).trace.recorded
    return [kernel for kernels in torch_kernels(record, H100) for kernel in kernels]


@pytest.mark.parametrize(
    "case",
    [*ACTIVATIONS, *SEVERAL_ROWS, *ROUTERS],
    ids=lambda case: f"{case.name} {case.operands.__name__}",
)
def test_kernels_of_activations(case: Case) -> None:
    rows, width = 16, 512
    job = activation_job(case, BENCH, rows, width)
    operands = case.operands(BENCH, rows, width)
    assert _recorded(case.run, *operands) == [job.kernel]
    assert job.shapes == tuple(tuple(each.shape) for each in operands)


def test_matmuls() -> None:
    rows, weights = BENCH.random(16, 64), BENCH.weights(32, 64)[0]
    job = matmul_job(BENCH, 16, 32, 64)
    assert _recorded(functional.linear, rows, weights) == [job.kernel]
    assert job.runs[0]().shape == (16, 32)  # type: ignore[attr-defined]


def test_products_of_a_batch() -> None:
    left, right = BENCH.random(4, 16, 64), BENCH.random(4, 64, 32)
    assert _recorded(torch.bmm, left, right) == [batched_job(BENCH, 4, 16, 32, 64).kernel]


@pytest.mark.parametrize("rows", [2, 4, 64])
def test_products_of_experts(rows: int) -> None:
    x, weights = BENCH.random(rows, 64), BENCH.random(4, 32, 64).transpose(1, 2)
    ends = torch.arange(1, 5, dtype=torch.int32)
    job = grouped_job(BENCH, 4, rows, 32, 64)

    def multiply(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
        return functional.grouped_mm(x, weights, offs=ends)

    found = _recorded(multiply, x, weights, ends)
    assert found == [job.kernel]


@pytest.mark.parametrize("queries", [1, 16])
def test_attention(queries: int) -> None:
    size = (2, 4, 2, 16, queries, 16)
    job = attention_job(BENCH, size)
    attend = partial(
        functional.scaled_dot_product_attention, is_causal=queries > 1, enable_gqa=True
    )
    (found,) = _recorded(attend, *attention_operands(BENCH, size))
    assert found == replace(job.kernel, implementation=found.implementation)


def test_attention_that_reads_a_mask() -> None:
    size = (2, 4, 4, 16, 8, 8)
    job = attention_job(BENCH, size, is_masked=True)
    operands = attention_operands(BENCH, size, is_masked=True)
    (found,) = _recorded(functional.scaled_dot_product_attention, *operands)
    assert found.kind == "attention masked"
    assert found == replace(job.kernel, implementation=found.implementation)
