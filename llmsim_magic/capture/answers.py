"""Answers for what `meta` alone cannot do: one function for each cause."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from llmsim_magic.capture.kernels import facts
from llmsim_magic.capture.repeats import Repeats

aten = torch.ops.aten


class Answers(TorchDispatchMode):
    """Answers the kernels that `meta` refuses; everything else runs as it is, equal ones once.

    `guessed` counts the values that no one can know without weights and that were asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.guessed: Counter[str] = Counter()
        self._repeats = Repeats()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        answer = _ANSWERS.get(func)
        if answer is not None and args[0].is_meta:
            return answer(self, *args, **(kwargs or {}))
        if _devices_mixed(args):
            changed = [args[place] for place in facts(func).mutable if isinstance(place, int)]
            if changed and not changed[0].is_meta:
                return changed[0]
            args = tree_map(_to_meta, args)
        return self._repeats.run(func, args, dict(kwargs or {}))

    def notes(self) -> list[str]:
        """What was guessed, for the report."""
        return [
            f"the code asked for a value that only data decides: taken as {value} (×{number})"
            for value, number in self.guessed.items()
        ]


def _devices_mixed(args: tuple[Any, ...]) -> bool:
    """Whether a constant that the code made on the host meets a tensor of the model.

    They meet on the device where the model would live. A constant that a tensor of the model is
    written into keeps its shape, all that is known of it.
    """
    unknown = known = False
    for argument in args:
        for item in argument if isinstance(argument, (list, tuple)) else (argument,):
            if isinstance(item, torch.Tensor):
                unknown |= item.is_meta
                known |= not item.is_meta
    return unknown and known


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def _value(answers: Answers, tensor: torch.Tensor) -> bool | int | float:
    """Code that asks a tensor for its value, as a check for padding does.

    The generic answer: no for a condition, one for a number.
    """
    value: bool | float = 1.0 if tensor.is_floating_point() else 1
    if tensor.dtype is torch.bool:
        value = False
    answers.guessed[str(value)] += 1
    return value


def _grouped_matmul(
    answers: Answers, rows: torch.Tensor, weights: torch.Tensor, *rest: Any, **options: Any
) -> torch.Tensor:
    """The experts' grouped matmul: its meta kernel takes bfloat16 alone, as no device does."""
    return rows.new_empty((*rows.shape[:-1], weights.shape[-1]))


_ANSWERS: dict[Any, Callable[..., Any]] = {
    aten._local_scalar_dense.default: _value,
    aten._grouped_mm.default: _grouped_matmul,
}
