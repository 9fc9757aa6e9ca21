"""Find the config in a repository: its own, that of a part, or that of an adapter's base model."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from llmsim_magic.capture.checkpoint.found_config import LOCAL_FILE, FoundConfig
from llmsim_magic.capture.configs.config_limits import gives_sizes
from llmsim_magic.capture.hub.config_file import decode_config, parse_json
from llmsim_magic.capture.hub.repository import About, Repository, read_config
from llmsim_magic.records.errors import UnknownModel, clip, shorten

FindBase = Callable[[str], FoundConfig]
_ADAPTER, _PIPELINE, _MODULES = "adapter_config.json", "model_index.json", "modules.json"
_MAX_MODULES = 8
_WEIGHTS = re.compile(r"\.safetensors$|(^|/)(pytorch|tf|flax)_model[^/]*\.(bin|h5|msgpack)$")
_FOLDER = re.compile(r"[\w-][\w. -]*")


def config_of(repository: Repository, find_base: FindBase | None) -> FoundConfig:
    """The config of a repository, of whatever kind.

    Args:
        repository: A folder, or a repository of the hub.
        find_base: Finds the config of the base model that an adapter names; None if the
            repository is one already.

    Raises:
        UnknownModel: It has none; the message says what it is and what to trace instead.
    """
    # The cache may know that there was no config.json: that is asked again, unless it knows more.
    recheck = not any(map(repository.is_cached, (_ADAPTER, _PIPELINE, _MODULES)))
    keys = read_config(repository, "config.json", recheck=recheck)
    if keys is not None:
        _reject_part_of_diffusers(repository, keys)
        if not gives_sizes(keys):
            _reject_gguf(repository)
        return _found(repository, keys)
    if (keys := read_config(repository, _ADAPTER)) is not None:
        if find_base is None:
            raise UnknownModel(f"{shorten(repository.label)} is an adapter, not a base model")
        return _config_of_base(repository, keys, find_base)
    if (keys := read_config(repository, _PIPELINE)) is not None:
        raise UnknownModel(_pipeline(repository, keys))
    if (content := repository.read(_MODULES)) is not None:
        modules = parse_json(
            decode_config(content, _MODULES, repository.label), repository.label, _MODULES
        )
        return _config_of_transformer(repository, modules)
    raise _without_config(repository)


def _found(repository: Repository, keys: dict[str, Any]) -> FoundConfig:
    return FoundConfig(repository.label, keys, repository.origin, repository.location)


def _config_of_base(
    repository: Repository, adapter: dict[str, Any], find_base: FindBase
) -> FoundConfig:
    """The config of an adapter's base model, with the adapter's own keys."""
    label, base = shorten(repository.label), adapter.get("base_model_name_or_path")
    kind = f"is an adapter ({clip(str(adapter.get('peft_type', 'of unknown type')), 30)})"
    if not isinstance(base, str) or not base.strip():
        raise UnknownModel(f"{label} {kind} whose {_ADAPTER} names no base model; trace that one")
    if repository.origin != LOCAL_FILE and (base[0] in "./~" or "\\" in base):
        raise UnknownModel(
            f"{label} {kind} of {shorten(base)}, a path of the machine that trained it; trace the "
            "base model by its hub id"
        )
    if adapter.get("peft_type") != "LORA":
        raise UnknownModel(
            f"{label} {kind} of {shorten(base)}, and only LoRA adapters are traced; trace the base "
            "model, or the live model with the adapter"
        )
    revision = adapter.get("revision")
    is_pinned = isinstance(revision, str) and revision not in ("", "main") and "@" not in base
    try:
        found = find_base(f"{base}@{revision}" if is_pinned else base)
    except UnknownModel as error:
        raise UnknownModel(f"{label} {kind} of {shorten(base)}, and that: {error}") from error
    note = f"its config is that of the base model {found.name}"
    return replace(found, name=repository.label, notes=(*found.notes, note), adapter=adapter)


def _pipeline(repository: Repository, keys: dict[str, Any]) -> str:
    """What a pipeline of diffusers is made of."""
    parts = [
        f"{name} ({value[1]})"
        for name, value in keys.items()
        if isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)
    ]
    pipeline = keys.get("_class_name")
    of = f" ({clip(pipeline, 60)})" if isinstance(pipeline, str) else ""
    place = repository.subfolder("PART").location
    return (
        f"{shorten(repository.label)} is a pipeline of diffusers{of}, not one model. Its parts: "
        f"{clip(', '.join(parts), 260)}. Name one of transformers as {place}, or pass a "
        "live module with inputs"
    )


def _reject_part_of_diffusers(repository: Repository, keys: dict[str, Any]) -> None:
    class_name = keys.get("_class_name")
    if isinstance(class_name, str) and "model_type" not in keys and "_diffusers_version" in keys:
        raise UnknownModel(
            f"{shorten(repository.label)} is a {clip(class_name, 60)} of diffusers: load it with "
            "diffusers and pass the live module, as in llmsim.trace(module, inputs=...)"
        )


def _reject_gguf(repository: Repository) -> None:
    """Reject a repository whose only weights are GGUF, which hold the sizes themselves."""
    try:
        about = repository.about()
    except UnknownModel:  # the config is at hand, and the hub is not
        return
    if _gguf_files(about) and not any(map(_WEIGHTS.search, about.files)):
        what = f"holds GGUF weights ({clip(_gguf_files(about)[0], 60)}) and a config.json "
        raise _trace_base_model(repository, about, f"{what}without sizes")


def _config_of_transformer(repository: Repository, modules: Any) -> FoundConfig:
    """The config of the first module of a sentence-transformers model that is a transformer."""
    paths = [
        each["path"]
        for each in (modules if isinstance(modules, list) else [])[:_MAX_MODULES]
        if isinstance(each, dict) and isinstance(each.get("path"), str)
    ]
    for path in paths:
        if not _FOLDER.fullmatch(path):
            continue
        part = repository.subfolder(path)
        keys = read_config(part, "config.json")
        if keys is not None and "model_type" in keys:
            others = ", ".join(each for each in paths if each not in ("", path))
            after = f"; its other modules ({clip(others)}) are not traced" * bool(others)
            note = f"the transformer of a sentence-transformers model{after}"
            return FoundConfig(repository.label, keys, part.origin, part.location, notes=(note,))
    raise UnknownModel(
        f"{shorten(repository.label)} is a sentence-transformers model without a transformer of "
        f"transformers: its modules are {clip(', '.join(paths) or 'unknown')}"
    )


def _without_config(repository: Repository) -> UnknownModel:
    """What a repository is that has no config of any kind."""
    about = repository.about()
    if about.is_empty:
        repository.check_exists()
    is_hub = repository.origin != LOCAL_FILE
    what = "has no config.json on the hub" if is_hub else "is a folder without a config.json"
    if weights := _gguf_files(about):
        what = f"holds GGUF weights ({clip(weights[0], 60)}) and no config.json"
    return _trace_base_model(repository, about, what)


def _gguf_files(about: About) -> list[str]:
    return [file for file in about.files if file.lower().endswith(".gguf")]


def _trace_base_model(repository: Repository, about: About, what: str) -> UnknownModel:
    """An error that says what a repository is, and names its base model if that is known."""
    if about.base_models:
        bases = clip(" or ".join(about.base_models[:3]), 120)
        return UnknownModel(f"{shorten(repository.label)} {what}; trace its base model {bases}")
    made_from = "; trace the model that it was made from, by its hub id"
    return UnknownModel(f"{shorten(repository.label)} {what}{made_from * bool(_gguf_files(about))}")
