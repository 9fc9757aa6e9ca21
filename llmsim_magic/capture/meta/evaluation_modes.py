"""The torch modes that evaluate a pass partially: known values on the host, the rest on `meta`."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from llmsim_magic.capture.autocast.autocast import AutocastMode
from llmsim_magic.capture.kernels.failure_reason import untraceable_operator
from llmsim_magic.capture.kernels.fused_kernels import (
    RECURRENT,
    recurrent_arguments,
    recurrent_outputs,
)
from llmsim_magic.capture.kernels.kernel_cache import KernelCache
from llmsim_magic.capture.kernels.kernel_facts import facts, mutated_tensors
from llmsim_magic.capture.kernels.tensors import tensors_in, unrecorded
from llmsim_magic.capture.meta.data_dependent_kernels import HANDLERS, assumed_scalar
from llmsim_magic.capture.meta.foreach_kernels import foreach_result
from llmsim_magic.capture.meta.gradient_leaves import (
    gets_gradient,
    is_in_backward,
    is_made_as_leaf,
    move_in_place,
    needs_gradient,
)
from llmsim_magic.capture.meta.higher_order_operators import (
    FLEX_ATTENTION,
    device_to_check,
    flex_attention_outputs,
    higher_order_name,
    in_python,
)
from llmsim_magic.capture.meta.one_device import (
    decompose,
    visible_composites,
    without_accelerator,
    without_values,
)
from llmsim_magic.capture.meta.partial_evaluation import (
    CannotEvaluate,
    EndlessLoop,
    PartialEvaluation,
    Progress,
)
from llmsim_magic.capture.meta.recurrent_layers import differentiable_outputs, has_derivative
from llmsim_magic.records.deferred_interrupt import DeferredInterrupt
from llmsim_magic.records.trace.workload import IsCancelled

aten = torch.ops.aten
META = torch.device("meta")
_NESTED_MODULE = "torch.nested._internal.nested_tensor"  # of nested tensors in jagged layout
_CACHE = KernelCache()


class _KernelMode(TorchDispatchMode):
    """Runs each kernel on the host if all its inputs are known, else on `meta`."""

    def __init__(
        self, evaluation: PartialEvaluation, progress: Progress, stopped: IsCancelled
    ) -> None:
        super().__init__()
        self._evaluation = evaluation
        self._progress = progress
        self._stopped = stopped

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard against it slows every kernel

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if self._stopped():
            raise KeyboardInterrupt  # model code that catches Exception does not catch this
        kwargs, listener = kwargs or {}, self._evaluation.listener
        if listener is None:
            with unrecorded():
                return self._run(func, args, dict(kwargs))
        if facts(func).is_composite:
            with self:
                out = decompose(func, args, kwargs, listener.move_to_meta)
            if out is not NotImplemented:
                return out
        with unrecorded():
            out = self._run(func, args, dict(kwargs))
            listener.kernel(func, args, kwargs, out)
        return out

    def _run(self, func: Any, args: Any, keywords: dict[str, Any]) -> Any:
        self._progress.kernels += 1
        kernel = facts(func)
        if kernel.structure is not None:
            raise _refusal(kernel.structure)
        if kernel.is_in_place:
            self._evaluation.changes += 1
        tensors = tensors_in((args, keywords))
        if all(map(self._evaluation.is_known, tensors)):
            is_created = not tensors and keywords.get("device") == META
            if is_created and (self._evaluation.creates_on_meta or is_in_backward()):
                return func(*args, **keywords)
            return self._run_on_host(func, args, keywords)
        if kernel.may_alias and not any(tensor.is_meta for tensor in tensors):
            # A view of an overwritten tensor, or a write into one.
            return self._evaluation.rng.run(func, args, keywords)
        if kernel.is_composite:  # visible under `torch.inference_mode`, or if asked for
            with self:
                result = decompose(func, args, keywords, without_values)
            if result is not NotImplemented:
                return result
        handler = HANDLERS.get(func)
        if handler is not None:
            result = handler(self._evaluation, *args, **keywords)
            if result is not NotImplemented:
                return result
        return self._run_on_meta(func, args, keywords, tensors)

    def _run_on_meta(
        self, func: Any, args: Any, keywords: dict[str, Any], tensors: list[torch.Tensor]
    ) -> Any:
        """Runs a kernel on `meta`; tensors on the host that it writes become unknown."""
        if not all(tensor.is_meta for tensor in tensors):
            mutated = mutated_tensors(func, args, keywords)
            for tensor in mutated:
                self._evaluation.mark_overwritten(tensor)
            returns = func._schema.returns
            if mutated and len(returns) <= 1 and not any(tensor.is_meta for tensor in mutated):
                return mutated[0] if returns else None
            if mutated:
                return self._run_with_known_outputs(func, args, keywords)
            args, keywords = _on_meta((args, keywords))
        if keywords.get("device") is not None:
            keywords["device"] = META  # unknown values cannot be copied to the host
        made = foreach_result(func, args)
        if made is not NotImplemented:
            return made
        return _CACHE.run(func, args, keywords)

    def _run_with_known_outputs(self, func: Any, args: Any, keywords: dict[str, Any]) -> Any:
        """Runs a kernel that writes data into known tensors, and returns those it returns."""
        meta_args, meta_keywords = _on_meta((args, keywords))
        out = func(*meta_args, **meta_keywords)
        originals = {
            id(moved): given
            for moved, given in zip(
                tensors_in((meta_args, meta_keywords)), tensors_in((args, keywords)), strict=True
            )
        }
        return tree_map(lambda value: originals.get(id(value), value), out)

    def _run_on_host(self, func: Any, args: Any, keywords: dict[str, Any]) -> Any:
        """Runs a kernel on known values, on `meta` if its result is too large to hold."""
        if func is aten._local_scalar_dense.default:
            self._evaluation.count_read()
        if facts(func).may_alias:
            return self._evaluation.rng.run(func, args, keywords)
        meta_args, meta_keywords = _on_meta((args, keywords))
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
            return self._evaluation.rng.run(func, args, keywords)
        except NotImplementedError:
            return _run_in_float64(func, args, keywords)


def _refusal(structure: str) -> CannotEvaluate:
    return CannotEvaluate(
        f"the forward uses {structure}, which meta cannot represent; only dense tensors of plain "
        "numbers can be traced"
    )


def _refuse_structures(types: Any) -> None:
    if any(kind.__module__ == _NESTED_MODULE for kind in types):
        raise _refusal("nested tensors")
    if torch.masked.MaskedTensor in types:
        raise _refusal("masked tensors")


def _on_meta(value: Any) -> Any:
    """The arguments of a kernel with every tensor on `meta`."""
    kind = type(value)
    if kind is tuple or kind is list:
        return kind([_on_meta(item) for item in value])
    if kind is dict:
        return {name: _on_meta(item) for name, item in value.items()}
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


class _FunctionMode(AutocastMode):
    """Handles calls that read or create values without any kernel that a dispatch mode sees."""

    def __init__(self, evaluation: PartialEvaluation) -> None:
        super().__init__()
        self._evaluation = evaluation

    def note_casts(self, tensors: list[torch.Tensor]) -> None:
        """Let the listener note casts of parameters that were kept until now."""
        if (listener := self._evaluation.listener) is not None:
            listener.hold(tensors)

    def call(self, func: Any, types: Any, args: Any, keywords: dict[str, Any]) -> Any:
        """Run a function, in pieces that the evaluation and its listener see."""
        if types:
            _refuse_structures(types)
        if func in _SIZES:
            return func(*args)
        listener, name = self._evaluation.listener, getattr(func, "__name__", None)
        if name == "__set__":  # of an attribute, such as `data`
            self._evaluation.changes += 1
        if listener is None or name == "__get__":
            return self._run(func, args, keywords)
        if (function := in_python(func)) is not None:
            with self:
                return function(*args, **keywords)
        return listener.call(func, args, keywords, self._run)

    def _run(self, func: Any, args: Any, keywords: dict[str, Any]) -> Any:
        func, args, keywords = without_accelerator(func, args, keywords)
        if is_made_as_leaf(keywords):
            made = self._run(func, args, keywords | {"requires_grad": False})
            return self._run(torch.Tensor.requires_grad_, (made,), {})
        if (tensor := gets_gradient(func, args, keywords)) is not None:
            move_in_place(tensor, self._move_to_meta)
        return self._run_known_or_not(func, args, keywords)

    def _run_known_or_not(self, func: Any, args: Any, keywords: dict[str, Any]) -> Any:
        if func in _TO_PYTHON:
            return _to_python(self._evaluation, func, args, keywords)
        if func in _FROM_PYTHON:
            return _from_python(self._evaluation, func, args, keywords)
        if func in RECURRENT and not self._are_known((args, keywords)):
            arguments = recurrent_arguments(args, keywords)
            if has_derivative(arguments):
                return differentiable_outputs(func, arguments)
            return recurrent_outputs(arguments)
        if (name := higher_order_name(func)) is not None:
            return self._run_higher_order(name, func, args, keywords)
        if (device := device_to_check(func)) is not None:
            return device
        try:
            return func(*args, **keywords)
        except (EndlessLoop, CannotEvaluate):
            raise
        except RuntimeError as error:
            return self._run_again(func, args, keywords, error)

    def _run_higher_order(self, name: str, func: Any, args: Any, keywords: Any) -> Any:
        if name == FLEX_ATTENTION:
            return flex_attention_outputs(args[0], args[2])
        if (function := in_python(func)) is not None:
            with self:
                return function(*args, **keywords)
        try:
            return func(*args, **keywords)
        except NotImplementedError:
            raise CannotEvaluate(untraceable_operator(name)) from None

    def _run_again(self, func: Any, args: Any, keywords: Any, error: RuntimeError) -> Any:
        """Run a function again, with its composite operators decomposed.

        Some composites refuse known and unknown arguments in one call. Some work only if the
        tensors that they create are on the host, others only if those are on `meta`.
        """
        if needs_gradient((args, keywords)) and torch.is_grad_enabled():
            return self._run_on_meta(func, args, keywords, error)
        for on_meta in (False, True):
            self._evaluation.on_retry()
            try:
                with visible_composites(), self._evaluation.creating(on_meta=on_meta):
                    return func(*args, **keywords)
            except RuntimeError:
                continue
        raise error from None

    def _run_on_meta(self, func: Any, args: Any, keywords: Any, error: RuntimeError) -> Any:
        """Run a function again with all its tensors on `meta`, where autograd records it."""
        if all(tensor.is_meta for tensor in tensors_in((args, keywords))):
            raise error from None
        for on_meta in (False, True):
            self._evaluation.on_retry()
            moved = tree_map(self._moved, (args, keywords))
            try:
                with self._evaluation.creating(on_meta=on_meta):
                    return func(*moved[0], **moved[1])
            except RuntimeError:
                continue
        raise error from None

    def _moved(self, value: Any) -> Any:
        is_known = isinstance(value, torch.Tensor) and not value.is_meta
        return self._move_to_meta(value) if is_known else value

    def _move_to_meta(self, tensor: torch.Tensor) -> torch.Tensor:
        listener = self._evaluation.listener
        return without_values(tensor) if listener is None else listener.move_to_meta(tensor)

    def _are_known(self, values: Any) -> bool:
        return all(map(self._evaluation.is_known, tensors_in(values)))


def _to_python(evaluation: PartialEvaluation, func: Any, args: Any, keywords: Any) -> Any:
    """Runs `tolist`, `numpy` or `format`; values of the tensor that are unknown are assumed."""
    tensor = args[0]
    is_format = func is torch.Tensor.__format__
    if evaluation.is_known(tensor) or (is_format and tensor.dim()):
        return func(*args, **keywords)
    if is_format:
        return _formatted(*args)
    value = assumed_scalar(evaluation, tensor)
    assumed = torch.full(tensor.shape, value, dtype=tensor.dtype, device="cpu")
    values = func(assumed, *args[1:], **keywords)
    if tensor.dim():  # `tolist` of a scalar gives a number
        evaluation.mark_assumed(values)
    return values


def _formatted(tensor: torch.Tensor, spec: str) -> str:
    """The text of an unknown number, as in a message: that of 1 in its dtype."""
    return format(torch.ones((), dtype=tensor.dtype, device="cpu").item(), spec)


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


_TO_PYTHON = frozenset(
    {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.__format__}
)
_SIZES = frozenset(  # which a model reads very often, and which run no kernel
    getattr(torch.Tensor, name).__get__ for name in ("shape", "dtype", "is_meta", "ndim")
)
_FROM_PYTHON = frozenset({torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy})


def _uncompiled() -> AbstractContextManager[Any]:
    """Run functions that `torch.compile` wraps without compiling them.

    The setting applies to the whole process, so compiled functions of other threads also run
    uncompiled in the meantime.
    """
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


@contextmanager
def evaluating_partially(
    before: PartialEvaluation | None = None,
    progress: Progress | None = None,
    *,
    with_gradients: bool = False,
) -> Iterator[PartialEvaluation]:
    """Evaluate the code in this context partially: known values for real, the rest on `meta`.

    Args:
        before: The evaluation of the pass that computed the cache this one uses, if any.
        progress: Counts the kernels that run.
        with_gradients: Whether autograd records what runs.

    Yields:
        The evaluation, which says which values are known and what had to be assumed.

    Raises:
        KeyboardInterrupt: The work was cancelled.
        EndlessLoop: One line reads values again and again.
    """
    with DeferredInterrupt() as stopped:
        evaluation = PartialEvaluation(before)
        kernel_mode = _KernelMode(evaluation, progress or Progress(), stopped)
        gradients = torch.enable_grad() if with_gradients else torch.no_grad()
        functions = _FunctionMode(evaluation)
        with gradients, _uncompiled(), functions.following_regions(), functions, kernel_mode:
            yield evaluation
