"""Record a training step: forward, recomputed forward, backward and the optimizer.

A kernel of backward belongs to the operator whose call made the node of autograd that runs it.
Nothing is held of the step: what a storage outlives is told by its own end.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch.autograd.graph import _engine_run_backward
from torch.nn.functional import scaled_dot_product_attention

from llmsim_magic.capture.kernels import call_stack, flops, fused_kernels
from llmsim_magic.capture.kernels.tensors import tensors_in, unrecorded
from llmsim_magic.capture.meta.partial_evaluation import PartialEvaluation
from llmsim_magic.capture.record.events import (
    BackwardCall,
    FunctionCall,
    LayerSpan,
    ModuleCall,
    Owner,
    ReplayCall,
)
from llmsim_magic.capture.record.recorder import Recorder, RunFunction, one_kernel
from llmsim_magic.capture.replay.layer_matching import Layer
from llmsim_magic.capture.train import fused_functions
from llmsim_magic.capture.train.layer_replay import (
    LayerReplayer,
    LayerRun,
    OneNode,
    Output,
    ReplayedLayer,
    StateOfLayer,
    UnequalBackward,
    output_of,
)
from llmsim_magic.capture.train.live_tensors import LiveTensorTable
from llmsim_magic.records.trace.recorded import Kernel, Pass, Role

_AUTOGRAD = torch._C._autograd
_NO_NODE = 2**63  # from here on are nodes that no call made: they add up gradients of parameters


class TrainRecorder(Recorder):
    """All events of one training step.

    Args:
        owners: Role and name of the model's storages, by storage address.
        evaluation: The partial evaluation of the step.
        replay: Whether layers that repeat earlier ones are replayed.
    """

    def __init__(
        self,
        owners: Mapping[int, tuple[Role, str]],
        evaluation: PartialEvaluation,
        *,
        replay: bool,
    ) -> None:
        super().__init__(owners)
        self.table: LiveTensorTable = LiveTensorTable(owners, self._note_free)
        self._now: Pass = "forward"
        self._nodes: list[int] = []  # number of nodes of autograd after each kernel of forward
        self._makers: list[ModuleCall | FunctionCall] = []  # the owner of each of those kernels
        self._containers: dict[int, str] = {}  # paths of modules with children, by id
        self._reopened: ModuleCall | None = None  # a layer that is run again
        self._saved_before: list[int] = []  # by autograd, before the next operator runs
        self._backward: BackwardCall
        self._evaluation = evaluation
        self._layer_replayer = LayerReplayer(evaluation, self.table) if replay else None
        self._runs: list[LayerRun] = []
        self._replayed: list[ReplayedLayer] = []
        self._recomputed: dict[str, tuple[int, int, int]] = {}  # where a layer begins again
        # The place of each kernel of backward, and the number of its node.
        self._backward_kernels: list[tuple[tuple[int, int, int], int]] = []

    def start(self, part: Pass) -> None:
        """Note that a pass of the step begins."""
        self._close_reopened()
        self._now = part
        if part == "backward":
            self._backward = BackwardCall(self._makers[-1])
            self._containers = {
                id(each.module): each.path for each in self.calls if not each.is_leaf
            }
            if self._layer_replayer is not None:
                self._layer_replayer.forget()

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
            return super().call(func, args, kwargs, self._run_replaced)
        return super().call(func, args, kwargs, run)

    def _run_replaced(self, func: Any, args: Any, kwargs: Any) -> Any:
        return fused_functions.replaced(func, args, kwargs)

    def layer(self, layer: Layer, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a layer, or replay it if it repeats earlier ones."""
        if self._now == "backward":
            self._recomputed[layer.path] = self._position()
            return self._run_layer(layer, forward, args, kwargs)
        if self._layer_replayer is None:
            return self._run_layer(layer, forward, args, kwargs)
        with unrecorded():
            described = self._layer_replayer.describe(layer, (args, kwargs))
            if described is None:
                return self._run_layer(layer, forward, args, kwargs)
            call, key = described
            run = self._layer_replayer.repeated(layer, key, call.tensors)
            if run is not None and run.output is not None:
                return self._replay(layer, run, run.output, call.tensors)
            before = StateOfLayer(self._layer_replayer, layer, call)
            inputs = self.table.add_all(call.tensors)
            start, node = self._position(), _AUTOGRAD._get_sequence_nr()
            assumed, values = self._evaluation.assumed.copy(), call.host_values
            del call, described
        output = self._run_layer(layer, forward, args, kwargs)
        with unrecorded():
            run = LayerRun(
                layer=layer,
                span=self._span(start),
                nodes=(node, _AUTOGRAD._get_sequence_nr()),
                inputs=inputs,
                assumed=self._evaluation.assumed - assumed,
            )
            self._runs.append(run)
            tensors = tensors_in((args, kwargs))
            run.output = output_of(output, tensors)
            if run.output is not None and before.is_unchanged(self._evaluation, (args, kwargs)):
                for each in values:
                    each.release()
                run.key = key
                run.outputs = self.table.add_all(output)
                run.watch(self.table, [*tensors, *tensors_in(output)])
                self._layer_replayer.add(run)
        return output

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

    def _replay(
        self, layer: Layer, run: LayerRun, output: Output, tensors: list[torch.Tensor]
    ) -> Any:
        """Makes the output of a layer that repeats a run."""
        inputs = self.table.add_all(tensors)
        event = ReplayCall(
            path=layer.path,
            of=run.layer.path,
            span=run.span,
            before_kernel=len(self.kernels),
            tensors=(),
            held=(),
            is_first=self._layers.add_replay(layer.path),
        )
        replayed = ReplayedLayer(run=run, forward=event, layer=layer, inputs=inputs, outputs=())
        given = list({id(each): each for each in tensors if each.requires_grad}.values())
        numbers = self.table.add_all(given)
        backward = partial(self._replay_backward, replayed, numbers)
        made = list(OneNode.apply(output, backward, *given))
        replayed.outputs = self.table.add_all(made)
        for storage in {self.table.tensors[number].storage for number in replayed.outputs}:
            self.table.written.add(storage)
        event.tensors = tuple(
            zip((*run.inputs, *run.outputs), (*inputs, *replayed.outputs), strict=True)
        )
        self.events.append(event)
        self._replayed.append(replayed)
        if run.assumed:
            self._evaluation.assumed += run.assumed
        return output.with_tensors(made)

    def _replay_backward(
        self,
        replayed: ReplayedLayer,
        inputs: tuple[int, ...],
        gradients: tuple[torch.Tensor | None, ...],
        made: list[torch.Tensor],
    ) -> None:
        """Notes the backward of a replayed layer, and gives its parameters gradients."""
        with unrecorded(), torch._C._DisableTorchDispatch():
            table = self.table
            event = ReplayCall(
                path=replayed.layer.path,
                of=replayed.run.layer.path,
                span=replayed.run.span,
                before_kernel=len(self.kernels),
                tensors=(),
                held=(),
                is_first=False,
                resumes=replayed.forward,
            )
            replayed.backward = event
            self.events.append(event)
            for number, gradient in zip(replayed.outputs, gradients, strict=True):
                if gradient is not None:
                    replayed.gradients[number] = table.add(gradient)
            for number, gradient in zip(inputs, made, strict=True):
                replayed.gradients[number] = table.add(gradient)
                table.written.add(table.tensors[replayed.gradients[number]].storage)
            for parameter in replayed.layer.module.parameters():
                if parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)

    def check_replays(self) -> None:
        """Complete the events of replayed layers by what the layers that they repeat did.

        Raises:
            UnequalBackward: A layer's backward is not like that of the one that it repeats.
        """
        for run in self._runs:
            if run.is_repeated:
                run.backward = self._backward_span(run)
                _check_gradients(run.layer.module)
        for replayed in self._replayed:
            pairs, event = replayed.pairs(self.table), replayed.backward
            if (event is None) is not (replayed.run.backward is None):
                raise UnequalBackward
            if event is not None and replayed.run.backward is not None:
                event.span, event.tensors = replayed.run.backward, pairs

    def _backward_span(self, run: LayerRun) -> LayerSpan | None:
        """The events and kernels of a layer's backward.

        Raises:
            UnequalBackward: Kernels of others are among them.
        """
        first, last = run.nodes
        own = [
            place for place, (_, node) in enumerate(self._backward_kernels) if first <= node < last
        ]
        if not own:
            return None
        end = own[-1] + 1
        others = self._backward_kernels[own[0] : end]
        if any(0 <= node < _NO_NODE and not first <= node < last for _, node in others):
            raise UnequalBackward
        while end < len(self._backward_kernels) and not (
            0 <= self._backward_kernels[end][1] < _NO_NODE
        ):
            end += 1
        start, _ = self._backward_kernels[own[0]]
        events, kernels, calls = min(start, self._recomputed.get(run.layer.path, start))
        (last_event, last_kernel, _), _ = self._backward_kernels[end - 1]
        return LayerSpan(
            (events, last_event + 1), (kernels, last_kernel + 1), (calls, calls), in_helper=False
        )

    def enter(
        self, path: str, module: torch.nn.Module, inputs: Any, *, is_layer: bool = False
    ) -> None:
        """Record the start of a module call; a recomputed one is no further call of the module."""
        self._drop_ended_helpers()
        self._reopen()
        super().enter(path, module, inputs, is_layer=is_layer)
        if self._now == "backward":
            self.calls.pop()

    def saving(self, tensor: torch.Tensor) -> torch.Tensor:
        """Note that autograd keeps a tensor for the operator that runs, and return it.

        What a checkpoint keeps before it runs its layer is kept for the first operator in it.
        """
        parent = self._open[-1] if self._open else None
        owner = parent if parent is not None and parent.is_leaf else self._function
        with unrecorded():
            saved = self._saved_before if owner is None else owner.saved
            saved.append(self.table.add(tensor))
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

    def _reopen(self) -> None:
        """Open the layer that a checkpoint runs again, if it does so around the layer's hooks."""
        if self._now != "backward" or self._open:
            return
        module = call_stack.method_of(self._containers, _engine_run_backward.__code__, 3)
        if module is None:
            return
        path = self._containers[id(module)]
        self._recomputed.setdefault(path, self._position())
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

    def _close_reopened(self) -> None:
        """Close a layer that was opened to be run again, once the engine runs its backward."""
        if self._reopened is not None and self._open == [self._reopened]:
            self._open.clear()
            self._reopened = None

    def _owner(self, name: str) -> Owner:
        if self._function is None:
            self._close_reopened()
        if self._now == "backward" and not self._open:
            return self._backward_of(torch._C._current_autograd_node())
        return super()._owner(name)

    def _backward_of(self, node: Any) -> BackwardCall:
        """The run of kernels of the call that made a node; that before, for sums of gradients."""
        number = -1 if node is None else node._sequence_nr()
        self._backward_kernels.append((self._position(), number))
        place = bisect_right(self._nodes, number)
        if number >= 0 and place < len(self._makers):
            forward = self._makers[place]
            if forward is not self._backward.forward:
                self._backward = BackwardCall(forward)
        return self._backward

    def _add(self, owner: Owner, kernel: Kernel) -> None:
        super()._add(owner, kernel)
        if self._now == "forward" and not isinstance(owner, BackwardCall):
            if self._saved_before and not kernel.is_view:
                owner.saved += self._saved_before
                self._saved_before = []
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


def _check_gradients(module: torch.nn.Module) -> None:
    """Check the gradients of a layer that ran against those that replayed layers were given.

    Raises:
        UnequalBackward: A parameter has none, or one of another layout.
    """
    for parameter in module.parameters():
        if not parameter.requires_grad:
            continue
        gradient = parameter.grad
        if gradient is None or gradient.stride() != parameter.stride():
            raise UnequalBackward
