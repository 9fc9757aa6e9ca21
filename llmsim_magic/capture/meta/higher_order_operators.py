"""Run higher-order operators of torch, such as `torch.cond`, in plain Python.

torch compiles the functions that are passed to them. A traced pass calls those functions, so that
their kernels are recorded.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from types import CodeType
from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.utils._pytree import tree_leaves, tree_map, tree_structure, tree_unflatten

from llmsim_magic.capture.kernels import call_stack
from llmsim_magic.capture.meta.partial_evaluation import PartialEvaluation

FLEX_ATTENTION = "flex_attention"
_GET_DEVICE = torch.Tensor.device.__get__
_CHECKS = ("_validate_device", "flex_attention", "associative_scan.<locals>._validate_input")


def higher_order_name(func: Any) -> str | None:
    """Return the name of a higher-order operator; None for any other function."""
    return str(func.name()) if isinstance(func, HigherOrderOperator) else None


def in_python(func: Any) -> Callable[..., Any] | None:
    """Return a Python function equivalent to a higher-order operator; None if there is none."""
    return _IN_PYTHON.get(higher_order_name(func))


def _cond(
    condition: Any,
    if_true: Callable[..., Any],
    if_false: Callable[..., Any],
    operands: Iterable[Any] = (),
) -> Any:
    return (if_true if condition else if_false)(*operands)


def _while_loop(
    condition: Callable[..., Any],
    body: Callable[..., Any],
    carried: Iterable[Any],
    additional: Iterable[Any] = (),
) -> Any:
    carried = tuple(carried)
    while condition(*carried, *additional):
        carried = tuple(body(*carried, *additional))
    return carried


def _map(function: Callable[..., Any], mapped: Sequence[Any], others: Iterable[Any]) -> Any:
    outputs = [
        function(*(each[index] for each in mapped), *others) for index in range(len(mapped[0]))
    ]
    return _stacked(outputs)


def _scan(
    function: Callable[..., Any],
    carried: Iterable[Any],
    scanned: Sequence[Any],
    additional: Iterable[Any] = (),
) -> Any:
    carried, outputs = list(carried), []
    for index in range(len(scanned[0])):
        result = function(*carried, *(each[index] for each in scanned), *additional)
        split = len(carried)
        carried, output = list(result[:split]), list(result[split:])
        outputs.append(output)
    return [*carried, *_stacked(outputs)]


def _associative_scan(
    function: Callable[..., Any], scanned: Sequence[Any], additional_inputs: Iterable[Any] = ()
) -> Any:
    first = leaves = [each[0] for each in scanned]
    outputs = []
    for index in range(1, len(scanned[0])):
        values = (each[index] for each in scanned)
        outputs.append(function(*leaves, *values, *additional_inputs))
        leaves = tree_leaves(outputs[-1])
    structure = tree_structure(outputs[0]) if outputs else tree_structure(first)
    return _stacked([tree_unflatten(first, structure), *outputs])


def _stacked(outputs: list[Any]) -> Any:
    return tree_map(lambda *each: torch.stack(each), *outputs)


_IN_PYTHON: dict[str | None, Callable[..., Any]] = {
    "associative_scan": _associative_scan,
    "cond": _cond,
    "map_impl": _map,
    "scan": _scan,
    "while_loop": _while_loop,
}


def device_to_check(func: Any) -> torch.device | None:
    """The device of a tensor that torch's checks of a higher-order operator accept.

    Before it calls such an operator, torch refuses tensors on `meta` or on different devices.

    Args:
        func: The torch function that is called, from the `__torch_function__` of a mode.

    Returns:
        A device that torch supports if one of those checks reads `tensor.device`; otherwise None.
    """
    if func != _GET_DEVICE:
        return None
    frame = sys._getframe(1)
    while _is_of_a_mode(frame.f_code) and frame.f_back is not None:
        frame = frame.f_back
    code = frame.f_code
    is_check = code.co_qualname.startswith(_CHECKS) and call_stack.is_library_file(code.co_filename)
    return torch.device("cuda") if is_check else None


def _is_of_a_mode(code: CodeType) -> bool:
    """Whether code is that of a mode through which the read of an attribute goes."""
    return code.co_name == "__torch_function__" or call_stack.is_own_file(code.co_filename)


def flex_attention_outputs(
    query: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The outputs of flex attention on `meta`: attention, log-sum-exp and largest scores."""
    shape = query.shape[:-1]
    statistics = query.new_empty(shape, dtype=torch.float32, device="meta")
    attended = query.new_empty((*shape, value.shape[-1]), device="meta")
    return attended, statistics, torch.empty_like(statistics)


def computed_share(evaluation: PartialEvaluation, block_mask: Sequence[Any]) -> float:
    """The share of the score matrix that flex attention computes; noted in the report.

    Args:
        evaluation: Knows whether the mask depends on data, and collects the note.
        block_mask: `BlockMask.as_tuple()`: lengths of queries and keys, then for each row of blocks
            how many are masked in part and how many are computed in full; last the sizes of a
            block and the mask's function.

    Returns:
        Computed blocks divided by all blocks, from 0 to 1; 1 if the mask depends on data.
    """
    keys, block = block_mask[1], block_mask[-2]
    counts = [each for each in (block_mask[2], block_mask[4]) if each is not None]
    if not all(map(evaluation.is_known, counts)):
        evaluation.note("flex attention is counted in full: its block mask depends on data")
        return 1.0
    with torch._C._DisableTorchDispatch():
        computed = sum(int(each.sum()) for each in counts)
    blocks = counts[0].numel() * -(-keys // block)
    share = min(computed / blocks, 1.0) if blocks else 1.0
    if share < 1:
        evaluation.note(
            f"flex attention is counted by its block mask: {share:.1%} of the score matrix"
        )
    return share
