"""Build a model without weights from a config: the model's own class on the meta device."""

import copy
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch

from llmsim_magic.capture.autocast.requested_regions import noting_requests
from llmsim_magic.capture.checkpoint.lora_adapter import add_lora
from llmsim_magic.capture.checkpoint.match_names import match_parameters
from llmsim_magic.capture.checkpoint.tied_head import separate_head
from llmsim_magic.capture.configs.config_sanitizer import sanitized
from llmsim_magic.capture.configs.resolve import ConfigSource, declared_classes
from llmsim_magic.capture.inputs.context_length import (
    declared_context,
    is_huggingface,
    longest_context,
    longest_that_runs,
)
from llmsim_magic.capture.kernels.rng import preserved_rng
from llmsim_magic.capture.kernels.tensors import dtype_name
from llmsim_magic.capture.meta.isolation import isolated, model_lock
from llmsim_magic.capture.meta.small_buffers import TooManyWeights, tracking_buffers
from llmsim_magic.capture.models.backbone_stages import with_all_stages
from llmsim_magic.capture.models.model_class import check_has_forward, model_constructor
from llmsim_magic.capture.record.hooks import ModelHooks
from llmsim_magic.records.errors import CannotTrace, describe, is_instance, shorten
from llmsim_magic.records.trace.quantization_config import has_mlx_keys, has_quantized_weights
from llmsim_magic.records.trace.trace import BASE_HEAD, ModelInfo

META = torch.device("meta")


@dataclass(frozen=True, eq=False)
class MetaModel:
    """A model on the meta device, with the facts and notes that a report shows about it.

    `register_collectives` registers the hooks that call a rank's collectives; it must run after
    the recorder's hooks are registered.
    """

    module: torch.nn.Module
    info: ModelInfo
    notes: tuple[str, ...] = ()
    register_collectives: Callable[[torch.nn.Module], None] | None = None

    @cached_property
    def hooks(self) -> ModelHooks:
        """The hooks that every pass of the model shares."""
        return ModelHooks(self.module, self.register_collectives)

    @cached_property
    @isolated()
    def longest_context(self) -> int | None:
        """The number of tokens that it has positions for; None without such a limit."""
        with model_lock:
            return longest_context(self.module)

    @isolated()
    def longest_that_runs(self, tokens: int) -> int | None:
        """The number of tokens, less than `tokens`, beyond which it fails; None if they run."""
        with model_lock:
            return longest_that_runs(self.module, tokens)

    @property
    def declared_context(self) -> int | None:
        """The longest context that its config declares."""
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
    """Build the model that a config describes, on the meta device.

    Args:
        source: The config, which is copied, and its name.
        base: Build `AutoModel`'s class, without a head, instead of the class that the
            checkpoint declares.
        attention: The attention implementation, such as `sdpa`; None for the config's.
        dtype: The dtype of the weights, such as `bfloat16`; None for the config's.
        trust_remote_code: Run code of the model's repository, where its config needs it.

    Returns:
        The model in evaluation mode, without weights.

    Raises:
        CannotTrace: If transformers cannot build the model.
    """
    name, config = source.name, copy.deepcopy(source.config)
    has_remote_code = source.has_own_code or bool(getattr(config, "auto_map", None))
    notes = [*source.notes, *sanitized(config, name, trust_remote_code=trust_remote_code)]
    quantization = _remove_quantization(config)
    if quantization is not None:
        notes.append(_quantization_note(quantization))
    options: dict[str, Any] = {
        "dtype": _torch_dtype(config, dtype, name, is_quantized=quantization is not None)
    }
    if attention:
        options["attn_implementation"] = attention
    constructor = model_constructor(config, name, base=base, has_remote_code=has_remote_code)
    build = partial(_built, constructor.build, options=options, name=name)
    module, module_notes = _module(source, config, build)
    quantized_names, name_notes = match_parameters(module, quantization or {})
    notes += [*module_notes, *name_notes]
    class_name = type(module).__name__
    if constructor.instead_of:
        notes.append(f"{class_name} is built instead of {constructor.instead_of}")
    info = ModelInfo(
        name=name,
        class_name=class_name,
        model_type=optional_text(getattr(config, "model_type", None)),
        head=_head(config, class_name, base),
        attention=optional_text(getattr(module.config, "_attn_implementation", None)),
        dtype=dtype_name(module.dtype),
        origin=source.origin,
        generates=bool(module.can_generate()),
        quantisation=quantization,
        quantized_names=quantized_names,
    )
    return MetaModel(module, info, tuple(notes))


