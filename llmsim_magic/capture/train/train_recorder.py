"""Record a training step: forward, recomputed forward, backward and the optimizer.

A kernel of backward belongs to the operator whose call made the node of autograd that runs it.
Nothing is held of the step: what a storage outlives is told by its own end.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from llmsim_magic.capture.kernels import call_stack, flops, fused_kernels
from llmsim_magic.capture.kernels.tensors import tensors_in, unrecorded
from llmsim_magic.capture.record.events import BackwardCall, FunctionCall, ModuleCall, Owner
from llmsim_magic.capture.record.recorder import Recorder, RunFunction, one_kernel
from llmsim_magic.capture.replay.layer_matching import Layer
from llmsim_magic.capture.train import fused_functions
from llmsim_magic.capture.train.live_tensors import LiveTensorTable
from llmsim_magic.records.trace.recorded import Kernel, Pass, Role

_AUTOGRAD = torch._C._autograd


class TrainRecorder(Recorder):
    """All events of one training step.

    Args:
        owners: Role and name of the model's storages, by storage address.
    """

    def __init__(self, owners: Mapping[int, tuple[Role, str]]) -> None:
        super().__init__(owners)
        self.table: LiveTensorTable = LiveTensorTable(owners, self._note_free)
        self._now: Pass = "forward"
        self._nodes: list[int] = []  # number of nodes of autograd after each kernel of forward
        self._makers: list[ModuleCall | FunctionCall] = []  # the owner of each of those kernels
        self._backward: BackwardCall

    def start(self, part: Pass) -> None:
        """Note that a pass of the step begins."""
        self._now = part
        if part == "backward":
            self._backward = BackwardCall(self._makers[-1])

    def _part(self) -> Pass:
        return "recompute" if self._now == "backward" else self._now

    def finish(self) -> None:
        """Note nothing more; what the step leaves behind is not a part of it."""
        self.table.stop()

    def _note_free(self, storage: int) -> None:
        if self.kernels:
            self.kernels[-1].frees.append(storage)

    def call(self, func: Callable[..., Any], args: Any, kwargs: Any, run: RunFunction) -> Any:
        """Call a torch function, as `Recorder.call`, by the kernels with which a GPU trains."""
        self._drop_ended_helpers()
        if func in fused_functions.REPLACED:
            return super().call(func, args, kwargs, self._run_replaced)
        return super().call(func, args, kwargs, run)

    def _run_replaced(self, func: Any, args: Any, kwargs: Any) -> Any:
        return fused_functions.replaced(func, args, kwargs)

    def layer(self, layer: Layer, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a layer."""
        with unrecorded():
            self.enter(layer.path, layer.module, (args, kwargs), is_layer=True)
        output = None
        try:
            output = forward(*args, **kwargs)
        finally:
            with unrecorded():
                self.leave(layer.module, output)
        return output

    def enter(
        self, path: str, module: torch.nn.Module, inputs: Any, *, is_layer: bool = False
    ) -> None:
        """Record the start of a module call; a recomputed one is no further call of the module."""
        self._drop_ended_helpers()
        super().enter(path, module, inputs, is_layer=is_layer)
        if self._now == "backward":
            self.calls.pop()

    def saving(self, tensor: torch.Tensor) -> torch.Tensor:
        """Note that autograd keeps a tensor for the operator that runs, and return it."""
        parent = self._open[-1] if self._open else None
        owner = parent if parent is not None and parent.is_leaf else self._function
        if owner is not None:
            with unrecorded():
                owner.saved.append(self.table.add(tensor))
        return tensor

    def kernel(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Record a kernel that has run; an optimizer counts its steps on the host."""
        if self._now == "optimizer" and not any(
            tensor.is_meta for tensor in tensors_in((args, kwargs, out))
        ):
            return
        super().kernel(func, args, kwargs, out)

    def _drop_ended_helpers(self) -> None:
        """Forget the frames of helpers that returned: they refer to tensors."""
        for call in self._open:
            if not call.helpers:
                continue
            running = call_stack.running_frames()
            for key in [key for key in call.helpers if key not in running]:
                call.helpers.pop(key).frame = None

    def leave(self, module: torch.nn.Module, output: Any) -> None:
        """Record the end of a module call, and forget the frames of its helpers."""
        for call in self._open:
            if call.module is module:
                for helper in call.helpers.values():
                    helper.frame = None
        super().leave(module, output)

    def _held(self, frames: list[FrameType], step: object = None) -> tuple[int, ...]:
        return ()  # storages tell their own end

    def _held_inside(self, owner: object) -> tuple[int, ...]:
        return ()

    def _owner(self, name: str) -> Owner:
        if self._now == "backward" and not self._open:
            return self._backward_of(torch._C._current_autograd_node())
        return super()._owner(name)

    def _backward_of(self, node: Any) -> BackwardCall:
        """The run of kernels of the call that made a node; that before, for sums of gradients."""
        number = -1 if node is None else node._sequence_nr()
        place = bisect_right(self._nodes, number)
        if number >= 0 and place < len(self._makers):
            forward = self._makers[place]
            if forward is not self._backward.forward:
                self._backward = BackwardCall(forward)
        return self._backward

    def _add(self, owner: Owner, kernel: Kernel) -> None:
        super()._add(owner, kernel)
        if self._now == "forward" and not isinstance(owner, BackwardCall):
            self._nodes.append(_AUTOGRAD._get_sequence_nr())
            self._makers.append(owner)

    def _attention(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
        arguments = fused_kernels.AttentionArguments(*args, **kwargs)
        with unrecorded():
            fused = fused_functions.fused_attention(arguments)
            if fused is None:
                return fused_functions.plain_attention(arguments)
            with self._paused():
                found = fused()
            outputs = self.table.add_all(found)
            owner = self._owner(scaled_dot_product_attention.__name__)
            inputs = self.table.add_all(arguments[:4])
            count = flops.attention_flops(arguments)
            name, causal = fused_kernels.ATTENTION, arguments.is_causal
            self._add(owner, one_kernel(name, inputs, outputs, outputs, count, causal=causal))
        return found[0]
