"""Make a model without weights: from a config, or as a copy of a live module."""

import copy
import importlib
import inspect
import json
import pkgutil
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial, wraps
from threading import Lock
from types import CellType, FunctionType
from typing import Any

import torch

from llmsim_magic.capture.answers import LARGEST
from llmsim_magic.capture.buffers import knowing_buffers, known
from llmsim_magic.capture.harness import Harness
from llmsim_magic.capture.inputs.lengths import (
    declared_context,
    is_huggingface,
    longest_context,
)
from llmsim_magic.capture.resolve import Source, declared_classes
from llmsim_magic.capture.restore import unchanged
from llmsim_magic.capture.tensors import dtype_name
from llmsim_magic.records.errors import CannotTrace, clip, in_line
from llmsim_magic.records.trace import ModelInfo
from llmsim_magic.records.workload import IsCancelled, never

META = torch.device("meta")
# Which auto class is asked first: a decoder with its encoder before the decoder alone.
_AUTO_CLASSES = (
    "AutoModelForSeq2SeqLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForImageTextToText",
    "AutoModelForMaskedLM",
    "AutoModelForCausalLM",
    "AutoModel",
)
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)
_PLAIN_TENSORS = {torch.Tensor, torch.nn.Parameter}

_making = Lock()  # no harness twice, whichever thread asks first


@dataclass(frozen=True, eq=False)
class Weightless:
    """A model on `meta`, ready to be run, and what to say of it.

    `spread` hangs on it the collectives of a rank, after all that listens to a pass.
    """

    module: torch.nn.Module
    info: ModelInfo
    notes: tuple[str, ...] = ()
    spread: Callable[[torch.nn.Module], None] | None = None

    @cached_property
    def harness(self) -> Harness:
        """What every pass of the model shares."""
        with _making:
            return vars(self).get("harness") or Harness(self.module, self.spread)

    @cached_property
    def longest_context(self) -> int | None:
        """The tokens that its learned position table has rows for, if anything sets a limit."""
        return longest_context(self.module)

    @property
    def declared_context(self) -> int | None:
        """The longest context that its config says it is meant for."""
        return declared_context(self.module) if is_huggingface(self.module) else None


def from_config(
    source: Source,
    *,
    base: bool = False,
    attention: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    cancelled: IsCancelled = never,
) -> Weightless:
    """Build the model that a config describes, on `meta`.

    The class is the one the checkpoint declares, or `AutoModel`'s with `base`.
    Raises `CannotTrace` where transformers cannot build it, and `KeyboardInterrupt` once it is
    cancelled.
    """
    config = copy.deepcopy(source.config)
    notes = list(source.notes)
    default = torch.float32
    if (quantisation := getattr(config, "quantization_config", None)) is not None:
        del config.quantization_config
        default = torch.bfloat16
        quantisation = _plain(quantisation)
        notes.append(_quantised(quantisation))
    options: dict[str, Any] = {
        "dtype": getattr(torch, dtype) if dtype else getattr(config, "dtype", None) or default
    }
    if attention:
        options["attn_implementation"] = attention
    if trust_remote_code and hasattr(config, "auto_map"):
        options["trust_remote_code"] = True
    try:
        builder = _builder(config, base, source.name)
        with torch.inference_mode(mode=False):
            with knowing_buffers(cancelled) as buffers, META:
                module = builder(config, **options)
            buffers.keep_only(module)
    except CannotTrace:
        raise
    except Exception as error:
        raise CannotTrace(
            f"{source.name}: transformers cannot build it: {reason(error)}"
        ) from error
    module.eval()
    class_name = type(module).__name__
    info = ModelInfo(
        name=source.name,
        class_name=class_name,
        model_type=_text(getattr(config, "model_type", None)),
        head=_head(config, class_name, base),
        attention=_text(getattr(module.config, "_attn_implementation", None)),
        dtype=dtype_name(module.dtype),
        origin=source.origin,
        quantisation=quantisation,
    )
    return Weightless(module, info, tuple(notes))


def _plain(quantisation: Any) -> dict[str, Any]:
    """A `quantization_config` as JSON has it, whether it is keys or an object of transformers."""
    keys = quantisation if isinstance(quantisation, dict) else quantisation.to_dict()
    plain: dict[str, Any] = json.loads(json.dumps(keys, default=str))
    return plain


def _quantised(keys: dict[str, Any]) -> str:
    method = keys.get("quant_method", "quantised")
    return f"the checkpoint stores {method} weights; this is its unquantised equivalent"


