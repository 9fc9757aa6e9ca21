"""Kernels over lists of tensors give on `meta` what torch gives, though they are not run."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from llmsim_magic.capture.kernels.tensors import tensors_in
from llmsim_magic.capture.meta.evaluation_modes import evaluating_partially

ROWS, MORE_ROWS = torch.ones(3, 4), torch.ones(2, 3, 4)
HALF, WHOLE = torch.ones(3, 4, dtype=torch.bfloat16), torch.ones(3, 4, dtype=torch.int64)
COLUMNS = torch.ones(4, 3).t()

CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "a number": (torch._foreach_add, ([ROWS, HALF], 1.5)),
    "integers": (torch._foreach_sqrt, ([WHOLE, ROWS],)),
    "columns": (torch._foreach_sqrt, ([COLUMNS, ROWS],)),
    "lists alike": (torch._foreach_mul, ([ROWS, HALF], [ROWS, HALF])),
    "a broadcast list": (torch._foreach_mul, ([ROWS], [MORE_ROWS])),
    "another dtype": (torch._foreach_add, ([HALF], [ROWS])),
    "norms": (torch._foreach_norm, ([ROWS, MORE_ROWS],)),
    "in place": (torch._foreach_lerp_, ([ROWS, MORE_ROWS], [ROWS, MORE_ROWS], 0.1)),
    "in place, another dtype": (torch._foreach_copy_, ([ROWS], [HALF])),
}
REFUSED: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "other shapes": (torch._foreach_add_, ([torch.ones(3)], [torch.ones(4)])),
    "too large": (torch._foreach_add_, ([ROWS], [MORE_ROWS])),
    "integers": (torch._foreach_add_, ([WHOLE], [ROWS])),
    "other lengths": (torch._foreach_add_, ([ROWS], [ROWS, ROWS])),
}


def on_meta(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        [each.to("meta") for each in value] if isinstance(value, list) else value for value in args
    )


@pytest.mark.parametrize("name", CALLS)
def test_results_have_the_shapes_strides_and_dtypes_that_torch_gives(name: str) -> None:
    function, args = CALLS[name]
    real = function(*[[*value] if isinstance(value, list) else value for value in args])
    given = on_meta(args)
    with evaluating_partially():
        found = function(*given)
    layouts = [
        [(each.shape, each.stride(), each.dtype) for each in tensors_in(result)]
        for result in (real, found)
    ]
    assert layouts[0] == layouts[1]


@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_refuses_is_refused(name: str) -> None:
    function, args = REFUSED[name]
    given = on_meta(args)
    with pytest.raises(RuntimeError):
        function(*args)
    with evaluating_partially(), pytest.raises(RuntimeError):
        function(*given)
