"""The events of a recorded pass: calls of modules, helpers, functions and kernels, and replays."""

from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from llmsim_magic.records.trace.recorded import Kernel, Pass


@dataclass(slots=True, eq=False, kw_only=True)
class ModuleCall:
    """A call of a module.

    The call of a leaf module is an operator; that of a container groups the operators inside it.
    `saved` are tensors that autograd keeps for it. `saved_tensor_hook_id` is the id of the hook
    that packs them: that of the innermost checkpoint around the call, or that of the recorder.
    `hooked` are its inputs and outputs that hooks of the model's code may keep.
    """

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
    saved_tensor_hook_id: int = 0
    part: Pass = "forward"
    saved: list[int] = field(default_factory=list)
    hooked: tuple[int, ...] = ()


@dataclass(slots=True, eq=False, kw_only=True)
class HelperCall:
    """A call of a Python function by a container's forward, such as `apply_rotary_pos_emb`.

    It is shown as one operator while `is_whole` is True. A matmul, an attention or a module call
    inside it makes that False; then the functions inside it are the operators. The frame is kept
    while it runs, so that no other frame gets its id.
    """

    name: str
    path: str
    source: str | None
    inputs: tuple[int, ...]
    frame: FrameType | None
    held: tuple[int, ...] = ()
    is_whole: bool = True
    part: Pass = "forward"


@dataclass(slots=True, eq=False, kw_only=True)
class FunctionCall:
    """A call of a torch function outside any leaf module."""

    name: str
    path: str
    source: str | None = None
    helpers: tuple[HelperCall, ...] = ()
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    held: tuple[int, ...] = ()
    part: Pass = "forward"
    saved: list[int] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class BackwardCall:
    """A run of kernels that compute the gradients of one call of the forward."""

    forward: ModuleCall | FunctionCall
    part: Pass = "backward"


Owner = ModuleCall | FunctionCall | BackwardCall


@dataclass(slots=True, eq=False)
class KernelCall:
    """A kernel and its owner; the kernel's operator is set once the pass has ended.

    `held` are tensors that variables of the model's code reference while it runs. `frees` are
    storages that nothing refers to any more once it has run. `kept` are tensors that torch itself
    kept until then.
    """

    owner: Owner
    kernel: Kernel
    held: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()
    frees: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class LayerSpan:
    """The events, kernels and module calls of a layer that ran, as ranges `[first, last)`."""

    events: tuple[int, int]
    kernels: tuple[int, int]
    calls: tuple[int, int]
    in_helper: bool


@dataclass(slots=True, eq=False, kw_only=True)
class ReplayCall:
    """A layer that was replayed instead of run.

    `of` and `span` are the path and span of the layer it repeats. `tensors` pairs the tensors
    that cross the border of that layer with those of this one. `held` are tensors of the layer
    before that variables of the caller reference meanwhile. Under training, the backward of a
    replayed layer `resumes` the event of its forward, and `frees` are storages that nothing refers
    to any more after the call.
    """

    path: str
    of: str
    span: LayerSpan
    before_kernel: int
    tensors: tuple[tuple[int, int], ...]
    held: tuple[int, ...]
    is_first: bool
    resumes: "ReplayCall | None" = None
    frees: list[int] = field(default_factory=list)


ForwardStep = ModuleCall | HelperCall | FunctionCall
Step = ForwardStep | BackwardCall
Event = ModuleCall | KernelCall | ReplayCall
