"""Record every module call, function and kernel of a forward pass as it happens.

`ModelHooks` reports module calls, the modes of `evaluation_modes.py` report functions and kernels.
A replayed layer is one event. `assemble_operators.py` makes operators of the events.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from llmsim_magic.capture.kernels import (
    call_stack,
    collectives,
    flops,
    fused_kernels,
    kernel_facts,
    optimizer_kernels,
)
from llmsim_magic.capture.kernels.tensors import tensors_in, unrecorded
from llmsim_magic.capture.meta.higher_order_operators import FLEX_ATTENTION, higher_order_name
from llmsim_magic.capture.meta.one_device import without_values
from llmsim_magic.capture.record.events import FunctionCall, KernelCall, Owner
from llmsim_magic.capture.record.module_recorder import ModuleRecorder
from llmsim_magic.capture.replay.replay import Replayer
from llmsim_magic.records.trace.recorded import Kernel, Role

RunFunction = Callable[[Any, Any, Any], Any]


class Recorder(ModuleRecorder):
    """All events of one pass: module calls, replays, functions and kernels.

    Args:
        owners: Role and name of the model's storages, by storage address.
        replayer: Replays layers that repeat earlier ones; without it every layer runs.

    Attributes:
        computed_share: Returns the share of the score matrix that a block mask of flex attention,
            as a tuple, leaves to be computed.
    """

    def __init__(
        self, owners: Mapping[int, tuple[Role, str]], replayer: Replayer | None = None
    ) -> None:
        super().__init__(owners, replayer)
        self.computed_share: Callable[[Sequence[Any]], float] = _whole
        self._function: FunctionCall | None = None
        self._first = (0, 0)  # numbers of kernels and events before the function that runs
        self._is_paused = False

    def call(self, func: Callable[..., Any], args: Any, kwargs: Any, run: RunFunction) -> Any:
        """Call a torch function and record its arguments and results if it runs any kernel.

        Args:
            func: The function.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            run: Runs it.

        Returns:
            Its result.
        """
        name = getattr(func, "__name__", type(func).__name__).strip("_")
        path = self._open[-1].path if self._open else ""
        call = self._function = FunctionCall(name=name, path=path, part=self._part())
        self._first = len(self.kernels), len(self.events)
        first = len(self.kernels)
        out: Any
        try:
            if func is scaled_dot_product_attention:
                out = self._attention(args, kwargs)
            elif func in fused_kernels.RECURRENT:
                out = self._recurrent(func, args, kwargs, run)
            elif higher_order_name(func) == FLEX_ATTENTION:
                out = self._flex_attention(func, args, kwargs, run)
            elif func in collectives.KERNELS:
                out = self._collective(func, args, run)
            elif func in optimizer_kernels.KERNELS:
                self._update(func, *args)
                out = None
            else:
                out = run(func, args, kwargs)
        finally:
            self._function = None
            if name == "set":  # of an attribute, such as `data`
                self.table.forget_layouts()
        if len(self.kernels) > first:
            with unrecorded():
                call.inputs = self.table.add_all((args, kwargs))
                call.outputs = self.table.add_all(out) or self.kernels[-1].kernel.writes
        return out

    def drop_function(self) -> None:
        """Drop the kernels of the function that runs, because it has failed and runs again."""
        kernels, events = self._first
        del self.kernels[kernels:], self.events[events:]

    def move_to_meta(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor on `meta` that is recorded as the given tensor on the host."""
        moved = without_values(tensor)
        self.table.alias(moved, tensor)
        return moved

    def hold(self, tensors: list[torch.Tensor]) -> None:
        """Note tensors that torch has kept until now."""
        if self.kernels:
            with unrecorded():
                self.kernels[-1].kept += self.table.add_all(tensors)

    def storages_computed_from(self, given: Any) -> frozenset[int]:
        """The numbers of storages whose values depend on those of given tensors.

        A tensor of zeros in the shape of another depends on no value of it.

        Args:
            given: Tensors in nested collections, from before the pass.
        """
        tensors = self.table.tensors
        found = {tensors[number].storage for number in self.table.add_all(given)}
        for call in self.kernels:
            kernel = call.kernel
            if kernel.is_view or kernel_facts.reads_only_shapes(kernel.name):
                continue
            if any(tensors[number].storage in found for number in kernel.inputs):
                found |= {tensors[number].storage for number in kernel.writes}
        return frozenset(found)

    def kernel(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Record a kernel that has run.

        Args:
            func: Its `OpOverload`.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            out: Its result.
        """
        facts = kernel_facts.facts(func)
        table = self.table
        if facts.is_in_place:
            table.forget_layouts()
        if self._is_paused:
            return
        inputs = tuple(map(table.add, tensors_in((args, kwargs))))
        if not inputs and not tensors_in(out):
            return  # an annotation for torch's profiler
        device = kwargs.get("device")
        if facts.is_to_copy and kernel_facts.only_changes_device(args[0], out, device):
            table.alias(out, args[0])
        outputs = tuple(map(table.add, tensors_in(out)))
        if facts.mutated:
            mutated = [
                kwargs.get(place) if isinstance(place, str) else args[place]
                for place in facts.mutated
                if isinstance(place, str) or place < len(args)
            ]
            writes, is_view = table.add_all(mutated), False
        else:
            read = {table.tensors[index].storage for index in inputs}
            new = [index for index in outputs if table.tensors[index].storage not in read]
            is_view = facts.is_allocation or (bool(outputs) and not new)
            writes = () if is_view else outputs
        self._add(
            self._owner(func._schema.name.removeprefix("aten::")),
            Kernel(
                facts.name,
                None,
                inputs,
                outputs,
                writes,
                is_view,
                facts.is_pointwise,
                causal=kernel_facts.is_causal(func, args, kwargs),
                flops=flops.kernel_flops(func, args, kwargs, out),
            ),
        )

    def _owner(self, name: str) -> Owner:
        """The running leaf module, else the called function; `name` if no function is known."""
        parent = self._open[-1] if self._open else None
        if parent is not None and parent.is_leaf:
            return parent
        path = parent.path if parent else ""
        call = self._function or FunctionCall(name=name, path=path, part=self._part())
        if call.source is None:
            frames = call_stack.frames_of_call(3)
            if parent is not None:
                call.source = call_stack.source_line(frames, self._forward_code(parent.module))
                call.helpers = self._helpers(parent, frames)
                call.held += self._held(frames, call)
        return call

    def _held_inside(self, owner: Owner) -> tuple[int, ...]:
        """Tensors in variables of the function that runs, or of the running leaf module.

        Lists are left out: one that grows would be noted again at each kernel.
        """
        if isinstance(owner, FunctionCall):
            return owner.held
        frames = call_stack.frames_of_call(2)
        values = [value for frame in frames for value in frame.f_locals.values()]
        return self.table.add_all([value for value in values if type(value) is not list])

    def _add(self, owner: Owner, kernel: Kernel) -> None:
        for index in kernel.writes:
            self.table.written.add(self.table.tensors[index].storage)
        if kernel.flops and isinstance(owner, FunctionCall):
            for helper in owner.helpers:
                helper.is_whole = False
        call = KernelCall(owner, kernel, self._held_inside(owner))
        self.kernels.append(call)
        self.events.append(call)

    # functions recorded as one kernel, as a GPU runs them

    @contextmanager
    def _paused(self) -> Iterator[None]:
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False

    def _attention(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
        arguments = fused_kernels.AttentionArguments(*args, **kwargs)
        with self._paused():
            output = fused_kernels.fused_attention(arguments)
        with unrecorded():
            outputs = (self.table.add(output),)
            owner = self._owner("scaled_dot_product_attention")
            inputs = self.table.add_all(arguments[:4])
            count = flops.attention_flops(arguments)
            name, causal = fused_kernels.ATTENTION, arguments.is_causal
            self._add(owner, one_kernel(name, inputs, outputs, outputs, count, causal=causal))
        return output

    def _flex_attention(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], run: RunFunction
    ) -> Any:
        with self._paused():
            output = run(func, args, kwargs)
        with unrecorded():
            attended = (self.table.add(output[0]),)
            owner = self._owner(FLEX_ATTENTION)
            inputs = self.table.add_all((args, kwargs))
            whole = flops.attention_flops(fused_kernels.AttentionArguments(*args[:3]))
            count = round(whole * self.computed_share(args[4]))
            self._add(owner, one_kernel(fused_kernels.FLEX, inputs, attended, attended, count))
        return output

    def _recurrent(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], run: RunFunction
    ) -> Any:
        with self._paused():
            output = run(func, args, kwargs)
        with unrecorded():
            outputs = self.table.add_all(output)
            owner = self._owner(func.__name__)
            inputs = self.table.add_all((args, kwargs))
            arguments = fused_kernels.recurrent_arguments(args, kwargs)
            name = fused_kernels.recurrent_kernel(func, arguments)
            count = flops.recurrent_flops(arguments)
            self._add(owner, one_kernel(name, inputs, outputs, outputs, count))
        return output

    def _collective(self, func: Callable[..., Any], args: tuple[Any, ...], run: RunFunction) -> Any:
        with self._paused():
            output = run(func, args, {})
        with unrecorded():
            outputs = self.table.add_all(output)
            owner = self._owner(func.__name__)
            inputs = () if func is collectives.receive else self.table.add_all(args)
            writes = () if func is collectives.send else outputs
            name = collectives.KERNELS[func]
            self._add(owner, one_kernel(name, inputs, outputs, writes, None))
        return output

    def _update(
        self,
        func: Callable[..., Any],
        updated: Sequence[torch.Tensor],
        read: Sequence[torch.Tensor],
    ) -> None:
        with unrecorded():
            writes = self.table.add_all(updated)
            inputs = (*writes, *self.table.add_all(read))
            name = optimizer_kernels.KERNELS[func]
            self._add(self._owner(func.__name__), one_kernel(name, inputs, (), writes, None))


def one_kernel(
    name: str,
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    writes: tuple[int, ...],
    count: int | None,
    *,
    causal: bool = False,
) -> Kernel:
    """A kernel that computes what one function returns, as a GPU runs it."""
    return Kernel(
        name,
        None,
        inputs,
        outputs,
        writes,
        is_view=False,
        pointwise=False,
        causal=causal,
        flops=count,
    )


def _whole(block_mask: Sequence[Any]) -> float:
    return 1.0
