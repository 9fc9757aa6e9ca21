"""Make a model without weights: from a config, or as a copy of a live module."""

import copy
import importlib
import json
import pkgutil
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from threading import Lock
from typing import Any

import torch

from llmsim_magic.capture.buffers import TooManyParts, knowing_buffers, known
from llmsim_magic.capture.harness import Harness
from llmsim_magic.capture.inputs.lengths import (
    declared_context,
    is_huggingface,
    longest_context,
)
from llmsim_magic.capture.resolve import Source, declared_classes
from llmsim_magic.capture.tensors import dtype_name, text_of
from llmsim_magic.records.errors import CannotTrace, clip, is_a
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
        "dtype": getattr(torch, dtype) if dtype else getattr(config, "dtype", None)
    }
    if options["dtype"] is None:
        options["dtype"] = default
    if attention:
        options["attn_implementation"] = attention
    if trust_remote_code and hasattr(config, "auto_map"):
        options["trust_remote_code"] = True
    try:
        builder = _builder(config, base, source.name)
        with knowing_buffers(cancelled) as buffers, META:
            module = builder(config, **options)
    except CannotTrace:
        raise
    except TooManyParts as error:
        raise CannotTrace(f"{source.name}: {error}") from error
    except Exception as error:
        raise CannotTrace(
            f"{source.name}: transformers cannot build it: {reason(error)}"
        ) from error
    buffers.keep_only(module)
    module.eval()
    class_name = type(module).__name__
    info = ModelInfo(
        name=text_of(source.name),
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
    text = text_of(json.dumps(keys, default=str, ensure_ascii=False))
    plain: dict[str, Any] = json.loads(text, parse_constant=str)  # JSON has no NaN
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
    module = getattr(module, "_orig_mod", module)  # what torch.compile wraps
    memo: dict[int, Any] = {}
    dropped = 0
    for part in module.modules():
        for kind in _HOOKS:
            hooks = getattr(part, kind)
            kept = OrderedDict((key, hook) for key, hook in hooks.items() if _is_torchs(hook))
            dropped += (len(hooks) - len(kept)) * ("forward" in kind)
            memo[id(hooks)] = kept
    try:
        for parameter in module.parameters():
            memo[id(parameter)] = torch.nn.Parameter(_meta(parameter), parameter.requires_grad)
        for buffer in module.buffers():
            values = known(buffer)
            memo[id(buffer)] = _meta(buffer) if values is None else values
        with _MetaCopies():
            twin = copy.deepcopy(module, memo)
    except Exception as error:
        raise CannotTrace(
            f"{name}: the module cannot be copied without its weights: {reason(error)}"
        ) from error
    twin.eval()
    config = getattr(module, "config", None)
    first = next(module.parameters(), None)
    info = ModelInfo(
        name=text_of(name),
        class_name=type(module).__name__,
        model_type=_text(getattr(config, "model_type", None)),
        head="as given",
        attention=_text(getattr(config, "_attn_implementation", None)),
        dtype=dtype_name(first.dtype) if first is not None else "none",
        origin="live module",
    )
    notes = []
    if dropped:
        notes.append(f"{dropped} hooks of your module were not run")
    if module.training:
        notes.append("your module is in training mode; this is its inference")
    return Weightless(twin, info, tuple(notes))


def is_module(value: Any) -> bool:
    return is_a(value, torch.nn.Module)


def is_config(value: Any) -> bool:
    transformers = importlib.import_module("transformers")
    return is_a(value, transformers.PreTrainedConfig)


def _text(value: Any) -> str | None:
    """A value of a user's config as the record can hold it."""
    return None if value is None else text_of(value)


def _is_torchs(hook: Any) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils")


def _meta(tensor: torch.Tensor) -> torch.Tensor:
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
    """The same, but of whole numbers and flags the values are known, so they are kept."""

    def like(self, tensor: torch.Tensor) -> torch.Tensor:
        known = not (tensor.is_floating_point() or tensor.is_complex() or tensor.is_meta)
        with torch._C.DisableTorchFunction():
            return tensor.detach().cpu().clone() if known else _meta(tensor)


def on_meta(value: Any) -> Any:
    """A copy of inputs, whatever holds them, with all data in it replaced by its like on `meta`.

    Raises `CannotTrace` for what cannot be copied.
    """
    try:
        with _InputCopies():
            return copy.deepcopy(value)
    except Exception as error:
        raise CannotTrace(f"inputs: they cannot be copied: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """An exception as part of one line."""
    while isinstance(error, ModuleNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # transformers loads lazily, and says only what it wanted to load
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {clip(text, 240).strip(chr(39))}"
