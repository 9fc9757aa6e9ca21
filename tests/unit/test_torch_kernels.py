"""The kernels of a pass as PyTorch starts them, and the implementation of attention it selects."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import llmsim_magic as llmsim
from llmsim_magic.analyses.time.kernel_sizes import StoredDtypes
from llmsim_magic.analyses.torch_time.attention_choice import attention_implementation
from llmsim_magic.analyses.torch_time.kernels import torch_kernels
from llmsim_magic.analyses.torch_time.launch_time import makes_masks
from llmsim_magic.catalog import accelerators
from llmsim_magic.records.hardware.torch_kernel import TorchKernel
from llmsim_magic.records.trace.recorded import Tensor
from llmsim_magic.records.trace.trace import Trace
from tests.helpers.small_models import CONFIGS

H100 = accelerators.find("H100-SXM5-80GB")


class Runs(nn.Module):
    """A module that runs a function on its input."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


def kernels_of(function: Callable[[Any], Any], x: Any) -> list[TorchKernel]:
    trace = llmsim.trace(Runs(function), inputs=x).trace
    return [kernel for kernels in torch_kernels(trace.recorded, H100) for kernel in kernels]


X = torch.ones(64, 32)
KINDS = {
    "addition": (lambda x: x + x, "pointwise"),
    "conversion": (lambda x: x.to(torch.bfloat16), "cast"),
    "addition of a row": (lambda x: x + x[:1], "strided"),
    "addition of a transposed matrix": (lambda x: x[:32] + x[:32].T, "strided"),
    "copy of a transposed matrix": (lambda x: x.T.contiguous(), "strided"),
    "cat": (lambda x: torch.cat((x, x)), "pointwise"),
    "cat of columns": (lambda x: torch.cat((x[:, 16:], x[:, :16]), -1), "joined"),
    "lookup": (lambda x: x[torch.tensor([3, 1])], "gathered"),
    "mean": (lambda x: x.mean(-1), "reduction"),
    "softmax": (lambda x: x.softmax(-1), "reduction"),
    "norm": (lambda x: nn.functional.layer_norm(x, (32,)), "reduction"),
    "sort": (lambda x: x.sort(-1).values, "sort"),
    "topk": (lambda x: x.topk(4).values, "topk"),
    "product": (lambda x: x @ x.T, "matmul"),
    "products": (lambda x: x.view(4, 16, 32) @ x.view(4, 32, 16), "matmul"),
}


@pytest.mark.parametrize(("function", "kind"), KINDS.values(), ids=KINDS)
def test_a_kernel_has_the_kind_that_its_operands_demand(
    function: Callable[[Any], Any], kind: str
) -> None:
    assert kernels_of(function, X)[-1].kind == kind


def test_a_product_is_known_by_its_rows_columns_and_length() -> None:
    [kernel] = kernels_of(lambda x: x.view(4, 16, 32) @ x.view(4, 32, 16), X)
    assert (kernel.products, kernel.shape) == (4, (16, 16, 32))
    assert kernel.flops == 2 * 4 * 16 * 16 * 32


def heads(count: int, tokens: int, width: int, dtype: str = "bfloat16") -> Tensor:
    shape = (1, count, tokens, width)
    itemsize = 4 if dtype == "float32" else 2
    strides = (count * tokens * width, tokens * width, width, 1)
    return Tensor(shape, dtype, itemsize, 0, 0, strides)


# Device, query heads, key heads, width, width of a value, dtype, whether a mask is read; as
# PyTorch's own rules have it.
SELECTED = [
    ("H100-SXM5-80GB", 16, 8, 128, 128, "bfloat16", False, "cudnn"),
    ("H100-SXM5-80GB", 16, 16, 128, 128, "bfloat16", True, "cudnn"),
    ("H100-SXM5-80GB", 16, 16, 192, 128, "bfloat16", False, "cudnn"),
    ("H100-SXM5-80GB", 16, 16, 512, 512, "bfloat16", False, "efficient"),
    ("H100-SXM5-80GB", 16, 16, 128, 128, "float32", False, "efficient"),
    ("B200-SXM", 16, 16, 192, 192, "bfloat16", False, "flash"),
    ("A100-SXM4-80GB", 16, 8, 128, 128, "float16", False, "flash"),
    ("A100-SXM4-80GB", 16, 16, 128, 128, "float16", True, "efficient"),
    ("A100-SXM4-80GB", 16, 8, 128, 128, "float16", True, "math"),
    ("A100-SXM4-80GB", 16, 16, 192, 128, "float16", False, "efficient"),
    ("T4", 16, 16, 64, 64, "float16", False, "efficient"),
    ("T4", 16, 16, 63, 63, "float16", False, "math"),
]


