"""Copy a live module, or its inputs, without what they hold: all data in the copy is on `meta`."""

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import wraps
from types import CellType, FunctionType
from typing import Any

import torch

from llmsim_magic.capture.kernels.tensors import dtype_name
from llmsim_magic.capture.meta.isolation import isolated
from llmsim_magic.capture.meta.partial_evaluation import MAX_KNOWN_ELEMENTS
from llmsim_magic.capture.meta.small_buffers import known_buffers
from llmsim_magic.capture.meta.snapshot import unchanged
from llmsim_magic.capture.models.meta_model import MetaModel, text_of
from llmsim_magic.records.errors import CannotTrace, describe
from llmsim_magic.records.printable import printable
from llmsim_magic.records.trace.trace import ModelInfo

META = torch.device("meta")
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)
_PLAIN_TENSORS = {torch.Tensor, torch.nn.Parameter}


@isolated()
def copy_without_weights(module: torch.nn.Module, name: str) -> MetaModel:
    """A copy of a live module whose every tensor is on `meta`; the module is only read.

    Hooks are left out of the copy, so that none of the user's runs, but those by which torch
    itself computes a weight. Raises `CannotTrace` for a module that cannot be copied.
    """
    try:
        return _copied(_uncompiled(module), name)
    except Exception as error:  # whatever the user's own `__deepcopy__`, `eval` or property raises
        raise CannotTrace(
            f"{name}: the module cannot be copied without its weights: {describe(error)}"
        ) from error


def _copied(module: torch.nn.Module, name: str) -> MetaModel:
    memo: dict[int, Any] = {}
    notes = [*_without_hooks(module, memo), *_without_weights(module, memo)]
    with unchanged(module.modules()), _MetaCopies():
        twin = copy.deepcopy(module, memo)
    _is_another(twin, module)
    for part in twin.modules():
        functions = {key: f for key, f in vars(part).items() if isinstance(f, FunctionType)}
        vars(part).update({key: _rebound(function, memo) for key, function in functions.items()})
    _mend(twin)
    twin.eval()
    config = getattr(module, "config", None)
    first = next(module.parameters(), None)
    info = ModelInfo(
        name=name,
        class_name=printable(type(module).__name__),
        model_type=text_of(getattr(config, "model_type", None)),
        head="as given",
        attention=text_of(getattr(config, "_attn_implementation", None)),
        dtype=dtype_name(first.dtype) if first is not None else "none",
        origin="live module",
    )
    if module.training:
        notes.append("your module is in training mode; this is its inference")
    return MetaModel(twin, info, tuple(notes))


def _uncompiled(module: torch.nn.Module) -> torch.nn.Module:
    """What torch.compile wraps, or the module itself."""
    parts = vars(module).get("_modules")
    return parts.get("_orig_mod", module) if isinstance(parts, dict) else module


def _without_hooks(module: torch.nn.Module, memo: dict[int, Any]) -> Iterator[str]:
    """Leave hooks out of a copy, those as well by which accelerate brings weights from elsewhere.

    Raises `TypeError` for what torch.jit compiled, which takes no hooks of ours either.
    """
    dropped = 0
    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise TypeError("torch.jit compiled it; ask with the module that it was made of")
        for kind in _HOOKS:
            hooks = getattr(part, kind)
            kept = OrderedDict((key, hook) for key, hook in hooks.items() if _is_torchs(hook))
            dropped += (len(hooks) - len(kept)) * ("forward" in kind)
            memo[id(hooks)] = kept
        if "_hf_hook" in vars(part):
            memo[id(part._hf_hook)] = None
            dropped += 1
        if part._compiled_call_impl is not None:  # compiled in its place, for the module itself
            memo[id(part._compiled_call_impl)] = None
    if dropped:
        yield f"{dropped} hooks of your module were not run"


def _without_weights(module: torch.nn.Module, memo: dict[int, Any]) -> Iterator[str]:
    """Put the like of every parameter and buffer on `meta`, but for the values of small buffers."""
    classes: set[type[torch.Tensor]] = set()
    for parameter in module.parameters():
        memo[id(parameter)] = torch.nn.Parameter(_meta(parameter), parameter.requires_grad)
        classes.add(type(parameter))
    for buffer in module.buffers():
        values = known_buffers(buffer)
        memo[id(buffer)] = _meta(buffer) if values is None else values
        classes.add(type(buffer))
    own = sorted(printable(each.__name__) for each in classes - _PLAIN_TENSORS)
    if own:
        yield f"tensors of {', '.join(own)} are taken for plain ones of their shape and dtype"


