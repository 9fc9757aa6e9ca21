"""The formula of a kernel holds for all its overloads, and for the kernel that works in place."""

from typing import Any

import pytest
import torch
from torch import nn

import llmsim_magic as llmsim
from llmsim_magic.analyses.kernels.elementwise_work import elementwise_ops
from llmsim_magic.capture.kernels.kernel_facts import facts
from llmsim_magic.records.trace.recorded import Kernel, Record, Tensor

READ, WRITTEN = 70, 30
NAMES = [
    name
    for name in dir(torch.ops.aten)
    if name.endswith("_") and not name.endswith("__") and hasattr(torch.ops.aten, name[:-1])
]


def counted(op: Any) -> int | None:
    """The elementwise operations of a kernel that reads 70 elements and writes 30."""
    shapes = ((READ,), (WRITTEN,))
    tensors = tuple(Tensor(shape, "float32", 4, 0, 0, (1,)) for shape in shapes)
    known = facts(op)
    kernel = Kernel(known.name, None, (0,), (1,), (1,), False, known.is_pointwise, False, None)
    record = Record(
        storages=(), tensors=tensors, kernels=(kernel,), operators=(), calls=(), results=()
    )
    return elementwise_ops(record, kernel)


def overloads(packet: Any) -> dict[tuple[str, ...], Any]:
    """The overloads that take a tensor, by the names of their arguments."""
    found = {}
    for name in packet.overloads():
        qualified = packet._qualified_op_name + ("" if name == "default" else f".{name}")
        if not torch._C._dispatch_has_kernel(qualified):  # exists only in TorchScript
            continue
        op = getattr(packet, name)
        if any("Tensor" in str(argument.type) for argument in op._schema.arguments):
            inputs = tuple(each.name for each in op._schema.arguments if not each.is_out)
            found[inputs] = op
    return found


def test_a_kernel_counts_the_same_in_place() -> None:
    compared = 0
    for name in NAMES:
        functional = overloads(getattr(torch.ops.aten, name[:-1]))
        for inputs, op in overloads(getattr(torch.ops.aten, name)).items():
            if inputs in functional:
                assert counted(op) == counted(functional[inputs]), op
                compared += 1
    assert compared > 150


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        ("masked_fill_", {WRITTEN}),
        ("masked_fill", {WRITTEN}),
        ("eq_", {WRITTEN}),
        ("where", {WRITTEN, None}),  # where(condition) alone lists indices
        ("rsub", {WRITTEN}),
        ("cumsum_", {READ}),
        ("scatter_reduce_", {READ}),
        ("tril_", {0}),
        ("masked_scatter_", {0}),
        ("zero", {0}),
        ("copy_", {0}),
    ],
)
def test_every_overload_has_the_formula_of_its_kernel(
    packet: str, expected: set[int | None]
) -> None:
    ops = overloads(getattr(torch.ops.aten, packet))
    assert {counted(op) for op in ops.values()} == expected


def test_a_reduction_is_not_taken_for_its_pointwise_overload() -> None:
    assert counted(torch.ops.aten.max.default) == READ
    assert counted(torch.ops.aten.max.dim) == READ
    assert counted(torch.ops.aten.max.other) == WRITTEN


def test_a_padding_mask_of_attention_is_counted() -> None:
    x = torch.randn(2, 10, 32)
    attention = nn.MultiheadAttention(32, 4, batch_first=True)
    mask = torch.zeros(2, 10, dtype=torch.bool)
    inputs = {"query": x, "key": x, "value": x, "key_padding_mask": mask}
    assert llmsim.trace(attention, inputs=inputs).summary.value["kernels_not_counted"] == 0
