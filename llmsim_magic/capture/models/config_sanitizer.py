"""A config is data: what in it would fetch or run code, or read weights, is taken out."""

from collections.abc import Iterator
from typing import Any

from llmsim_magic.records.errors import CannotTrace, shorten
from llmsim_magic.records.trace.workload import ATTENTIONS

# What runs on `meta`, with torch alone. Any other transformers fetches from the hub and runs: a
# repository's kernel (`owner/kernel`), or one in the stead of a package that is missing.
_KNOWN = {"attn": ATTENTIONS, "experts": ("eager", "grouped_mm", "batched_mm")}


def sanitized(config: Any, name: str, *, trust_remote_code: bool) -> list[str]:
    """Take it out of a config and all within it, which are changed; returns what is to be said.

    Raises `CannotTrace` for a part that could only be fetched.
    """
    notes = []
    for part in _parts(config):
        own = vars(part)
        if not trust_remote_code:
            own.pop("auto_map", None)
        for what, known in _KNOWN.items():
            key = f"_{what}_implementation_internal"
            given = own.get(key)
            if given is not None and given not in known:
                own[key] = None
                notes.append(f"{what}_implementation {shorten(given)} is not run: torch's own is")
        if str(getattr(part, "model_type", "")).startswith("timm"):
            _check_timm(own, name)
    return notes


def _check_timm(own: dict[str, Any], name: str) -> None:
    """The library timm opens what the name of an architecture or its arguments point to."""
    for key in ("architecture", "backbone"):
        if isinstance(own.get(key), str) and not set(":/").isdisjoint(own[key]):
            raise CannotTrace(
                f"{name}: {key} {shorten(own[key])} is a place to fetch from, not an architecture"
            )
    if isinstance(own.get("model_args"), dict):
        for key in ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"):
            own["model_args"].pop(key, None)


def _parts(config: Any) -> Iterator[Any]:
    """A config and those within it, in lists and tables too."""
    if hasattr(config, "_attn_implementation_internal"):
        yield config
        config = vars(config)
    if isinstance(config, dict):
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for value in config:
            yield from _parts(value)
