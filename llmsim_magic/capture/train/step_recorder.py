"""Record a training step: forward, recomputed forward, backward and the optimizer.

A kernel of backward belongs to the operator whose call made the node of autograd that runs it.
The recorder holds no tensor of the step: weak references note when each storage is freed.
"""

import sys
from bisect import bisect_right
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import torch
from torch.autograd.graph import _engine_run_backward
from torch.nn.functional import scaled_dot_product_attention

from llmsim_magic.capture.kernels import call_stack, flops, fused_kernels, kernel_facts
from llmsim_magic.capture.kernels.tensors import dtype_name, unrecorded
from llmsim_magic.capture.record.events import (
    BackwardCall,
    FunctionCall,
    ModuleCall,
    Owner,
    ReplayCall,
)
from llmsim_magic.capture.record.recorder import Recorder, RunFunction, one_kernel
from llmsim_magic.capture.replay.layer_matching import Layer
from llmsim_magic.capture.train import fused_functions
from llmsim_magic.capture.train.live_tensors import LiveTensorTable
from llmsim_magic.records.trace.recorded import Kernel, Pass, Role

AUTOGRAD = torch._C._autograd
NO_NODE = -1  # the number of what no call made, such as the sum of a parameter's gradients
SavedTensor = tuple[torch.Tensor, int]  # with its version
_APPLY = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]
_FIRST_SUM = 2**63  # numbers of nodes that add up gradients


def unpacked(saved: SavedTensor) -> torch.Tensor:
    """Return a tensor that `StepRecorder.saving` has packed.

    Raises:
        RuntimeError: It was written in place since, so that torch refuses to run backward.
    """
    tensor, version = saved
    if tensor._version != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace "
            f"operation: {dtype_name(tensor.dtype)} {list(tensor.shape)} is at version "
            f"{tensor._version}; expected version {version} instead"
        )
    return tensor


def node_number(node: Any) -> int:
    """The number of a node of autograd by the order of calls; `NO_NODE` if no call made it."""
    number = NO_NODE if node is None else int(node._sequence_nr())
    return NO_NODE if number >= _FIRST_SUM else number


