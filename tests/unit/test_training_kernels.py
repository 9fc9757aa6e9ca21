"""Work, bytes and launches of the kernels that only training has, from their definitions."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch

import llmsim_magic as llmsim
from llmsim_magic.analyses.cost.traffic import kernel_bytes
from llmsim_magic.analyses.kernels.elementwise_work import (
    causal_skippable_flops,
    elementwise_ops,
    kernels_without_formula,
)
from llmsim_magic.analyses.torch_time.kernel_time import kernel_time
from llmsim_magic.analyses.torch_time.kernels import torch_kernels
from llmsim_magic.analyses.torch_time.training_kernels import launches_over_lists
from llmsim_magic.capture.kernels.kernel_facts import facts
from llmsim_magic.catalog import accelerators
from llmsim_magic.catalog.torch_calibration import torch_calibration
from llmsim_magic.records.hardware.torch_kernel import TorchKernel
from llmsim_magic.records.trace.recorded import Kernel, Operator, Record, Storage, Tensor
from llmsim_magic.records.trace.trace import Trace
from tests.helpers.small_models import CONFIGS

H100 = accelerators.find("H100-SXM5-80GB")
aten = torch.ops.aten
Shape = tuple[int, ...]
ROWS, WIDTH, VOCAB = 12, 20, 90


def tensor(shape: Shape, storage: int, itemsize: int = 4) -> Tensor:
    strides = tuple(math.prod(shape[place + 1 :]) for place in range(len(shape)))
    return Tensor(shape, "float32" if itemsize == 4 else "int64", itemsize, storage, 0, strides)


def written_places(name: str, read: int, written: int) -> tuple[int, ...]:
    """The arguments that a kernel writes; a fused update leaves the second list as it is."""
    if "_fused_" not in name:
        return tuple(range(written))
    length = read // 5  # parameters, gradients, two moments and counters of steps
    return (*range(length), *range(2 * length, 4 * length))


def record_of(
    op: Any, read: Sequence[Shape], made: Sequence[Shape] = (), *, written: int = 0, **facts_of: Any
) -> Record:
    """One kernel on float32 tensors; those of the shape (-n,) hold n indices in int64.

    Args:
        op: Its `OpOverload`.
        read: Shapes of its arguments.
        made: Shapes of its results.
        written: How many of the arguments it writes in place, from the first.
        facts_of: Other attributes of the kernel.
    """
    shapes = [*read, *made]
    tensors = tuple(
        tensor((-shape[0],), place, 8) if shape[:1] and shape[0] < 0 else tensor(shape, place)
        for place, shape in enumerate(shapes)
    )
    known = facts(op)
    outputs = tuple(range(len(read), len(shapes)))
    kernel = Kernel(
        name=known.name,
        operator=0,
        inputs=tuple(range(len(read))),
        outputs=outputs,
        writes=written_places(known.name, len(read), written) or outputs,
        is_view=False,
        pointwise=known.is_pointwise,
        causal=facts_of.get("causal", False),
        flops=facts_of.get("flops"),
    )
    return Record(
        storages=tuple(Storage(each.nbytes, "activation", None) for each in tensors),
        tensors=tensors,
        kernels=(kernel,),
        operators=(Operator("", "op", "function", (), (), None, part="backward"),),
        calls=(),
        results=(),
    )


def launched(record: Record) -> tuple[TorchKernel, ...]:
    return torch_kernels(record, H100)[0]


MATRIX, SCORES, ROW, SCALAR = (ROWS, WIDTH), (ROWS, VOCAB), (WIDTH,), ()
LISTS = ((3, 5), (7,), (2, 2))  # 26 elements
# Kernel, arguments, results, arguments written in place → operations, elements read and written.
WORK = {
    "a dropped element is compared, and scaled": (
        (aten.native_dropout.default, (MATRIX,), (MATRIX,)),
        (ROWS * WIDTH, ROWS * WIDTH, ROWS * WIDTH),
    ),
    "y · (g − Σ g · y)": (
        (aten._softmax_backward_data.default, (SCORES, SCORES), (SCORES,)),
        (4 * ROWS * VOCAB, 2 * ROWS * VOCAB, ROWS * VOCAB),
    ),
    "g − exp(y) · Σ g": (
        (aten._log_softmax_backward_data.default, (SCORES, SCORES), (SCORES,)),
        (4 * ROWS * VOCAB, 2 * ROWS * VOCAB, ROWS * VOCAB),
    ),
    "layer norm": (
        (
            aten.native_layer_norm_backward.default,
            (MATRIX, MATRIX, (ROWS, 1), (ROWS, 1), ROW),
            (MATRIX, ROW, ROW),
        ),
        (13 * ROWS * WIDTH, 2 * ROWS * WIDTH + 2 * ROWS + WIDTH, ROWS * WIDTH + 2 * WIDTH),
    ),
    "zeros in the shape of the input": (
        (aten.slice_backward.default, (MATRIX,), ((ROWS, 2 * WIDTH),)),
        (0, ROWS * WIDTH, 2 * ROWS * WIDTH),
    ),
    "every list is read and written once": (
        (aten._foreach_addcdiv_.ScalarList, 3 * LISTS, (), 3),
        (26, 3 * 26, 26),
    ),
    "a copy reads the second list alone": (
        (aten._foreach_copy_.default, 2 * LISTS, (), 3),
        (0, 26, 26),
    ),
    "zeros read nothing": ((aten._foreach_zero_.default, LISTS, (), 3), (0, 0, 26)),
    "roots are new tensors": ((aten._foreach_sqrt.default, LISTS, LISTS), (26, 26, 26)),
    "one kernel updates parameters and two moments": (
        (aten._fused_adamw_.default, (*LISTS, *LISTS, *LISTS, *LISTS, *3 * (SCALAR,)), ()),
        (15 * 26, 4 * 26 + 3, 3 * 26),
    ),
    "a norm is a number of each tensor": (
        (aten._foreach_norm.Scalar, LISTS, (SCALAR, SCALAR, SCALAR)),
        (26, 26, 3),
    ),
}


@pytest.mark.parametrize(("call", "expected"), WORK.values(), ids=WORK)
def test_work_and_bytes_follow_from_the_definition(call: Any, expected: tuple[int, ...]) -> None:
    op, read, made, *written = call
    record = record_of(op, read, made, written=written[0] if written else 0)
    moved = kernel_bytes(record, record.kernels[0])
    operations, elements_read, elements_written = expected
    assert elementwise_ops(record, record.kernels[0]) == operations
    assert moved == (4 * elements_read, 4 * elements_written)


def test_a_loss_picks_one_score_of_each_row_and_its_derivative_reads_none() -> None:
    forward = record_of(aten.nll_loss_forward.default, (SCORES, (-ROWS,)), (SCALAR, SCALAR))
    assert kernel_bytes(forward, forward.kernels[0]) == (4 * ROWS + 8 * ROWS, 8)
    read = (SCALAR, SCORES, (-ROWS,), SCALAR)
    backward = record_of(aten.nll_loss_backward.default, read, (SCORES,))
    assert kernel_bytes(backward, backward.kernels[0]) == (8 + 8 * ROWS, 4 * ROWS * VOCAB)


def test_an_embedding_adds_each_gradient_and_writes_the_whole_table() -> None:
    table = (VOCAB, WIDTH)
    record = record_of(aten.embedding_dense_backward.default, (MATRIX, (-ROWS,)), (table,))
    assert kernel_bytes(record, record.kernels[0]) == (
        4 * ROWS * WIDTH + 8 * ROWS,
        4 * VOCAB * WIDTH,
    )
    assert elementwise_ops(record, record.kernels[0]) == ROWS * WIDTH


def attention_record(*, causal: bool) -> Record:
    heads = (2, 3, 16, 8)
    read = (heads,) * 5 + ((2, 3, 16),)
    flops = 5 * 2 * 2 * 3 * 16 * 16 * 8
    op = aten._scaled_dot_product_flash_attention_backward.default
    return record_of(op, read, (heads,) * 3, causal=causal, flops=flops)


def test_the_derivative_of_attention_is_five_products_and_skips_what_a_causal_mask_hides() -> None:
    record = attention_record(causal=True)
    skippable = causal_skippable_flops(record, record.kernels[0])
    assert skippable == 5 * 2 * 2 * 3 * (16 * 15 // 2) * 8
    whole, causal = (launched(attention_record(causal=each))[-1] for each in (False, True))
    assert whole.kind == "attention backward"
    assert whole.flops == 2 * causal.flops == record.kernels[0].flops
    assert (whole.shape, whole.products) == ((16, 16, 8), 6)


@pytest.mark.parametrize(
    ("sizes", "lists", "expected"),
    [
        pytest.param([1] * 111, 1, 2, id="110 tensors of one list fill a launch"),
        pytest.param([1] * 110, 1, 1, id="not more than one for just as many"),
        pytest.param([1] * 111, 3, 3, id="48 tensors of three lists do"),
        pytest.param([65_536 * 320], 2, 1, id="320 blocks fill a launch"),
        pytest.param([65_536 * 320 + 1], 2, 2, id="one more element starts another"),
        pytest.param([65_536 * 200, 65_536 * 200], 4, 2, id="a tensor may lie in two launches"),
        pytest.param([], 2, 0, id="no tensors, no launch"),
    ],
)
def test_a_kernel_over_lists_is_launched_in_chunks(
    sizes: list[int], lists: int, expected: int
) -> None:
    assert launches_over_lists(sizes, lists) == expected


def test_launches_over_lists_share_the_bytes_of_their_op() -> None:
    sizes = ((65_536, 400), (5,))
    elements = 65_536 * 400 + 5
    (kernel,) = launched(record_of(aten._foreach_mul_.Scalar, sizes, written=2))
    assert kernel.launches == launches_over_lists([65_536 * 400, 5], 1) == 2
    assert (kernel.bytes, kernel.elements) == (2 * 4 * elements, elements)
    constants = torch_calibration().constants
    time = kernel_time(kernel, H100, constants)
    half = replace(kernel, bytes=kernel.bytes // 2, elements=elements // 2, launches=1)
    assert time.seconds == pytest.approx(2 * kernel_time(half, H100, constants).seconds, rel=1e-3)


def test_a_layer_norm_reads_gradient_and_input_for_each_of_two_kernels() -> None:
    read = (MATRIX, MATRIX, (ROWS, 1), (ROWS, 1), ROW)
    record = record_of(aten.native_layer_norm_backward.default, read, (MATRIX, ROW, ROW))
    assert [kernel.bytes for kernel in launched(record)] == [
        3 * 4 * ROWS * WIDTH,
        2 * 4 * ROWS * WIDTH,
    ]


@pytest.mark.parametrize(("width", "expected"), [(64, 16), (62, 8), (61, 4)])
def test_a_product_knows_the_alignment_of_the_rows_that_it_reads(width: int, expected: int) -> None:
    read, made = ((ROWS, width), (width, 8)), ((ROWS, 8),)
    record = record_of(aten.mm.default, read, made, flops=2 * ROWS * width * 8)
    assert [kernel.alignment for kernel in launched(record)] == [expected]  # of float32


def test_each_halving_of_the_alignment_slows_tensor_cores_by_the_same_factor() -> None:
    constants = torch_calibration().constants
    product = TorchKernel(
        kind="matmul",
        bytes=0,
        elements=1,
        flops=2 * 4096**3,
        shape=(4096, 4096, 4096),
    )
    work = [
        kernel_time(replace(product, alignment=alignment), H100, constants).work_s
        for alignment in (16, 8, 4, 2)
    ]
    factors = [slower / faster for faster, slower in pairwise(work)]
    cycles = H100.unit_cycles_per_s
    assert cycles is not None
    least = constants.misaligned_flops * cycles / H100.peak("bf16")
    assert least == pytest.approx(0.119, abs=0.001)  # as was measured on it
    assert factors == pytest.approx([least ** (-1 / 3)] * 3)
    narrow = replace(product, dtype="fp32", alignment=4)  # by no tensor cores
    assert kernel_time(narrow, H100, constants).work_s == pytest.approx(
        kernel_time(replace(narrow, alignment=16), H100, constants).work_s
    )


@cache
def stepped(name: str, **options: Any) -> Trace:
    return llmsim.trace(CONFIGS[name](), phase="train", batch=2, context=16, **options).trace


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "qwen3"])
def test_every_kernel_of_a_step_has_a_rule(name: str) -> None:
    assert kernels_without_formula(stepped(name)) == {}


def test_a_derivative_that_a_gpu_has_a_kernel_for_is_one_kernel() -> None:
    names = [kernel.name for kernel in stepped("llama").kernels]
    assert names.count("aten.silu_backward.default") == names.count("aten.silu.default") > 0


def test_the_flops_of_attention_and_its_derivative_are_as_2_to_5() -> None:
    trace = stepped("llama")
    flops: dict[str, int] = {}
    for kernel in trace.kernels:
        if "attention" in kernel.name:
            part = "backward" if "backward" in kernel.name else "forward"
            flops[part] = flops.get(part, 0) + (kernel.flops or 0)
            assert kernel.causal
    assert 2 * flops["backward"] == 5 * flops["forward"]