def _module(
    source: ConfigSource, config: Any, build: Callable[[Any], Any]
) -> tuple[Any, list[str]]:
    """Build the module with the stages, head and adapter of the checkpoint; also return notes."""
    module = build(config)
    check_has_forward(module, source.name)
    module, notes = with_all_stages(module, config, build)
    notes = [*notes, *separate_head(module, config, source.checkpoint)]
    if source.adapter is not None:
        notes.append(add_lora(module, source.adapter, source.name))
    return module, notes


def _built(build: Callable[..., Any], config: Any, options: dict[str, Any], name: str) -> Any:
    """Call the model's constructor on the meta device; keep the values of small buffers."""
    try:
        with preserved_rng(), noting_requests(), tracking_buffers() as buffers, META:
            module = build(config, **options)
    except TooManyWeights as error:
        raise CannotTrace(f"{name}: {error}") from error
    except Exception as error:
        raise CannotTrace(f"{name}: transformers cannot build it: {describe(error)}") from error
    buffers.move_to_meta(module)
    module.eval()
    return module


def _torch_dtype(config: Any, dtype: str | None, name: str, *, is_quantized: bool) -> torch.dtype:
    """The requested dtype, else the config's, else torch's default for such a checkpoint."""
    value = getattr(torch, dtype) if dtype else getattr(config, "dtype", None)
    if value is None:
        return torch.bfloat16 if is_quantized else torch.float32
    if not isinstance(value, torch.dtype):
        raise CannotTrace(f"{name}: dtype {shorten(value)} in its config is not a dtype of torch")
    return value


def _remove_quantization(config: Any) -> dict[str, Any] | None:
    """Delete a config's `quantization_config` and return it as JSON data; None without one.

    A model with several parts may have it in the config of its language model. mlx writes it as
    `quantization`, without a `quant_method`.
    """
    parts: list[Any] = [config, getattr(config, "text_config", None)]
    found: list[Any] = []
    for part in parts:
        if getattr(part, "quantization_config", None) is not None:
            found.append(part.quantization_config)
            del part.quantization_config
        mlx: object = getattr(part, "quantization", None)
        if has_mlx_keys(mlx):
            found.append({"quant_method": "mlx", **mlx})
    return _json_data(found[0]) if found else None


def _json_data(quantization: Any) -> dict[str, Any]:
    keys = quantization if isinstance(quantization, dict) else quantization.to_dict()
    text = json.dumps(keys, default=str)
    data: dict[str, Any] = json.loads(text, parse_constant=str)  # JSON has no NaN
    return data


def _quantization_note(keys: dict[str, Any]) -> str:
    if not has_quantized_weights(keys):
        return "its quantization_config quantises no weights"
    method = keys.get("quant_method", "quantised")
    return f"the checkpoint stores {method} weights; this is its unquantised equivalent"


def _head(config: Any, class_name: str, base: bool) -> str:
    if base:
        return BASE_HEAD
    declared = class_name in declared_classes(getattr(config, "architectures", None))
    return "declared by the checkpoint" if declared else "chosen by transformers"


def is_module(value: Any) -> bool:
    """Whether a value is a torch module."""
    return is_instance(value, torch.nn.Module)


def is_config(value: Any) -> bool:
    """Whether a value is a config of transformers."""
    transformers = importlib.import_module("transformers")
    return is_instance(value, transformers.PreTrainedConfig)


def optional_text(value: Any) -> str | None:
    """A config value as text for the record, where it may have any type; None stays None."""
    return None if value is None else str(value)