def _builder(config: Any, base: bool, name: str) -> Any:
    """What builds a model from a config: the declared class, else the nearest that takes it."""
    transformers = importlib.import_module("transformers")
    if base:
        return transformers.AutoModel.from_config
    declared = declared_classes(getattr(config, "architectures", None))
    for class_name in declared:
        found = getattr(transformers, class_name, None)
        if found is not None and hasattr(found, "_from_config"):
            return found._from_config
    for auto in map(partial(getattr, transformers), _AUTO_CLASSES):
        if hasattr(config, "auto_map") or (not declared and type(config) in auto._model_mapping):
            return auto.from_config
    for model_class in () if declared else _classes_beside(type(config)):
        return model_class._from_config
    version = f"transformers {transformers.__version__}"
    if declared:
        raise CannotTrace(
            f"{name}: {version} has no {clip(', '.join(declared))}, which its config declares; "
            "--base takes the model without that head"
        )
    raise CannotTrace(
        f"{name}: {version} has no model class for {clip(type(config).__name__)}: "
        "it describes a part of a larger model"
    )


def _classes_beside(config_class: type[Any]) -> list[Any]:
    """Model classes that no auto class lists, from the modelling files beside the config's.

    Such is a tower or a decoder that only ever runs as a part of a larger model.
    """
    package = importlib.import_module(config_class.__module__.rpartition(".")[0])
    found = []
    for file in pkgutil.iter_modules(getattr(package, "__path__", ())):
        if not file.name.startswith("modeling_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{file.name}")
        found += [
            value
            for value in vars(module).values()
            if isinstance(value, type)
            and issubclass(value, torch.nn.Module)
            and value.__module__ == module.__name__
            and getattr(value, "config_class", None) is config_class
            and value.forward is not torch.nn.Module.forward
        ]
    return sorted(found, key=lambda each: not each.__name__.endswith("Model"))


def _head(config: Any, class_name: str, base: bool) -> str:
    if base:
        return "headless (--base)"
    declared = class_name in declared_classes(getattr(config, "architectures", None))
    return "declared by the checkpoint" if declared else "chosen by transformers"


def copy_of(module: torch.nn.Module, name: str) -> Weightless:
    """A copy of a live module whose every tensor is on `meta`; the module is only read.

    Hooks are left out of the copy, so that none of the user's runs, but those by which torch
    itself computes a weight. Raises `CannotTrace` for a module that cannot be copied.
    """
    try:
        with torch.inference_mode(mode=False):
            return _copied(_uncompiled(module), name)
    except Exception as error:  # whatever the user's own `__deepcopy__`, `eval` or property raises
        raise CannotTrace(
            f"{name}: the module cannot be copied without its weights: {reason(error)}"
        ) from error


def _copied(module: torch.nn.Module, name: str) -> Weightless:
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
        class_name=in_line(type(module).__name__),
        model_type=_text(getattr(config, "model_type", None)),
        head="as given",
        attention=_text(getattr(config, "_attn_implementation", None)),
        dtype=dtype_name(first.dtype) if first is not None else "none",
        origin="live module",
    )
    if module.training:
        notes.append("your module is in training mode; this is its inference")
    return Weightless(twin, info, tuple(notes))


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
        values = known(buffer)
        memo[id(buffer)] = _meta(buffer) if values is None else values
        classes.add(type(buffer))
    own = sorted(in_line(each.__name__) for each in classes - _PLAIN_TENSORS)
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


def is_module(value: Any) -> bool:
    return isinstance(value, torch.nn.Module)


def _text(value: Any) -> str | None:
    """A value of a user's config as the record can hold it."""
    return None if value is None else str(value)


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
        is_known = not is_data and tensor.numel() <= LARGEST and tensor.layout is torch.strided
        with torch._C.DisableTorchFunction():
            return tensor.detach().cpu().clone() if is_known else _meta(tensor)


def on_meta(value: Any) -> Any:
    """A copy of inputs, whatever holds them, with all data in it replaced by its like on `meta`.

    Raises `CannotTrace` for what cannot be copied.
    """
    try:
        with torch.inference_mode(mode=False), _InputCopies():
            return copy.deepcopy(value)
    except Exception as error:
        raise CannotTrace(f"inputs: they cannot be copied: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """An exception as part of one line."""
    while isinstance(error, ModuleNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # transformers loads lazily, and says only what it wanted to load
    try:
        text = str(error).strip() or "no message"
    except Exception:  # of a class of the user's own
        text = "no message"
    return f"{in_line(type(error).__name__)}: {in_line(text, 240)}"
