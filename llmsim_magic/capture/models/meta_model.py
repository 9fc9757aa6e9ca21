"""Make a model without weights from a config: the model's own class, built on `meta`."""

import copy
import importlib
import json
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch

from llmsim_magic.capture.inputs.context_length import (
    declared_context,
    is_huggingface,
    longest_context,
)
from llmsim_magic.capture.kernels.rng import seeded_rng
from llmsim_magic.capture.kernels.tensors import dtype_name
from llmsim_magic.capture.meta.isolation import isolated
from llmsim_magic.capture.meta.small_buffers import TooManyWeights, tracking_buffers
from llmsim_magic.capture.models.config_sanitizer import sanitized
from llmsim_magic.capture.models.resolve import ConfigSource, declared_classes
from llmsim_magic.capture.record.hooks import ModelHooks
from llmsim_magic.records.errors import CannotTrace, describe, is_instance, shorten
from llmsim_magic.records.trace.trace import ModelInfo

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


@dataclass(frozen=True, eq=False)
class MetaModel:
    """A model on `meta`, ready to be run, and what to say of it.

    `spread` hangs on it the collectives of a rank, after all that listens to a pass.
    """

    module: torch.nn.Module
    info: ModelInfo
    notes: tuple[str, ...] = ()
    spread: Callable[[torch.nn.Module], None] | None = None

    @cached_property
    def harness(self) -> ModelHooks:
        """What every pass of the model shares."""
        return ModelHooks(self.module, self.spread)

    @cached_property
    @isolated()
    def longest_context(self) -> int | None:
        """The tokens that its learned position table has rows for, if anything sets a limit."""
        return longest_context(self.module)

    @property
    def declared_context(self) -> int | None:
        """The longest context that its config says it is meant for."""
        return declared_context(self.module) if is_huggingface(self.module) else None


@isolated()
def from_config(
    source: ConfigSource,
    *,
    base: bool = False,
    attention: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> MetaModel:
    """Build the model that a config describes, on `meta`.

    The class is the one the checkpoint declares, or `AutoModel`'s with `base`.
    Raises `CannotTrace` where transformers cannot build it.
    """
    config = copy.deepcopy(source.config)
    notes = [*source.notes, *sanitized(config, source.name, trust_remote_code=trust_remote_code)]
    default = torch.float32
    if (quantisation := getattr(config, "quantization_config", None)) is not None:
        del config.quantization_config
        default = torch.bfloat16
        quantisation = _as_json(quantisation)
        notes.append(_quantised(quantisation))
    options: dict[str, Any] = {
        "dtype": getattr(torch, dtype) if dtype else getattr(config, "dtype", None)
    }
    if options["dtype"] is None:
        options["dtype"] = default
    if not isinstance(options["dtype"], torch.dtype):
        raise CannotTrace(f"{source.name}: dtype {shorten(options['dtype'])} is none of torch's")
    if attention:
        options["attn_implementation"] = attention
    try:
        builder = _builder(config, base, source.name)
        with seeded_rng(), tracking_buffers() as buffers, META:
            module = builder(config, **options)
    except CannotTrace:
        raise
    except TooManyWeights as error:
        raise CannotTrace(f"{source.name}: {error}") from error
    except Exception as error:
        raise CannotTrace(
            f"{source.name}: transformers cannot build it: {describe(error)}"
        ) from error
    buffers.keep_only(module)
    module.eval()
    class_name = type(module).__name__
    info = ModelInfo(
        name=source.name,
        class_name=class_name,
        model_type=text_of(getattr(config, "model_type", None)),
        head=_head(config, class_name, base),
        attention=text_of(getattr(module.config, "_attn_implementation", None)),
        dtype=dtype_name(module.dtype),
        origin=source.origin,
        quantisation=quantisation,
    )
    return MetaModel(module, info, tuple(notes))


def _as_json(quantisation: Any) -> dict[str, Any]:
    """A `quantization_config` as JSON has it, whether it is keys or an object of transformers."""
    keys = quantisation if isinstance(quantisation, dict) else quantisation.to_dict()
    text = json.dumps(keys, default=str)
    read: dict[str, Any] = json.loads(text, parse_constant=str)  # JSON has no NaN
    return read


def _quantised(keys: dict[str, Any]) -> str:
    method = keys.get("quant_method", "quantised")
    return f"the checkpoint stores {method} weights; this is its unquantised equivalent"


def _builder(config: Any, base: bool, name: str) -> Any:
    """What builds a model from a config: the declared class, else the nearest that takes it."""
    transformers = importlib.import_module("transformers")
    own = getattr(config, "auto_map", {})  # its repository's code, where that is trusted
    trusted = {"trust_remote_code": True} if own else {}
    if base:
        return partial(transformers.AutoModel.from_config, **trusted)
    declared = declared_classes(getattr(config, "architectures", None))
    for class_name in declared:
        found = getattr(transformers, class_name, None)
        if found is not None and hasattr(found, "_from_config"):
            return found._from_config
    for auto in map(partial(getattr, transformers), _AUTO_CLASSES):
        if auto.__name__ in own or (not declared and type(config) in auto._model_mapping):
            return partial(auto.from_config, **trusted)
    for model_class in () if declared else _classes_beside(type(config)):
        return model_class._from_config
    version = f"transformers {transformers.__version__}"
    if declared:
        raise CannotTrace(
            f"{name}: {version} has no {shorten(', '.join(declared))}, which its config declares; "
            "--base takes the model without that head"
        )
    raise CannotTrace(
        f"{name}: {version} has no model class for {shorten(type(config).__name__)}: "
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


def is_module(value: Any) -> bool:
    return is_instance(value, torch.nn.Module)


def is_config(value: Any) -> bool:
    transformers = importlib.import_module("transformers")
    return is_instance(value, transformers.PreTrainedConfig)


def text_of(value: Any) -> str | None:
    """A value of a user's config as the record can hold it."""
    return None if value is None else str(value)