@pytest.mark.parametrize("case", SELECTED, ids=lambda case: f"{case[0]} {case[-1]}")
def test_attention_is_run_by_the_first_implementation_that_can(case: tuple[Any, ...]) -> None:
    device, queries, keys, width, value_width, dtype, has_mask, expected = case
    selected = attention_implementation(
        heads(queries, 64, width, dtype),
        heads(keys, 64, width, dtype),
        heads(keys, 64, value_width, dtype),
        accelerators.find(device).architecture,
        has_mask=has_mask,
    )
    assert selected == expected


@pytest.mark.parametrize(
    ("version", "makes"),
    [("5.17.0", True), ("5.17.0.dev0", True), ("5.18.0", False), ("5.24.0", False), ("", False)],
)
def test_releases_up_to_5_17_make_masks_while_captured(version: str, makes: bool) -> None:
    assert makes_masks("graph", version) is makes
    assert not makes_masks("eager", version)


def kinds_of(trace: Trace, **options: Any) -> list[TorchKernel]:
    return [
        kernel for kernels in torch_kernels(trace.recorded, H100, **options) for kernel in kernels
    ]


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_attention_that_reads_a_mask_has_its_keys_and_values_repeated(phase: str) -> None:
    batch, context = 2, 24
    config = CONFIGS["llama"]()
    trace = llmsim.trace(config, phase=phase, batch=batch, context=context, dtype="bfloat16").trace
    plain, masked = kinds_of(trace), kinds_of(trace, with_masks=True)
    groups = config.num_attention_heads // config.num_key_value_heads
    assert groups > 1
    [attention] = [kernel for kernel in plain if kernel.kind.startswith("attention")]
    [with_mask] = [kernel for kernel in masked if kernel.kind.startswith("attention")]
    keys = context + (phase == "decode")
    head_dim = attention.shape[2]
    added = Counter(masked) - Counter(plain)
    repeated = batch * config.num_attention_heads * keys * head_dim
    copies = {
        kernel: count
        for kernel, count in added.items()
        if kernel.kind == "strided" and kernel.elements == repeated
    }
    assert list(copies.values()) == [2]
    assert with_mask.bytes - attention.bytes == (
        2 * 2 * (groups - 1) * batch * config.num_key_value_heads * keys * head_dim
    )
    if phase == "prefill":
        assert (attention.kind, with_mask.kind) == ("attention", "attention masked")
        assert with_mask.flops == 2 * attention.flops
    else:
        assert attention.kind == with_mask.kind == "attention decode"


def test_weights_stored_in_four_bits_are_read_in_four_bits() -> None:
    trace = llmsim.trace(CONFIGS["llama"](), phase="decode", context=8, dtype="bfloat16").trace
    traced, stored = kinds_of(trace), kinds_of(trace, stored=StoredDtypes(weights="int4"))
    products = [kernel for kernel in traced if kernel.kind == "matmul"]
    shapes = [(columns, length) for _, columns, length in (each.shape for each in products)]
    # Up to transformers 5.17, the angles of rotary positions are an outer product.
    weights = sum(2 * columns * length for columns, length in shapes if length > 1)
    saved = sum(kernel.bytes for kernel in traced) - sum(kernel.bytes for kernel in stored)
    assert saved == pytest.approx(0.75 * weights)
    others = [kernel for kernel in traced if kernel.kind != "matmul"]
    assert others == [kernel for kernel in stored if kernel.kind != "matmul"]


def test_the_math_implementation_runs_products_mask_and_softmax_one_by_one() -> None:
    """Of grouped heads whose width no fused kernel of the device takes, in float32."""
    batch, queries_heads, key_heads, tokens, width = 2, 8, 2, 16, 63
    query = torch.ones(batch, queries_heads, tokens, width, dtype=torch.float16)
    key = torch.ones(batch, key_heads, tokens, width, dtype=torch.float16)

    def attend(inputs: Any) -> Any:
        return nn.functional.scaled_dot_product_attention(
            inputs[0], inputs[1], inputs[1], is_causal=True, enable_gqa=True
        )

    trace = llmsim.trace(Runs(attend), inputs=([query, key],)).trace
    [kernels] = torch_kernels(trace.recorded, accelerators.find("T4"))
    assert [kernel.kind for kernel in kernels] == (
        ["strided"] * 2
        + ["cast"] * 3
        + ["pointwise"] * 2
        + ["matmul", "strided", "reduction", "matmul", "cast"]
    )
    scores = batch * queries_heads * tokens * tokens
    assert sum(kernel.flops for kernel in kernels) == 2 * 2 * scores * width
    assert kernels[9].elements == scores
    assert {kernel.dtype for kernel in kernels if kernel.kind == "matmul"} == {"fp32"}
