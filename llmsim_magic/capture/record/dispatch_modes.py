"""Two modes of torch's, open for a pass alone, that tell a recorder of functions and kernels."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from llmsim_magic.capture.kernels import kernel_facts
from llmsim_magic.capture.kernels.tensors import unrecorded
from llmsim_magic.capture.record.recorder import Recorder


class _Functions(TorchFunctionMode):
    """Sees whole torch functions, and keeps attention whole."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", None) == "__get__":
            return func(*args, **(kwargs or {}))
        return self._recorder.call(func, args, kwargs or {})


class _Kernels(TorchDispatchMode):
    """Sees every ATen op; composite ones are taken apart first, as under autograd."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and guarding against it costs time at every kernel

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if kernel_facts.facts(func).is_composite:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        with unrecorded():
            out = func(*args, **kwargs)
            self._recorder.kernel(func, args, kwargs, out)
        return out


@contextmanager
def dispatch_modes(recorder: Recorder) -> Iterator[None]:
    """While open, the recorder notes every function and kernel."""
    with _Functions(recorder), _Kernels(recorder):
        yield