class StepRecorder(Recorder):
    """All events of one training step.

    Args:
        owners: Role and name of the model's storages, by storage address.
    """

    def __init__(self, owners: Mapping[int, tuple[Role, str]]) -> None:
        super().__init__(owners)
        self.table: LiveTensorTable = LiveTensorTable(owners, self._note_free)
        self._now: Pass = "forward"
        # The number of nodes of autograd after each kernel of forward, whether it runs first or
        # again, and the owners of those kernels.
        self._nodes: list[int] = []
        self._node_owners: list[ModuleCall | FunctionCall] = []
        self._containers: dict[int, str] = {}  # paths of modules with children, by id
        self._reopened: ModuleCall | None = None  # a layer that is run again
        self._saved_before: list[int] = []  # by autograd, before the next operator runs
        self._recomputing_node = NO_NODE  # that last needed something of forward to run again
        self._backward: BackwardCall
        self._forward_nodes = 0  # number of nodes of autograd when backward starts

    def start(self, part: Pass) -> None:
        """Note that a pass of the step begins."""
        self._close_reopened()
        self._now = part
        if part == "backward":
            self._forward_nodes = AUTOGRAD._get_sequence_nr()
            self._backward = BackwardCall(self._node_owners[-1])
            self._containers = {
                id(each.module): each.path for each in self.calls if not each.is_leaf
            }

    def hold(self, tensors: list[torch.Tensor]) -> None:
        """Note nothing: what a kernel frees is known in a step."""

    def end_backward(self) -> None:
        """Note that backward has ended."""

    def _part(self) -> Pass:
        return "recompute" if self._now == "backward" else self._now

    def finish(self) -> None:
        """Note nothing more; what the step leaves behind is not a part of it."""
        self.table.stop()

    def _note_free(self, storage: int) -> None:
        last = self.events[-1] if self.events else None
        if isinstance(last, ReplayCall):
            last.frees.append(storage)
        elif self.kernels:
            self.kernels[-1].frees.append(storage)

    def call(self, func: Callable[..., Any], args: Any, kwargs: Any, run: RunFunction) -> Any:
        """Call a torch function, as `Recorder.call`, by the kernels with which a GPU trains."""
        self._drop_ended_helpers()
        self._reopen()
        if func in fused_functions.REPLACED:
            return super().call(func, args, kwargs, fused_functions.replaced)
        return super().call(func, args, kwargs, run)

    def layer(self, layer: Layer, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a layer."""
        return self._run_layer(layer, forward, args, kwargs)

    def _run_layer(self, layer: Layer, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        with unrecorded():
            self.enter(layer.path, layer.module, (args, kwargs), is_layer=True)
        output = None
        was_in_layer, self._in_layer = self._in_layer, True
        try:
            with torch._C._EnableTorchFunction():
                output = forward(*args, **kwargs)
        finally:
            self._in_layer = was_in_layer
            with unrecorded():
                self.leave(layer.module, output)
        return output

    def enter(
        self, path: str, module: torch.nn.Module, inputs: Any, *, is_layer: bool = False
    ) -> None:
        """Record the start of a module call; a recomputed one is no further call of the module."""
        self._drop_ended_helpers()
        self._reopen(but=module)
        super().enter(path, module, inputs, is_layer=is_layer)
        self._open[-1].saved_tensor_hook_id = _saved_tensor_hook_id()
        if self._now == "backward":
            self.calls.pop()

    def saving(self, tensor: torch.Tensor) -> SavedTensor:
        """Note that autograd keeps a tensor for the operator that runs.

        A function of the model's own keeps tensors once its forward has run, for an operator in it.
        What a checkpoint keeps before it runs its layer is kept for the first operator in it.

        Returns:
            An alias of the tensor, as the output of an operator would keep itself alive through its
            node; and its version, which torch does not check where a hook packs it.
        """
        owner: ModuleCall | FunctionCall | None = self._function
        if self._open and self._open[-1].is_leaf:
            owner = self._open[-1]
        if owner is None and sys._getframe(1).f_code is _APPLY:
            owner = self._first_of_last_node()
        with unrecorded():
            saved = self._saved_before if owner is None else owner.saved
            if tensor.numel():  # the checkpoint of torch 2.11 keeps an empty one
                saved.append(self.table.add(tensor))
            with torch._C._DisableTorchDispatch():
                return tensor.detach(), tensor._version

    def _first_of_last_node(self) -> ModuleCall | FunctionCall | None:
        """The operator that ran first since the last node of autograd was made, if any did."""
        place = bisect_right(self._nodes, AUTOGRAD._get_sequence_nr() - 1)
        number = len(self._node_owners) - place
        calls = self.kernels[len(self.kernels) - number :]
        owners = (call.owner for call in calls if not call.kernel.is_view)
        return next((each for each in owners if not isinstance(each, BackwardCall)), None)

    def kernel(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Record a kernel that has run, but no view of nothing: some keep empty tensors."""
        if isinstance(out, torch.Tensor) and not out.numel():
            facts = kernel_facts.facts(func)
            if facts.is_allocation or (facts.may_alias and not facts.is_in_place):
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
        return ()  # weak references note when storages are freed

    def _held_inside(self, owner: object) -> tuple[int, ...]:
        return ()

    def _reopen(self, *, but: torch.nn.Module | None = None) -> None:
        """Open the layer that a checkpoint runs again, if it does so without the layer's hooks.

        Args:
            but: The module that is called now, by its hooks.
        """
        if self._now != "backward" or self._open:
            return
        module = call_stack.method_of(self._containers, _engine_run_backward.__code__, 3, but=but)
        if module is None:
            return
        path = self._containers[id(module)]
        self._begin_recomputation(path)
        self._reopened = ModuleCall(
            path=path,
            module=module,
            is_leaf=False,
            source=None,
            in_helper=False,
            inputs=(),
            part="recompute",
        )
        self._open.append(self._reopened)

    def _begin_recomputation(self, path: str) -> None:
        """Note that a layer is about to run again."""

    def _close_reopened(self) -> None:
        """Close a layer that was opened to be run again, once the engine runs its backward."""
        if self._reopened is not None and self._open == [self._reopened]:
            self._open.clear()
            self._reopened = None

    def _owner(self, name: str) -> Owner:
        if self._function is None:
            self._close_reopened()
        if self._now == "backward":
            node = torch._C._current_autograd_node()
            runs_again = self._open or (node is not None and torch.is_grad_enabled())
            if not runs_again or self._is_recomputed(node):
                return self._backward_of(node)
            self._recomputing_node = node_number(node)
        return super()._owner(name)

    def _is_recomputed(self, node: Any) -> bool:
        """Whether a node is of a graph that backward itself made, and now differentiates.

        A reentrant checkpoint does so: it runs its layer again with gradients, and then a backward
        of its own. That ends with nodes that add to the gradients of leaves.
        """
        number = node_number(node)
        return number >= self._forward_nodes or (number == NO_NODE and node is not None)

    def _backward_of(self, node: Any) -> BackwardCall:
        """The run of kernels of the call that made a node; that before, for sums of gradients."""
        number = node_number(node)
        place = bisect_right(self._nodes, number)
        if number > NO_NODE and place < len(self._node_owners):
            forward = self._node_owners[place]
            if forward is not self._backward.forward:
                self._backward = BackwardCall(forward)
        return self._backward

    def _add(self, owner: Owner, kernel: Kernel) -> None:
        super()._add(owner, kernel)
        if self._now != "optimizer" and not isinstance(owner, BackwardCall):
            if self._saved_before and not kernel.is_view:
                owner.saved += self._saved_before
                self._saved_before = []
            self._nodes.append(AUTOGRAD._get_sequence_nr())
            self._node_owners.append(owner)

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


def _saved_tensor_hook_id() -> int:
    """The id of what packs saved tensors now: ours, or that of the innermost checkpoint."""
    hooks = AUTOGRAD._top_saved_tensors_default_hooks(True)
    return 0 if hooks is None else id(hooks[0])
