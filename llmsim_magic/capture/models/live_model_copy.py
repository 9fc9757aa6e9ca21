"""Copy a live module to the meta device, without reading the weights."""

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial, wraps
from types import CellType, FunctionType, MethodType
from typing import Any

import torch

from llmsim_magic.capture.inputs.cache_in_output import CACHE_KEYWORDS
from llmsim_magic.capture.kernels.tensors import dtype_name
from llmsim_magic.capture.meta.isolation import isolated
from llmsim_magic.capture.meta.small_buffers import small_buffer_copy
from llmsim_magic.capture.meta.snapshot import restored_attributes
from llmsim_magic.capture.models.copy_to_meta import CannotCopy, DeepCopyToMeta, meta_tensor
from llmsim_magic.capture.models.meta_model import MetaModel, optional_text
from llmsim_magic.capture.models.module_hooks import CopiedHooks
from llmsim_magic.capture.models.quantized_modules import refuse_quantized
from llmsim_magic.capture.models.state_of_last_pass import clear_last_pass
from llmsim_magic.records.errors import CannotTrace, describe, is_instance
from llmsim_magic.records.printable import printable
from llmsim_magic.records.trace.trace import ModelInfo

_WRITTEN = "_torchdynamo_orig_callable"  # attribute of a compiled function: its original
_FORWARDS = frozenset({"forward", "__call__", "_wrapped_call_impl"})
LIVE_MODULE = "live module"  # where the config of a copy is from
_MODES = {True: "training", False: "evaluation"}
_PLAIN_TENSORS = {torch.Tensor, torch.nn.Parameter}


@isolated()
def copy_without_weights(
    module: torch.nn.Module, name: str, *, is_trained: bool = False
) -> MetaModel:
    """Copy a live module to the meta device; the module itself is not modified.

    The copy keeps the hooks of the model's own code, and those with which torch computes a weight,
    such as weight norm, but no hooks of the user.

    Args:
        module: Any module, also one that torch.compile, accelerate or PEFT wraps.
        name: The model's display name.
        is_trained: Leave the copy in training mode, in which modules that are in evaluation mode
            inside of a module in training mode stay as they are.

    Returns:
        The copy in evaluation mode, with notes on what the copy leaves out.

    Raises:
        CannotTrace: If the module cannot be copied, or is quantised.
    """
    try:
        refuse_quantized(module, name)
        return _copied(_uncompiled(module), name, is_trained=is_trained)
    except CannotTrace:
        raise
    except Exception as error:  # raised by the user's own `__deepcopy__`, `eval` or property
        raise CannotTrace(
            f"{name}: the module cannot be copied without its weights: {describe(error)}"
        ) from error


def _copied(module: torch.nn.Module, name: str, *, is_trained: bool) -> MetaModel:
    memo: dict[int, Any] = {}
    _refuse_scripted(module)
    hooks = CopiedHooks(module)
    hooks.fill(memo)
    notes = [*_drop_wrappers(module, memo, hooks.dropped), *_replace_weights(module, memo)]
    with restored_attributes(module.modules()), DeepCopyToMeta():
        copied = copy.deepcopy(module, memo)
    _check_independent(copied, module)
    clear_last_pass(copied)
    for submodule in copied.modules():
        functions = {key: f for key, f in vars(submodule).items() if isinstance(f, FunctionType)}
        vars(submodule).update({key: _rebound(f, memo) for key, f in functions.items()})
    with DeepCopyToMeta():
        hooks.rebind(memo, lambda function: _rebound(function, memo))
    _unwrap(copied)
    if not is_trained:
        copied.eval()
    elif not module.training:
        copied.train()
    notes += _replace_flex_attention(copied)
    config = getattr(module, "config", None)
    first = next(module.parameters(), None)
    info = ModelInfo(
        name=name,
        class_name=printable(type(module).__name__),
        model_type=optional_text(getattr(config, "model_type", None)),
        head="as given",
        attention=optional_text(_attention(getattr(copied, "config", None))),
        dtype=dtype_name(first.dtype) if first is not None else "none",
        origin=LIVE_MODULE,
        generates=_can_generate(module),
    )
    if module.training is not is_trained:
        own, traced = _MODES[module.training], _MODES[is_trained]
        notes.append(f"your module is in {own} mode; the trace is of {traced} mode")
    return MetaModel(copied, info, tuple(notes))


def _replace_flex_attention(copied: Any) -> Iterator[str]:
    """Let a model of transformers attend with sdpa where it would compile flex attention.

    transformers keeps a compiled flex attention for the whole process, which a trace must not
    change. A config that names flex attention is traced with sdpa as well.
    """
    configs: list[Any] = [getattr(module, "config", None) for module in copied.modules()]
    flexible = [each for each in configs if _attention(each) == "flex_attention"]
    for config in flexible:
        config._attn_implementation = "sdpa"
    if flexible:
        yield (
            "your model attends with flex_attention; the trace shows sdpa, which computes the "
            "whole score matrix"
        )


def _attention(config: Any) -> Any:
    return getattr(config, "_attn_implementation", None)


def _can_generate(module: torch.nn.Module) -> bool:
    """Whether a module is a model of transformers that generates token by token."""
    from transformers import PreTrainedModel

    return isinstance(module, PreTrainedModel) and bool(module.can_generate())


def module_of_forward(value: Any) -> Any:
    """Return the module whose forward is given, compiled or not.

    Args:
        value: Any object.

    Returns:
        The module of `module.forward` or `torch.compile(module.forward)`; other values unchanged.
    """
    method = value
    while is_instance(method, FunctionType) and _WRITTEN in vars(method):
        method = vars(method)[_WRITTEN]
    is_forward = is_instance(method, MethodType) and method.__func__.__name__ in _FORWARDS
    is_of_module = is_forward and isinstance(method.__self__, torch.nn.Module)
    return method.__self__ if is_of_module else value


