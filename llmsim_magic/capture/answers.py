"""Answers for what `meta` alone cannot do: one function for each cause."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from llmsim_magic.capture.kernels import facts
from llmsim_magic.capture.repeats import Repeats
from llmsim_magic.capture.tensors import tensors_in

aten = torch.ops.aten
META = torch.device("meta")
LARGEST = 4_000_000


class Answers(TorchDispatchMode):
    """Evaluates a pass partially: what is known is computed for real, the rest on `meta`.

    Known are token ids, positions, masks, counters and all that is computed from them alone, up to
    `LARGEST` elements; they live on the host. Unknown are weights, activations and whatever they
    touch. `guessed` counts the unknown values that the code asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.guessed: Counter[str] = Counter()
        self._repeats = Repeats()
        self._overwritten: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = dict(kwargs or {})
        tensors = list(tensors_in((args, keywords)))
        if not any(map(self._is_unknown, tensors)):
            return self._for_real(func, args, keywords)
        answer = _ANSWERS.get(func)
        if answer is not None:
            return answer(self, *args, **keywords)
        if not all(tensor.is_meta for tensor in tensors):
            changed = [args[place] for place in facts(func).mutable if isinstance(place, int)]
            if changed and not changed[0].is_meta:
                self._overwritten.add(changed[0].untyped_storage()._cdata)
                return changed[0]
            args, keywords = tree_map(_on_meta, (args, keywords))
        if keywords.get("device") is not None:
            keywords["device"] = META  # what is unknown cannot be brought to the host
        return self._repeats.run(func, args, keywords)

    def _is_unknown(self, tensor: torch.Tensor) -> bool:
        """On `meta`, or a constant that something unknown was written into."""
        return tensor.is_meta or tensor.untyped_storage()._cdata in self._overwritten

    def _for_real(self, func: Any, args: Any, keywords: dict[str, Any]) -> Any:
        """A kernel on known values: on the host, unless its result is too large to hold."""
        known = facts(func)
        if known.aliases or known.allocates:
            return func(*args, **keywords)
        unreal_args, unreal = tree_map(_on_meta, (args, keywords))
        try:
            like = func(
                *unreal_args, **(unreal | {"device": META} if "device" in unreal else unreal)
            )
        except (RuntimeError, NotImplementedError):
            pass  # its size depends on its values, which are known
        else:
            if sum(tensor.numel() for tensor in tensors_in(like)) > LARGEST:
                return like
        if keywords.get("device") == META:
            keywords["device"] = torch.device("cpu")
        return func(*args, **keywords)

    def notes(self) -> list[str]:
        """What was guessed, for the report."""
        return [
            f"the code asked for a value that only data decides: taken as {value} (×{number})"
            for value, number in self.guessed.items()
        ]


def _on_meta(value: Any) -> Any:
    return value.to(META) if isinstance(value, torch.Tensor) else value


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
