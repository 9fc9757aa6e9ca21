"""Run a forward pass and note every module call, function and kernel as it happens.

Three listeners, all local to the pass: hooks on the modules of the weightless model, a function
mode (whole functions, fused attention) and a dispatch mode (kernels). What they note is put in
order by `operators.py`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from llmsim_magic.capture import kernels, stack
from llmsim_magic.capture.tensors import TensorTable, tensors_in
from llmsim_magic.records.trace import Kernel


@dataclass(slots=True, eq=False)
class ModuleCall:
    """A call of a module. A leaf's call is an operator; a container's groups those inside it."""

    path: str
    module: Any
    is_leaf: bool
    source: str | None
    inputs: tuple[int, ...]
    outputs: tuple[int, ...] = ()
    helpers: dict[int, "HelperCall"] = field(default_factory=dict)


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


@dataclass(slots=True, eq=False)
class KernelCall:
    """A kernel as the record will have it, but for its operator, which follows from its owner."""

    owner: ModuleCall | FunctionCall
    kernel: Kernel


class Recorder:
    """All that one pass did, in the order it did it."""

    def __init__(self) -> None:
        self.table = TensorTable()
        self.kernels: list[KernelCall] = []
        self.events: list[ModuleCall | KernelCall] = []
        self.calls: dict[str, list[ModuleCall]] = {}
        self._open: list[ModuleCall] = []
        self._function: FunctionCall | None = None
        self._quiet = False

    # modules

    def enter_module(self, path: str, module: torch.nn.Module, inputs: Any) -> None:
        source = None
        if self._open:
            parent = self._open[-1]
            forward = stack.forward_code(parent.module)
            frames = stack.frames_of_caller(2)
            source = stack.source(frames, forward)
            for helper in self._helpers(parent, frames):
                helper.is_whole = False
        is_leaf = next(module.children(), None) is None
        call = ModuleCall(path, module, is_leaf, source, self.table.add_all(inputs))
        self._open.append(call)
        self.calls.setdefault(path, []).append(call)
        if is_leaf:
            self.events.append(call)

    def leave_module(self, module: torch.nn.Module, output: Any) -> None:
        while self._open:
            call = self._open.pop()
            call.helpers.clear()
            if call.module is module:
                call.outputs = self.table.add_all(output)
                return

    # functions

    @contextmanager
    def function(self, func: Callable[..., Any]) -> Iterator[FunctionCall]:
        name = getattr(func, "__name__", type(func).__name__).strip("_")
        path = self._open[-1].path if self._open else ""
        call = self._function = FunctionCall(name, path)
        try:
            yield call
        finally:
            self._function = None

    def _helpers(self, parent: ModuleCall, frames: list[FrameType]) -> tuple[HelperCall, ...]:
        forward = stack.forward_code(parent.module)
        found = []
        for frame in stack.helpers(frames, forward):
            helper = parent.helpers.get(id(frame))
            if helper is None:
                outer = frames[frames.index(frame) + 1 :]
                helper = parent.helpers[id(frame)] = HelperCall(
                    stack.function_name(frame),
                    parent.path,
                    stack.source(outer, forward),
                    self.table.add_all(stack.arguments(frame)),
                    frame,
                    is_whole=stack.is_helper(frame.f_code),
                )
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
            frames = stack.frames_of_call(3)
            if parent is not None:
                call.source = stack.source(frames, stack.forward_code(parent.module))
                call.helpers = self._helpers(parent, frames)
        return call

    def kernel(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        if self._quiet:
            return
        known = kernels.facts(func)
        table = self.table
        inputs = tuple(map(table.add, tensors_in((args, kwargs))))
        if known.copies and kernels.only_changes_device(args[0], out, kwargs.get("device")):
            table.join(out, args[0])
        outputs = tuple(map(table.add, tensors_in(out)))
        if known.mutable:
            places = [
                kwargs.get(place) if isinstance(place, str) else args[place]
                for place in known.mutable
                if isinstance(place, str) or place < len(args)
            ]
            writes, is_view = table.add_all(places), False
        else:
            read = {table.tensors[index].storage for index in inputs}
            moved = [index for index in outputs if table.tensors[index].storage not in read]
            is_view = known.allocates or (bool(outputs) and not moved)
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
                known.pointwise,
                causal=False,
                flops=kernels.flops(func, args, kwargs, out),
            ),
        )

    def attention(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
        """Answer `scaled_dot_product_attention` with one kernel, as a GPU does."""
        given = kernels.Attention(*args, **kwargs)
        self._quiet = True
        try:
            output = kernels.fused_attention(given)
        finally:
            self._quiet = False
        written = (self.table.add(output),)
        self.note(
            self.owner("scaled_dot_product_attention"),
            Kernel(
                kernels.ATTENTION,
                None,
                self.table.add_all((given.query, given.key, given.value, given.attn_mask)),
                written,
                written,
                is_view=False,
                pointwise=False,
                causal=given.is_causal,
                flops=kernels.attention_flops(given),
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
                kernels.RECURRENT[func],
                None,
                self.table.add_all(args),
                written,
                written,
                is_view=False,
                pointwise=False,
                causal=False,
                flops=kernels.recurrent_flops(*args),
            ),
        )
        return outputs

    def note(self, owner: ModuleCall | FunctionCall, kernel: Kernel) -> None:
        for index in kernel.writes:
            self.table.written.add(self.table.tensors[index].storage)
        if kernel.flops and isinstance(owner, FunctionCall):
            for helper in owner.helpers:
                helper.is_whole = False
        call = KernelCall(owner, kernel)
        self.kernels.append(call)
        self.events.append(call)


class _Functions(TorchFunctionMode):
    """Sees whole torch functions, and keeps attention whole."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", None) == "__get__":
            return func(*args, **kwargs)
        recorder = self._recorder
        with recorder.function(func) as call:
            first = len(recorder.kernels)
            if func is scaled_dot_product_attention:
                out = recorder.attention(args, kwargs)
            elif func in kernels.RECURRENT:
                out = recorder.recurrent(func, args)
            else:
                out = func(*args, **kwargs)
            if len(recorder.kernels) > first:
                call.inputs = recorder.table.add_all((args, kwargs))
                call.outputs = recorder.table.add_all(out) or recorder.kernels[-1].kernel.writes
        return out


class _Kernels(TorchDispatchMode):
    """Sees every ATen op; composite ones are taken apart first, as under autograd."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if kernels.facts(func).composite:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        self._recorder.kernel(func, args, kwargs, out)
        return out


@contextmanager
def listening(recorder: Recorder, model: torch.nn.Module) -> Iterator[None]:
    """While open, the recorder notes what `model` does; afterwards nothing of it is left."""

    def before(path: str) -> Callable[[torch.nn.Module, Any, Any], None]:
        def enter(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            recorder.enter_module(path, module, (args, kwargs))

        return enter

    def after(module: torch.nn.Module, args: Any, output: Any) -> None:
        recorder.leave_module(module, output)

    hooks: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for path, module in model.named_modules():
            hooks.append(
                module.register_forward_pre_hook(before(path), prepend=True, with_kwargs=True)
            )
            hooks.append(module.register_forward_hook(after, always_call=True))
        with torch.no_grad(), _Functions(recorder), _Kernels(recorder):
            yield
    finally:
        for hook in hooks:
            hook.remove()
