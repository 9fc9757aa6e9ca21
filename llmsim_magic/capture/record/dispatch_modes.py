"""The torch modes that report functions and kernels of a pass to a recorder."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from llmsim_magic.capture.kernels import kernel_facts
from llmsim_magic.capture.kernels.tensors import unrecorded
from llmsim_magic.capture.meta.higher_order_operators import in_python
from llmsim_magic.capture.meta.one_device import decompose
from llmsim_magic.capture.record.recorder import Recorder


class _FunctionMode(TorchFunctionMode):
    """Reports calls of torch functions; the recorder runs attention as one kernel."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", None) == "__get__":
            return func(*args, **(kwargs or {}))
        if (function := in_python(func)) is not None:
            with self:
                return function(*args, **(kwargs or {}))
        return self._recorder.call(func, args, kwargs or {})


class _KernelMode(TorchDispatchMode):
    """Reports every ATen op; composite ones are decomposed first, as under autograd."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard against it slows every kernel

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if kernel_facts.facts(func).is_composite:
            with self:
                out = decompose(func, args, kwargs, self._recorder.move_to_meta)
            if out is not NotImplemented:
                return out
        with unrecorded():
            out = func(*args, **kwargs)
            self._recorder.kernel(func, args, kwargs, out)
        return out


@contextmanager
def dispatch_modes(recorder: Recorder) -> Iterator[None]:
    """Report every function and kernel that runs in this context to the recorder."""
    with _FunctionMode(recorder), _KernelMode(recorder):
        yield