def _uncompiled(module: torch.nn.Module) -> torch.nn.Module:
    """The module that torch.compile wraps, or the module itself."""
    children = vars(module).get("_modules")
    return children.get("_orig_mod", module) if isinstance(children, dict) else module


def _refuse_scripted(module: torch.nn.Module) -> None:
    if any(isinstance(each, torch.jit.ScriptModule) for each in module.modules()):
        raise CannotCopy("torch.jit compiled it; trace the module before torch.jit.script")


def _drop_wrappers(module: torch.nn.Module, memo: dict[int, Any], hooks: int) -> Iterator[str]:
    """Fill the memo so that a copy has no hooks of accelerate; yields a note on all that it lacks.

    `hooks` are the dropped hooks of torch.
    """
    for submodule in module.modules():
        if "_hf_hook" in vars(submodule):
            memo[id(submodule._hf_hook)] = None
            hooks += 1
        if submodule._compiled_call_impl is not None:  # set by module.compile()
            memo[id(submodule._compiled_call_impl)] = None
    if hooks:
        yield f"{hooks} hooks of your module were not run"


def _replace_weights(module: torch.nn.Module, memo: dict[int, Any]) -> Iterator[str]:
    """Fill the memo with a meta tensor for each weight; small buffers keep their values."""
    classes: set[type[torch.Tensor]] = set()
    for parameter in module.parameters():
        memo[id(parameter)] = torch.nn.Parameter(meta_tensor(parameter), parameter.requires_grad)
        classes.add(type(parameter))
    for buffer in module.buffers():
        values = small_buffer_copy(buffer)
        memo[id(buffer)] = meta_tensor(buffer) if values is None else values
        classes.add(type(buffer))
    subclasses = sorted(printable(each.__name__) for each in classes - _PLAIN_TENSORS)
    if subclasses:
        yield (
            f"tensors of class {', '.join(subclasses)} are traced as plain tensors of the same "
            "shape and dtype"
        )


def _rebound(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    """A copy of a function that refers to the copied modules, such as a patched forward."""
    closure = function.__closure__ or ()
    is_bound = closure or function.__defaults__ or function.__kwdefaults__
    if not is_bound or id(function) in memo:
        return memo.get(id(function), function)
    cells = tuple(CellType() for _ in closure)
    rebound = FunctionType(function.__code__, function.__globals__, function.__name__, None, cells)
    vars(rebound).update(vars(function))
    memo[id(function)] = rebound
    rebound.__defaults__ = _rebound_value(function.__defaults__, memo)
    rebound.__kwdefaults__ = _rebound_value(function.__kwdefaults__, memo)
    for cell, original in zip(cells, closure, strict=True):
        with suppress(ValueError):  # an empty cell
            cell.cell_contents = _rebound_value(original.cell_contents, memo)
    return rebound


def _rebound_value(value: Any, memo: dict[int, Any]) -> Any:
    """What a function holds, with copied modules in place of the live ones."""
    if isinstance(value, FunctionType):
        return _rebound(value, memo)
    if id(value) in memo or id(getattr(value, "__self__", None)) in memo:
        return copy.deepcopy(value, memo)
    if type(value) in (tuple, list):
        return type(value)(_rebound_value(item, memo) for item in value)
    if type(value) is dict:
        return {key: _rebound_value(item, memo) for key, item in value.items()}
    if isinstance(value, partial):
        function, args, keywords = value.func, list(value.args), value.keywords
        function, args, keywords = _rebound_value([function, args, keywords], memo)
        return partial(function, *args, **keywords)
    return value


def _check_independent(copied: Any, module: torch.nn.Module) -> None:
    """Raise `TypeError` if the user's own `__deepcopy__` does not return a deep copy."""
    if not isinstance(copied, torch.nn.Module):
        raise CannotCopy(f"its copy is of class {type(copied).__name__}")
    originals = set(map(id, module.modules()))
    if any(id(submodule) in originals for submodule in copied.modules()):
        raise CannotCopy("its copy shares submodules with it")


def _unwrap(copied: Any) -> None:
    """Remove the wrappers of torch.compile and accelerate, and complete PEFT's signature."""
    is_offloaded = False
    for submodule in copied.modules():
        for name, child in submodule._modules.items():
            if child is not None:
                submodule._modules[name] = _uncompiled(child)
        if "_hf_hook" in vars(submodule):
            is_offloaded = True
            del submodule._hf_hook
            submodule.forward = vars(submodule).pop("_old_forward")
    if is_offloaded and hasattr(copied, "tie_weights"):
        copied.tie_weights()  # accelerate gives each offloaded weight its own placeholder
    if hasattr(copied, "get_base_model"):
        copied.forward = _with_full_signature(copied, copied.get_base_model().forward)


def _with_full_signature(model: Any, base: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of a PEFT model, whose signature also has the keywords of its base model.

    A learned prompt stands before the first token alone: as in PEFT's `generate`, the base model
    reads the tokens that follow a cache.
    """
    forward, has_prompt = model.forward, model.active_peft_config.is_prompt_learning

    @wraps(forward)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if has_prompt and any(kwargs.get(name) is not None for name in CACHE_KEYWORDS):
            return model.base_model(*args, **kwargs)
        return forward(*args, **kwargs)

    named = inspect.signature(forward).parameters | inspect.signature(base).parameters
    order = sorted(named.values(), key=lambda each: (each.kind, each.default is not each.empty))
    wrapper.__signature__ = inspect.Signature(order)  # type: ignore[attr-defined]
    return wrapper
