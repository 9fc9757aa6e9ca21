"""Record the module calls and replayed layers of a forward pass, and the helpers around calls."""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from types import FrameType
from typing import Any

import torch

from llmsim_magic.capture.kernels import call_stack
from llmsim_magic.capture.kernels.tensors import TensorTable, unrecorded
from llmsim_magic.capture.record.events import (
    Event,
    ForwardStep,
    HelperCall,
    KernelCall,
    LayerSpan,
    ModuleCall,
    ReplayCall,
)
from llmsim_magic.capture.record.list_lifetimes import ListLifetimes
from llmsim_magic.capture.record.replayed_layers import (
    ReplayedLayers,
    hooked_tensors,
    is_read_inside,
)
from llmsim_magic.capture.replay.layer_matching import Layer
from llmsim_magic.capture.replay.replay import Replayed, Replayer
from llmsim_magic.records.trace.recorded import Pass, Role


class ModuleRecorder:
    """The events of one pass, in the order in which they happened.

    Args:
        owners: Role and name of the model's storages, by storage address.
        replayer: Replays layers that repeat earlier ones; without it every layer runs.
    """

    def __init__(
        self, owners: Mapping[int, tuple[Role, str]], replayer: Replayer | None = None
    ) -> None:
        self.table = TensorTable(owners)
        self.lists = ListLifetimes(self.table.add_all)
        self.kernels: list[KernelCall] = []
        self.events: list[Event] = []
        self.calls: list[ModuleCall] = []
        self._replayer = replayer
        self._layers = ReplayedLayers(self.table)
        self._in_layer = False
        self._last_outputs: frozenset[int] = frozenset()  # of the last layer that returned
        self._open: list[ModuleCall] = []  # module calls that have not returned, outermost first
        self._forward_code = cache(call_stack.forward_code)  # for one pass: it holds modules

    def layer(self, layer: Layer, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a layer, or replay it if it repeats an earlier one.

        Args:
            layer: The layer that is called.
            forward: Its forward.
            args: Positional arguments of the call.
            kwargs: Keyword arguments of the call.

        Returns:
            The layer's output.
        """
        replayer = self._replayer
        with unrecorded():
            replayed = replayer.replay(layer, args, kwargs) if replayer else None
            if replayed is not None:
                self._record_replay(layer, replayed, (args, kwargs))
                self._last_outputs = frozenset(self.table.add_all(replayed.output))
                return replayed.output
            start = self._position()
            self.lists.start_section()
            self.enter(layer.path, layer.module, (args, kwargs), is_layer=True)
            self._move_held_to_caller()
        was_in_layer, self._in_layer = self._in_layer, True
        output, run = None, None
        try:
            if replayer is None:
                output = forward(*args, **kwargs)
            else:
                output, run = replayer.run(layer, forward, args, kwargs)
        finally:
            self._in_layer = was_in_layer
            with unrecorded():
                self.leave(layer.module, output)
                self._last_outputs = frozenset(self.table.add_all(output))
                self.lists.start_section()
        if run is not None:
            self._layers.spans[run] = self._span(start)
        return output

    def is_read_inside(self, results: Iterable[int] = ()) -> bool:
        """Whether anything reads inside a layer that was replayed, as a hook on its parts may.

        Args:
            results: The numbers of the tensors that the pass leaves.
        """
        return is_read_inside(self.events, self.kernels, self.calls, self.table.tensors, results)

    def _part(self) -> Pass:
        """The pass of a training step in which a call is made now."""
        return "forward"

    def _move_held_to_caller(self) -> None:
        """Attributes tensors held around a layer to its caller, for the first of its layers only.

        They differ from layer to layer, so a replayed layer could not reproduce them; most that
        are held at the first layer are held at all. What the layer before returned stays with the
        layer: a variable such as `outputs` refers to it until this one returns.
        """
        layer, caller = self.calls[-1], self._open[-2] if len(self._open) > 1 else None
        if caller is not None and not caller.has_layers:
            caller.has_layers = True
            inputs = set(layer.inputs)
            caller.held += tuple(index for index in layer.held if index not in inputs)
        layer.held = self._held_outputs(layer.held, layer.inputs)

    def _held_outputs(self, held: tuple[int, ...], inputs: tuple[int, ...]) -> tuple[int, ...]:
        """Those of some tensors that the layer before returned and the next one does not take."""
        found = self._last_outputs.difference(inputs)
        return tuple(index for index in dict.fromkeys(held) if index in found)

    def _span(self, start: tuple[int, int, int]) -> LayerSpan:
        events, kernels, calls = zip(start, self._position(), strict=True)
        return LayerSpan(events, kernels, calls, self.calls[calls[0]].in_helper)

    def _position(self) -> tuple[int, int, int]:
        return len(self.events), len(self.kernels), len(self.calls)

    def _record_replay(self, layer: Layer, replayed: Replayed, inputs: Any) -> None:
        span = self._layers.spans[replayed.run]
        if span.in_helper:
            self._caller()
        self.lists.start_section()
        pairs = tuple(self._layers.tensor_pairs(replayed))
        held: tuple[int, ...] = ()
        if not self._last_outputs.issubset([own for _, own in pairs[: replayed.inputs]]):
            held = self._held(call_stack.frames_of_caller(1))
            held = self._held_outputs(held, self.table.add_all(inputs))
        self.events.append(
            ReplayCall(
                path=layer.path,
                of=replayed.run.layer.path,
                span=span,
                before_kernel=len(self.kernels),
                tensors=pairs,
                held=held,
                is_first=self._layers.add_replay(layer.path),
            )
        )

    def _caller(self) -> tuple[str | None, bool, list[FrameType]]:
        """The line that calls a module, whether it is in a helper, and its frames.

        Marks the helpers around the call as not whole.
        """
        if not self._open:
            return None, False, []
        parent = self._open[-1]
        forward = self._forward_code(parent.module)
        frames = call_stack.frames_of_caller(3)
        helpers = self._helpers(parent, frames)
        for helper in helpers:
            helper.is_whole = False
        return call_stack.source_line(frames, forward), bool(helpers), frames

    def _held(self, frames: list[FrameType], step: ForwardStep | None = None) -> tuple[int, ...]:
        """Tensors in the local variables of frames; lists are noted for `step` if it is given."""
        values = [value for frame in frames for value in frame.f_locals.values()]
        if step is not None:
            values = [v for v in values if type(v) is not list or not self.lists.note(step, v)]
        return self.table.add_all(values)

    def enter(
        self, path: str, module: torch.nn.Module, inputs: Any, *, is_layer: bool = False
    ) -> None:
        """Record the start of a module call.

        Args:
            path: Path of the module.
            module: The module.
            inputs: Its positional and keyword arguments.
            is_layer: Whether it is a layer that may be replayed.
        """
        source, in_helper, frames = self._caller()
        is_leaf = next(module.children(), None) is None
        numbers = self.table.add_all(inputs)
        call = ModuleCall(
            path=path,
            module=module,
            is_leaf=is_leaf,
            source=source,
            in_helper=in_helper,
            inputs=numbers,
            part=self._part(),
        )
        call.held += self._held(frames, call if is_leaf and not is_layer else None)
        if not self._in_layer:
            self._layers.add_call(path)
        self._open.append(call)
        self.calls.append(call)
        if is_leaf:
            self.events.append(call)

    def leave(self, module: torch.nn.Module, output: Any) -> None:
        """Record the end of a module call and of calls inside it that an exception ended."""
        while self._open:
            call = self._open.pop()
            call.helpers.clear()
            if call.module is module:
                call.outputs = self.table.add_all(output)
                call.hooked = hooked_tensors(call)
                return

    def _helpers(self, parent: ModuleCall, frames: list[FrameType]) -> tuple[HelperCall, ...]:
        forward = self._forward_code(parent.module)
        found = []
        for frame in call_stack.helper_frames(frames, forward):
            helper = parent.helpers.get(id(frame))
            if helper is None:
                outer = frames[frames.index(frame) + 1 :]
                helper = parent.helpers[id(frame)] = HelperCall(
                    name=call_stack.function_name(frame),
                    path=parent.path,
                    source=call_stack.source_line(outer, forward),
                    inputs=self.table.add_all(call_stack.frame_arguments(frame)),
                    frame=frame,
                    is_whole=call_stack.is_helper(frame.f_code),
                    part=self._part(),
                )
                helper.held += self._held(outer, helper)
            found.append(helper)
        return tuple(found)
