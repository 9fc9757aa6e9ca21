"""A cached kernel result equals that of running the kernel."""

from typing import Any

import pytest
import torch

import llmsim_magic as llmsim
from llmsim_magic.capture.kernels.kernel_cache import KernelCache
from llmsim_magic.capture.kernels.kernel_facts import facts
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


def test_a_repeated_kernel_in_place_returns_what_it_writes() -> None:
    repeats = KernelCache()
    add = torch.ops.aten.add_.Tensor
    for sizes in ((2, 3), (2, 3), (5, 7)):
        written, read = torch.empty(sizes, device="meta"), torch.empty(sizes[1], device="meta")
        assert repeats.run(add, (written, read), {"alpha": 2}) is written
    assert len(repeats) == 1


def test_a_kernel_in_place_refuses_what_it_refuses_after_others_too() -> None:
    repeats = KernelCache()
    add = torch.ops.aten.add_.Tensor
    square = torch.empty(3, 3, device="meta")
    repeats.run(add, (square, square), {})
    for refused in (torch.empty(4, 3, device="meta"), torch.empty(2, 3, 3, device="meta")):
        for _ in range(2):
            with pytest.raises(RuntimeError):
                repeats.run(add, (square, refused), {})
    whole = square.long()
    repeats.run(add, (whole, 1), {})
    with pytest.raises(RuntimeError):
        repeats.run(add, (whole, 1.5), {})


@pytest.mark.parametrize(
    "kernel",
    [
        torch.ops.aten.squeeze_.default,
        torch.ops.aten.t_.default,
        torch.ops.aten.resize_.default,
        torch.ops.aten.bernoulli_.float,
        torch.ops.aten.add.out,
        torch.ops.aten.add.Tensor,
        torch.ops.aten.frexp.Tensor_out,
        torch.ops.aten.view.default,
    ],
    ids=str,
)
def test_what_changes_more_than_values_of_its_first_argument_is_run(kernel: Any) -> None:
    assert not facts(kernel).only_updates_first


_LAYOUTS = (  # axes from the innermost outwards, and sizes: each letter is one
    ("abc", (2, 1, 0)),
    ("abc", (2, 0, 1)),
    ("abc", (0, 1, 2)),
    ("1bc", (2, 1, 0)),
    ("a1c", (2, 0, 1)),
    ("ab1", (2, 1, 0)),
    ("abb", (2, 1, 0)),
    ("c", (0,)),
    ("", ()),
)
_SIZES = ({"a": 2, "b": 3, "c": 4, "1": 1}, {"a": 7, "b": 5, "c": 2, "1": 1})


def _dense(names: str, axes: tuple[int, ...], sizes: dict[str, int]) -> torch.Tensor:
    shape = [sizes[name] for name in names]
    made = torch.empty([shape[axis] for axis in reversed(axes)], device="meta")
    return made.permute([axes[::-1].index(axis) for axis in range(len(axes))])


@pytest.mark.parametrize("kernel", [torch.ops.aten.mul.Tensor, torch.ops.aten.atan2.default])
@pytest.mark.parametrize("one", _LAYOUTS, ids=str)
@pytest.mark.parametrize("other", _LAYOUTS, ids=str)
def test_a_pointwise_kernel_is_run_once_for_all_sizes(
    kernel: Any, one: tuple[str, tuple[int, ...]], other: tuple[str, tuple[int, ...]]
) -> None:
    repeats = KernelCache()
    for sizes in _SIZES:
        given = _dense(*one, sizes), _dense(*other, sizes)
        try:
            real = kernel(*given)
        except RuntimeError:  # shapes that do not broadcast
            with pytest.raises(RuntimeError):
                repeats.run(kernel, given, {})
            continue
        found = repeats.run(kernel, given, {})
        assert (found.shape, found.stride(), found.dtype) == (real.shape, real.stride(), real.dtype)
        assert len(repeats) == 1


def test_sizes_that_are_equal_or_one_are_another_pattern() -> None:
    repeats, add = KernelCache(), torch.ops.aten.add.Tensor
    for shape, other in (((2, 3), (2, 3)), ((3, 3), (3, 3)), ((2, 3), (1, 3)), ((2, 3), (2, 1))):
        given = torch.empty(shape, device="meta"), torch.empty(other, device="meta")
        assert repeats.run(add, given, {}).shape == (shape[0], shape[1])
    assert len(repeats) == 4
