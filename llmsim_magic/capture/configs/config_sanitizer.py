"""Remove from a config whatever would download or run code, or read weights."""

from collections.abc import Iterator
from typing import Any

from llmsim_magic.records.errors import CannotTrace, shorten
from llmsim_magic.records.trace.workload import ATTENTIONS

# Implementations that run on `meta` with torch alone. For any other, transformers downloads and
# runs a kernel from the hub (`owner/kernel`), also to replace a package that is not installed.
_SAFE_IMPLEMENTATIONS = {"attn": ATTENTIONS, "experts": ("eager", "grouped_mm", "batched_mm")}


def sanitized(config: Any, name: str, *, trust_remote_code: bool) -> list[str]:
    """Remove everything unsafe from a config and its nested configs, in place.

    Args:
        config: A `PretrainedConfig`, which is modified.
        name: The model's name, for error messages.
        trust_remote_code: Keep `auto_map`, which points to code of the model's repository.

    Returns:
        Notes for the report, one for each kernel implementation that was removed.

    Raises:
        CannotTrace: If a part of the model could only be downloaded.
    """
    notes = []
    for nested in _nested_configs(config):
        attributes = vars(nested)
        if not trust_remote_code:
            attributes.pop("auto_map", None)
        for kind, safe in _SAFE_IMPLEMENTATIONS.items():
            key = f"_{kind}_implementation_internal"
            given = attributes.get(key)
            if given is not None and given not in safe:
                attributes[key] = None
                notes.append(
                    f"{kind}_implementation {shorten(given)} is not run; torch's default is used"
                )
        if str(getattr(nested, "model_type", "")).startswith("timm"):
            _sanitize_timm(attributes, name)
    return notes


def _sanitize_timm(attributes: dict[str, Any], name: str) -> None:
    """Reject URLs and paths that the timm library would open, and drop its checkpoint arguments."""
    for key in ("architecture", "backbone"):
        value = attributes.get(key)
        if isinstance(value, str) and not set(":/").isdisjoint(value):
            raise CannotTrace(
                f"{name}: {key} {shorten(value)} in its config is a URL or a path; "
                "it must be the name of a timm architecture"
            )
    if isinstance(attributes.get("model_args"), dict):
        for key in ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"):
            attributes["model_args"].pop(key, None)


def _nested_configs(value: Any) -> Iterator[Any]:
    """Yield a config and every config inside it, also those in lists and dictionaries."""
    if hasattr(value, "_attn_implementation_internal"):
        yield value
        value = vars(value)
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _nested_configs(item)
