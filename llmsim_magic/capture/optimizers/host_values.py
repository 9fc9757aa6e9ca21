"""Run an optimizer on `meta`: its parameters on the device, its step counters on the host."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from llmsim_magic.capture.kernels.call_stack import call_model
from llmsim_magic.capture.kernels.tensors import tensors_in
from llmsim_magic.capture.meta.partial_evaluation import PartialEvaluation


class HostValues(TorchDispatchMode):
    """Hides kernels on the host's tensors from other modes, because no device runs them.

    Elsewhere in a pass a tensor on the host is one of the device whose values are known. That of
    an optimizer, such as a step counter, is on the host on a real device as well.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard against it slows every kernel

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = kwargs or {}
        if _is_on_host(args, keywords):
            with torch._C._DisableTorchDispatch():
                return func(*args, **keywords)
        return func(*args, **keywords)


def _is_on_host(args: Any, keywords: Mapping[str, Any]) -> bool:
    if any(tensor.is_meta for tensor in tensors_in((args, keywords))):
        return False
    device = keywords.get("device")
    return device is None or device.type != "meta"


def take_step(optimizer: Optimizer, evaluation: PartialEvaluation) -> None:
    """Run the step of an optimizer in the modes of an evaluation.

    Values of the device that it reads, such as the norm of a parameter, are assumed to be 1.
    They set the length of the step alone, so that no note says so.

    Args:
        optimizer: From `make_optimizer`.
        evaluation: The evaluation whose modes are open; it gets the step's kernels on the device.
    """
    with evaluation.reading_silently(), HostValues():
        call_model(optimizer.step, (), {})
