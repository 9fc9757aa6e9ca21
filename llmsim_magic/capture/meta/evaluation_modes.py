"""The torch modes that evaluate a pass partially: known values on the host, the rest on `meta`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from llmsim_magic.capture.kernels.fused_kernels import (
    RECURRENT,
    recurrent_arguments,
    recurrent_outputs,
)
from llmsim_magic.capture.kernels.kernel_cache import KernelCache
from llmsim_magic.capture.kernels.kernel_facts import facts, mutated_tensors
from llmsim_magic.capture.kernels.rng import PrivateRng
from llmsim_magic.capture.kernels.tensors import tensors_in, unrecorded
from llmsim_magic.capture.meta.data_dependent_kernels import HANDLERS, assumed_scalar
from llmsim_magic.capture.meta.partial_evaluation import PartialEvaluation
from llmsim_magic.records.deferred_interrupt import DeferredInterrupt
from llmsim_magic.records.trace.workload import IsCancelled

aten = torch.ops.aten
META = torch.device("meta")
_CACHE = KernelCache()


class _KernelMode(TorchDispatchMode):
    """Runs each kernel on the host if all its inputs are known, else on `meta`."""

    def __init__(self, evaluation: PartialEvaluation, stopped: IsCancelled) -> None:
        super().__init__()
        self._evaluation = evaluation
        self._stopped = stopped
        self._rng = PrivateRng()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard against it slows every kernel

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if self._stopped():
            raise KeyboardInterrupt  # model code that catches Exception does not catch this
        with unrecorded():
            return self._run(func, args, dict(kwargs or {}))

    def _run(self, func: Any, args: Any, keywords: dict[str, Any]) -> Any:
        tensors = tensors_in((args, keywords))
        if all(map(self._evaluation.is_known, tensors)):
            return self._run_on_host(func, args, keywords)
        if facts(func).may_alias and not any(tensor.is_meta for tensor in tensors):
            # A view of an overwritten tensor, or a write into one.
            return self._rng.run(func, args, keywords)
        handler = HANDLERS.get(func)
        if handler is not None:
            result = handler(self._evaluation, *args, **keywords)
            if result is not NotImplemented:
                return result
        if not all(tensor.is_meta for tensor in tensors):
            mutated = mutated_tensors(func, args, keywords)
            if mutated and not any(tensor.is_meta for tensor in mutated):
                for tensor in mutated:
                    self._evaluation.mark_overwritten(tensor)
                return mutated[0] if len(func._schema.returns) == 1 else None
            args, keywords = tree_map(_to_meta, (args, keywords))
        if keywords.get("device") is not None:
            keywords["device"] = META  # unknown values cannot be copied to the host
        return _CACHE.run(func, args, keywords)

    def _run_on_host(self, func: Any, args: Any, keywords: dict[str, Any]) -> Any:
        """Runs a kernel on known values, on `meta` if its result is too large to hold."""
        if func is aten._local_scalar_dense.default:
            self._evaluation.count_read()
        if facts(func).may_alias:
            return self._rng.run(func, args, keywords)
        meta_args, meta_keywords = tree_map(_to_meta, (args, keywords))
        if "device" in meta_keywords:
            meta_keywords = meta_keywords | {"device": META}
        try:
            on_meta = _CACHE.run(func, meta_args, meta_keywords)
        except (RuntimeError, NotImplementedError):
            pass  # the shape of the result depends on the values, which are known
        else:
            elements = sum(tensor.numel() for tensor in tensors_in(on_meta))
            if not self._evaluation.is_holdable(elements):
                only_moves = facts(func).is_to_copy and args[0].dtype == on_meta.dtype
                return args[0] if only_moves else on_meta
        if keywords.get("device") == META:
            keywords["device"] = torch.device("cpu")
        if facts(func).is_allocation:
            return func(*args, **keywords).zero_()
        try:
            return self._rng.run(func, args, keywords)
        except NotImplementedError:
            return _run_in_float64(func, args, keywords)


def _to_meta(value: Any) -> Any:
    return value.to(META) if isinstance(value, torch.Tensor) else value


def _run_in_float64(func: Any, args: Any, keywords: dict[str, Any]) -> Any:
    """Runs a kernel on integers that the CPU has for floating point only, unlike a GPU."""
    first = tensors_in((args, keywords))[0]
    if first.is_floating_point():
        raise NotImplementedError(f"{func} for {first.dtype}")
    args, keywords = tree_map(
        lambda value: value.double() if isinstance(value, torch.Tensor) else value,
        (args, keywords),
    )
    return tree_map(lambda out: out.to(first.dtype), func(*args, **keywords))


class _FunctionMode(TorchFunctionMode):
    """Handles calls that read or create values without any kernel that a dispatch mode sees."""

    def __init__(self, evaluation: PartialEvaluation) -> None:
        super().__init__()
        self._evaluation = evaluation

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = dict(kwargs or {})
        if func in _TO_PYTHON:
            return _to_python(self._evaluation, func, args, keywords)
        if func in _FROM_PYTHON:
            return _from_python(self._evaluation, func, args, keywords)
        if func in RECURRENT and not self._are_known((args, keywords)):
            return recurrent_outputs(recurrent_arguments(args, keywords))
        return func(*args, **keywords)

    def _are_known(self, values: Any) -> bool:
        return all(map(self._evaluation.is_known, tensors_in(values)))


def _to_python(evaluation: PartialEvaluation, func: Any, args: Any, keywords: Any) -> Any:
    """Runs `tolist` or `numpy`, with assumed values if those of the tensor are unknown."""
    tensor = args[0]
    if evaluation.is_known(tensor):
        return func(*args, **keywords)
    value = assumed_scalar(evaluation, tensor)
    assumed = torch.full(tensor.shape, value, dtype=tensor.dtype, device="cpu")
    return evaluation.mark_assumed(func(assumed, *args[1:], **keywords))


def _from_python(evaluation: PartialEvaluation, func: Any, args: Any, keywords: Any) -> Any:
    """Runs `torch.tensor`: values that come from Python are known, so they stay on the host."""
    if any(tensor.is_meta for tensor in tensors_in(args)):
        return func(*args, **keywords)
    if "device" in keywords:
        keywords["device"] = None
    made = func(*args, **keywords)
    if args and evaluation.is_assumed(args[0]):
        evaluation.mark_overwritten(made)
    return made


_TO_PYTHON = frozenset({torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__})
_FROM_PYTHON = frozenset({torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy})


@contextmanager
def evaluating_partially(before: PartialEvaluation | None = None) -> Iterator[PartialEvaluation]:
    """Evaluate the code in this context partially: known values for real, the rest on `meta`.

    Args:
        before: The evaluation of the pass that computed the cache this one uses, if any.

    Yields:
        The evaluation, which says which values are known and what had to be assumed.

    Raises:
        KeyboardInterrupt: The work was cancelled.
        EndlessLoop: One line reads values again and again.
    """
    with DeferredInterrupt() as stopped:
        evaluation = PartialEvaluation(before)
        with torch.no_grad(), _FunctionMode(evaluation), _KernelMode(evaluation, stopped):
            yield evaluation