def _rebound(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    """A function that refers to the copies of the modules, and their methods, that it refers to.

    So is a forward that was put in the place of another which it calls.
    """
    if function.__closure__ is None or id(function) in memo:
        return memo.get(id(function), function)
    cells = tuple(CellType() for _ in function.__closure__)
    made = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, cells
    )
    made.__kwdefaults__ = function.__kwdefaults__
    vars(made).update(vars(function))
    memo[id(function)] = made
    for cell, theirs in zip(cells, function.__closure__, strict=True):
        with suppress(ValueError):  # a name that has no value yet
            value = theirs.cell_contents
            if isinstance(value, FunctionType):
                cell.cell_contents = _rebound(value, memo)
            elif id(value) in memo or id(getattr(value, "__self__", None)) in memo:
                cell.cell_contents = copy.deepcopy(value, memo)
            else:
                cell.cell_contents = value
    return made


def _is_another(twin: Any, module: torch.nn.Module) -> None:
    """Raise `TypeError` where a copy by the user's own `__deepcopy__` is none."""
    if not isinstance(twin, torch.nn.Module):
        raise TypeError(f"its copy is of class {type(twin).__name__}")
    theirs = set(map(id, module.modules()))
    if any(id(part) in theirs for part in twin.modules()):
        raise TypeError("its copy shares parts with it")


def _mend(twin: Any) -> None:
    """Take out of a copy what others wrapped around its parts, and spell out what PEFT hands on."""
    is_offloaded = False
    for part in twin.modules():
        for name, child in part._modules.items():
            if child is not None:
                part._modules[name] = _uncompiled(child)
        if "_hf_hook" in vars(part):
            is_offloaded = True
            del part._hf_hook
            part.forward = vars(part).pop("_old_forward")
    if is_offloaded and hasattr(twin, "tie_weights"):
        twin.tie_weights()  # each weight that is elsewhere has a stand-in of its own
    if hasattr(twin, "get_base_model") and not twin.active_peft_config.is_prompt_learning:
        twin.forward = _spelled_out(twin.forward, twin.get_base_model().forward)


def _spelled_out(forward: Callable[..., Any], base: Callable[..., Any]) -> Callable[..., Any]:
    """A forward that names the keywords as well that it hands on to another."""

    @wraps(forward)
    def handing_on(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    named = inspect.signature(forward).parameters | inspect.signature(base).parameters
    order = sorted(named.values(), key=lambda each: (each.kind, each.default is not each.empty))
    handing_on.__signature__ = inspect.Signature(order)  # type: ignore[attr-defined]
    return handing_on


def _is_torchs(hook: Any) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils")


def _meta(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.layout is not torch.strided or tensor.is_nested:
        kind = "that is nested" if tensor.is_nested else f"of layout {tensor.layout}"
        raise TypeError(f"a tensor {kind} has no like without its values")
    with torch.no_grad():
        return torch.empty_strided(
            tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device=META
        )


class _MetaCopies(torch.overrides.TorchFunctionMode):
    """Answers a deep copy of a tensor with one on `meta`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__deepcopy__:
            tensor, memo = args
            return memo.setdefault(id(tensor), self.like(tensor))
        if func is torch.Tensor.clone:  # how a parameter copies itself
            return _meta(args[0])
        return func(*args, **(kwargs or {}))

    def like(self, tensor: torch.Tensor) -> torch.Tensor:
        return _meta(tensor)


class _InputCopies(_MetaCopies):
    """The same, but of whole numbers and flags the values are known, so they are kept.

    Of more than `LARGEST` they are not, as in a pass.
    """

    def like(self, tensor: torch.Tensor) -> torch.Tensor:
        is_data = tensor.is_floating_point() or tensor.is_complex() or tensor.is_meta
        is_known = (
            not is_data and tensor.numel() <= MAX_KNOWN_ELEMENTS and tensor.layout is torch.strided
        )
        with torch._C.DisableTorchFunction():
            return tensor.detach().cpu().clone() if is_known else _meta(tensor)


def inputs_on_meta(value: Any) -> Any:
    """A copy of inputs, whatever holds them, with all data in it replaced by its like on `meta`.

    Raises `CannotTrace` for what cannot be copied.
    """
    try:
        with _InputCopies():
            return copy.deepcopy(value)
    except Exception as error:
        raise CannotTrace(f"inputs: they cannot be copied: {describe(error)}") from error
