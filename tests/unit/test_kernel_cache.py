"""A cached kernel result equals that of running the kernel."""

from typing import Any

import pytest
import torch

import llmsim_magic as llmsim
from llmsim_magic.capture.kernels.kernel_cache import KernelCache
from tests.helpers.small_models import BATCH, CONFIGS, CONTEXT, WORKLOADS


def _always_run(self: KernelCache, func: Any, args: Any, kwargs: Any) -> Any:
    return func(*args, **kwargs)


@pytest.mark.parametrize(("name", "phase"), WORKLOADS)
def test_a_trace_is_the_same_with_every_kernel_run(
    name: str, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = llmsim.trace(CONFIGS[name](), phase=phase, batch=BATCH, context=CONTEXT).trace
    monkeypatch.setattr(KernelCache, "run", _always_run)
    whole = llmsim.trace(CONFIGS[name](), phase=phase, batch=BATCH, context=CONTEXT).trace
    assert short == whole


@pytest.mark.parametrize(
    ("kernel", "args"),
    [
        (torch.ops.aten.mul.Tensor, ((2, 3), (3,))),
        (torch.ops.aten.max.dim, ((2, 3), 1)),
        (torch.ops.aten.native_layer_norm.default, ((2, 3), [3], (3,), (3,), 1e-5)),
        (torch.ops.aten.view.default, ((2, 3), [6])),
        (torch.ops.aten._unsafe_view.default, ((2, 3), [6])),
        (torch.ops.aten.add_.Tensor, ((2, 3), (2, 3))),
    ],
    ids=str,
)
def test_a_repeated_kernel_gives_what_running_it_gives(kernel: Any, args: tuple[Any, ...]) -> None:
    given = [torch.empty(a, device="meta") if isinstance(a, tuple) else a for a in args]
    repeats = KernelCache()
    runs = [repeats.run(kernel, tuple(given), {}) for _ in range(2)]
    for first, again in zip(*[r if isinstance(r, tuple) else (r,) for r in runs], strict=True):
        assert (again.shape, again.stride(), again.dtype) == (
            first.shape,
            first.stride(),
            first.dtype,
        )
        shares = first.untyped_storage()._cdata == given[0].untyped_storage()._cdata
        assert (again.untyped_storage()._cdata == given[0].untyped_storage()._cdata) is shares
        assert shares or again is not first


def test_other_shapes_strides_or_values_are_another_kernel() -> None:
    repeats = KernelCache()
    add = torch.ops.aten.add.Tensor
    plain = torch.empty(4, 3, device="meta")
    turned = torch.empty(3, 4, device="meta").t()
    assert repeats.run(add, (plain, 1), {}).stride() == (3, 1)
    assert repeats.run(add, (turned, 1), {}).stride() == (1, 4)
    assert repeats.run(add, (plain, 1.5), {}).dtype is torch.float32
    whole = plain.long()
    assert repeats.run(add, (whole, 1), {}).dtype is torch.int64
    assert repeats.run(add, (whole, 1.0), {}).dtype is torch.float32
    assert repeats.run(add, (whole, True), {}).dtype is torch.int64
