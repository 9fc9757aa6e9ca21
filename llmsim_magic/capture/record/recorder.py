"""Note every module call, function and kernel of a forward pass as it happens.

The hooks of the model's harness tell of modules, the modes of `listening.py` of functions and
kernels. A layer that may be replayed is noted as one event. What is noted is put in order by
`operators.py`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import FrameType
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from llmsim_magic.capture.kernels import collectives, flops, fused_kernels, kernel_facts
from llmsim_magic.capture.kernels.tensors import TensorTable, tensors_in, unrecorded
from llmsim_magic.capture.meta import call_stack
from llmsim_magic.capture.record.list_lifetimes import ListLifetimes
from llmsim_magic.capture.replay.layer_equality import Run
from llmsim_magic.capture.replay.layer_matching import Layer
from llmsim_magic.capture.replay.replay import Replayed, Replayer
from llmsim_magic.records.trace.recorded import Kernel, Role


@dataclass(slots=True, eq=False)
class ModuleCall:
    """A call of a module. A leaf's call is an operator; a container's groups those inside it."""

    path: str
    module: Any
    is_leaf: bool
    source: str | None
    in_helper: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...] = ()
    helpers: dict[int, "HelperCall"] = field(default_factory=dict)
    held: tuple[int, ...] = ()
    has_layers: bool = False


@dataclass(slots=True, eq=False)
class HelperCall:
    """A call of a Python function by a container's forward, such as `apply_rotary_pos_emb`.

    `is_whole` until a matmul, an attention or a module is seen inside it: then its parts are
    the operators. A generator or an inherited forward never is. The frame is held so that no
    other call is taken for this one.
    """

    name: str
    path: str
    source: str | None
    inputs: tuple[int, ...]
    frame: FrameType
    held: tuple[int, ...] = ()
    is_whole: bool = True


@dataclass(slots=True, eq=False)
class FunctionCall:
    """A call of a torch function outside any leaf module."""

    name: str
    path: str
    source: str | None = None
    helpers: tuple[HelperCall, ...] = ()
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    held: tuple[int, ...] = ()


@dataclass(slots=True, eq=False)
class KernelCall:
    """A kernel as the record will have it, but for its operator, which follows from its owner."""

    owner: ModuleCall | FunctionCall
    kernel: Kernel


@dataclass(frozen=True, slots=True)
class Span:
    """What a layer that ran left in the recorder: its events, kernels and module calls."""

    events: tuple[int, int]
    kernels: tuple[int, int]
    calls: tuple[int, int]
    in_helper: bool


@dataclass(frozen=True, slots=True, eq=False)
class ReplayCall:
    """A layer that was not run, the one it repeats, and the tensors across their borders."""

    path: str
    of: str
    span: Span
    before_kernel: int
    tensors: tuple[tuple[int, int], ...]
    is_first: bool


class Recorder:
    """All that one pass did, in the order it did it; without a replayer every layer is run."""

    def __init__(
        self, owners: Mapping[int, tuple[Role, str]], replayer: Replayer | None = None
    ) -> None:
        self.table = TensorTable(owners)
        self.lists = ListLifetimes(self.table.add_all)
        self.kernels: list[KernelCall] = []
        self.events: list[ModuleCall | KernelCall | ReplayCall] = []
        self.calls: list[ModuleCall] = []
        self._replayer = replayer
        self._called: set[str] = set()  # layers that ran, and modules called outside of any
        self._replayed_layers: set[str] = set()
        self._in_layer = False
        self._spans: dict[Run, Span] = {}
        self._numbers: dict[Run, dict[int, tuple[int, torch.Tensor]]] = {}
        self._open: list[ModuleCall] = []
        self._function: FunctionCall | None = None
        self._quiet = False
        self._forward_code = cache(call_stack.forward_code)  # for one pass: it holds modules

    # modules

    def layer(self, layer: Layer, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a layer, or note that it does what an earlier one did."""
        replayer = self._replayer
        with unrecorded():
            replayed = replayer.replay(layer, args, kwargs) if replayer else None
            if replayed is not None:
                self._replayed(layer, replayed)
                return replayed.output
            first = self._marks()
            self.lists.part()
            self.enter(layer.path, layer.module, (args, kwargs), is_layer=True)
            self._beside_layers()
        within, self._in_layer = self._in_layer, True
        output, run = None, None
        try:
            if replayer is None:
                output = forward(*args, **kwargs)
            else:
                output, run = replayer.run(layer, forward, args, kwargs)
        finally:
            self._in_layer = within
            with unrecorded():
                self.leave(layer.module, output)
                self.lists.part()
        if run is not None:
            self._spans[run] = self._span(first)
        return output

    def _beside_layers(self) -> None:
        """What its caller holds beside the first of its layers, it mostly holds beside all.

        It changes from layer to layer, so that no layer that is replayed could say it.
        """
        layer, caller = self.calls[-1], self._open[-2] if len(self._open) > 1 else None
        if caller is not None and not caller.has_layers:
            caller.has_layers = True
            given = set(layer.inputs)
            caller.held += tuple(index for index in layer.held if index not in given)
        layer.held = ()

    def _span(self, first: tuple[int, int, int]) -> Span:
        events, ran, calls = zip(first, self._marks(), strict=True)
        return Span(events, ran, calls, self.calls[calls[0]].in_helper)

    def _marks(self) -> tuple[int, int, int]:
        return len(self.events), len(self.kernels), len(self.calls)

    def _replayed(self, layer: Layer, replayed: Replayed) -> None:
        span = self._spans[replayed.run]
        if span.in_helper:
            self._called_from()
        pairs = tuple(self._pairs(replayed))
        self.events.append(
            ReplayCall(
                layer.path,
                replayed.run.layer.path,
                span,
                len(self.kernels),
                pairs,
                is_first=layer.path not in self._replayed_layers
                and not any(_lies_in(path, layer.path) for path in self._called),
            )
        )
        self._replayed_layers.add(layer.path)

    def _pairs(self, replayed: Replayed) -> Iterator[tuple[int, int]]:
        """The numbers of tensors and of their likes, which are written where those are.

        Where two of a layer's look into one storage, so do their likes.
        """
        table = self.table
        known = self._numbers.setdefault(replayed.run, {})
        likes: dict[int, torch.Tensor] = {}
        for one, other in replayed.tensors:
            if id(one) not in known:
                known[id(one)] = (table.add(one), one)
            number = known[id(one)][0]
            if one is other:
                yield number, number
                continue
            storage = table.tensors[number].storage
            if likes.setdefault(storage, other) is not other:
                table.alias(other, likes[storage])
            own = table.add(other)
            if storage in table.written:
                table.written.add(table.tensors[own].storage)
            yield number, own

    def _called_from(self) -> tuple[str | None, bool, list[FrameType]]:
        """The line that is about to call a module, whether in a helper, and the frames of both.

        No helper that calls a module is whole.
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

    def _held(
        self, frames: list[FrameType], step: ModuleCall | HelperCall | FunctionCall | None = None
    ) -> tuple[int, ...]:
        """The tensors that the forward of the running module, or a helper, has names for.

        What lists hold is told later, of the last such `step`.
        """
        values = [value for frame in frames for value in frame.f_locals.values()]
        if step is not None:
            values = [v for v in values if type(v) is not list or not self.lists.note(step, v)]
        return self.table.add_all(values)

    def enter(
        self, path: str, module: torch.nn.Module, inputs: Any, *, is_layer: bool = False
    ) -> None:
        source, in_helper, frames = self._called_from()
        is_leaf = next(module.children(), None) is None
        given = self.table.add_all(inputs)
        call = ModuleCall(path, module, is_leaf, source, in_helper, given)
        call.held += self._held(frames, call if is_leaf and not is_layer else None)
        if not self._in_layer:
            self._called.add(path)
        self._open.append(call)
        self.calls.append(call)
        if is_leaf:
            self.events.append(call)

    def leave(self, module: torch.nn.Module, output: Any) -> None:
        while self._open:
            call = self._open.pop()
            call.helpers.clear()
            if call.module is module:
                call.outputs = self.table.add_all(output)
                return

    # functions

    def call(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call a torch function, and note its arguments and results if it runs any kernel."""
        name = getattr(func, "__name__", type(func).__name__).strip("_")
        path = self._open[-1].path if self._open else ""
        call = self._function = FunctionCall(name, path)
        first = len(self.kernels)
        try:
            if func is scaled_dot_product_attention:
                out = self.attention(args, kwargs)
            elif func in fused_kernels.RECURRENT:
                out = self.recurrent(func, args)
            elif func in collectives.KERNELS:
                out = self.collective(func, args)
            else:
                out = func(*args, **kwargs)
        finally:
            self._function = None
        if len(self.kernels) > first:
            with unrecorded():
                call.inputs = self.table.add_all((args, kwargs))
                call.outputs = self.table.add_all(out) or self.kernels[-1].kernel.writes
        return out

    def _helpers(self, parent: ModuleCall, frames: list[FrameType]) -> tuple[HelperCall, ...]:
        forward = self._forward_code(parent.module)
        found = []
        for frame in call_stack.helper_frames(frames, forward):
            helper = parent.helpers.get(id(frame))
            if helper is None:
                outer = frames[frames.index(frame) + 1 :]
                helper = parent.helpers[id(frame)] = HelperCall(
                    call_stack.function_name(frame),
                    parent.path,
                    call_stack.source_line(outer, forward),
                    self.table.add_all(call_stack.frame_arguments(frame)),
                    frame,
                    is_whole=call_stack.is_helper(frame.f_code),
                )
                helper.held += self._held(outer, helper)
            found.append(helper)
        return tuple(found)

    # kernels

    def owner(self, name: str) -> ModuleCall | FunctionCall:
        """What the kernel now running belongs to: the leaf module or the function called."""
        parent = self._open[-1] if self._open else None
        if parent is not None and parent.is_leaf:
            return parent
        call = self._function or FunctionCall(name, parent.path if parent else "")
        if call.source is None:
            frames = call_stack.frames_of_call(3)
            if parent is not None:
                call.source = call_stack.source_line(frames, self._forward_code(parent.module))
                call.helpers = self._helpers(parent, frames)
                call.held += self._held(frames, call)
        return call

    def kernel(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        if self._quiet:
            return
        known = kernel_facts.facts(func)
        table = self.table
        inputs = tuple(map(table.add, tensors_in((args, kwargs))))
        if not inputs and not tensors_in(out):
            return  # a mark for torch's own profiler
        if known.is_to_copy and kernel_facts.only_changes_device(
            args[0], out, kwargs.get("device")
        ):
            table.alias(out, args[0])
        outputs = tuple(map(table.add, tensors_in(out)))
        if known.mutated:
            places = [
                kwargs.get(place) if isinstance(place, str) else args[place]
                for place in known.mutated
                if isinstance(place, str) or place < len(args)
            ]
            writes, is_view = table.add_all(places), False
        else:
            read = {table.tensors[index].storage for index in inputs}
            moved = [index for index in outputs if table.tensors[index].storage not in read]
            is_view = known.is_allocation or (bool(outputs) and not moved)
            writes = () if is_view else outputs
        self.note(
            self.owner(func._schema.name.removeprefix("aten::")),
            Kernel(
                known.name,
                None,
                inputs,
                outputs,
                writes,
                is_view,
                known.is_pointwise,
                causal=False,
                flops=flops.kernel_flops(func, args, kwargs, out),
            ),
        )

    def attention(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
        """Answer `scaled_dot_product_attention` with one kernel, as a GPU does."""
        given = fused_kernels.AttentionArguments(*args, **kwargs)
        self._quiet = True
        try:
            output = fused_kernels.fused_attention(given)
        finally:
            self._quiet = False
        written = (self.table.add(output),)
        self.note(
            self.owner("scaled_dot_product_attention"),
            Kernel(
                fused_kernels.ATTENTION,
                None,
                self.table.add_all((given.query, given.key, given.value, given.attn_mask)),
                written,
                written,
                is_view=False,
                pointwise=False,
                causal=given.is_causal,
                flops=flops.attention_flops(given),
            ),
        )
        return output

    def recurrent(self, func: Any, args: tuple[Any, ...]) -> Any:
        """Note a recurrent layer as one kernel, as a GPU runs it."""
        self._quiet = True
        try:
            outputs = func(*args)
        finally:
            self._quiet = False
        written = self.table.add_all(outputs)
        self.note(
            self.owner(func.__name__),
            Kernel(
                fused_kernels.RECURRENT[func],
                None,
                self.table.add_all(args),
                written,
                written,
                is_view=False,
                pointwise=False,
                causal=False,
                flops=flops.recurrent_flops(*args),
            ),
        )
        return outputs

    def collective(self, func: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Note what ranks hand each other as one kernel."""
        self._quiet = True
        try:
            output = func(*args)
        finally:
            self._quiet = False
        made = self.table.add_all(output)
        receives = func is collectives.receive
        self.note(
            self.owner(func.__name__),
            Kernel(
                collectives.KERNELS[func],
                None,
                () if receives else self.table.add_all(args),
                made,
                () if func is collectives.send else made,
                is_view=False,
                pointwise=False,
                causal=False,
                flops=None,
            ),
        )
        return output

    def note(self, owner: ModuleCall | FunctionCall, kernel: Kernel) -> None:
        for index in kernel.writes:
            self.table.written.add(self.table.tensors[index].storage)
        if kernel.flops and isinstance(owner, FunctionCall):
            for helper in owner.helpers:
                helper.is_whole = False
        call = KernelCall(owner, kernel)
        self.kernels.append(call)
        self.events.append(call)


def _lies_in(path: str, layer: str) -> bool:
    return path == layer or path.startswith(f"{layer}.")
