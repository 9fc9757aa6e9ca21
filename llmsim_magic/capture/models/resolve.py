"""Resolve a model's name to its config: a file, the catalogue, the local cache or the hub."""

import copy
import importlib
import os.path
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmsim_magic.capture.models.config_file import read_config
from llmsim_magic.capture.models.config_limits import check_sizes
from llmsim_magic.capture.models.hub import cached_config_file, download_config
from llmsim_magic.catalog import models
from llmsim_magic.records.errors import CannotTrace, UnknownModel, describe, shorten
from llmsim_magic.records.printable import printable


@dataclass(frozen=True, slots=True)
class ConfigSource:
    """A `PretrainedConfig` with its display name, its origin and notes for the report."""

    name: str
    config: Any
    origin: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FoundConfig:
    """The raw keys of a `config.json`, before transformers interprets them.

    `location` is the folder or hub id that they came from.
    """

    name: str
    keys: dict[str, Any]
    origin: str
    location: str


def find_config(name: str, *, refresh: bool = False) -> FoundConfig:
    """Find the config of a model; needs neither torch nor transformers.

    Args:
        name: A hub id, a catalogue alias, a folder or the path of a `config.json`.
        refresh: Skip the catalogue and the local cache and ask the hub.

    Returns:
        The keys of the config and where they came from.

    Raises:
        UnknownModel: If nothing is found, with the closest known names.
    """
    if not name.strip():
        raise UnknownModel(
            "the model's name is empty; it must be a hub id, a folder or the path of a config.json"
        )
    path = Path(os.path.expanduser(name))
    is_local = os.path.isfile(path) or os.path.isfile(path / "config.json")
    if name.startswith((".", "/", "~")) or is_local:
        return _config_at_path(name, path)
    entry = models.find(name)
    if entry is not None and not refresh:
        return FoundConfig(entry.name, copy.deepcopy(entry.config), "catalogue", entry.name)
    if os.path.isdir(path) or name.endswith(".json"):
        return _config_at_path(name, path)
    if not refresh and (cached := cached_config_file(name)):
        return FoundConfig(name, read_config(cached, name), "local cache", name)
    return FoundConfig(name, download_config(name), "hub", name)


def load_config(found: FoundConfig, *, trust_remote_code: bool = False) -> ConfigSource:
    """Turn the raw keys of a config into a config object of transformers.

    Args:
        found: The keys and their location.
        trust_remote_code: Run code of the model's repository, where its config needs it.

    Returns:
        The config object, with notes for the report.

    Raises:
        CannotTrace: If transformers does not know the architecture or rejects a value.
    """
    transformers = importlib.import_module("transformers")
    name, keys = found.name, found.keys
    check_sizes(name, keys)
    config_class = _config_class(transformers, keys)
    model_type = keys.get("model_type")
    if config_class is None and "auto_map" in keys:
        return _config_from_remote_code(transformers, found, trust_remote_code)
    if config_class is None:
        version = f"transformers {transformers.__version__}"
        if not model_type:
            raise CannotTrace(f"{name}: its config is without model_type, which {version} needs")
        raise CannotTrace(f"{name}: model_type {shorten(model_type)} is unknown to {version}")
    try:
        config = config_class.from_dict(copy.deepcopy(keys))
    except Exception as error:
        raise CannotTrace(
            f"{name}: {config_class.__name__} rejects the config: {describe(error)}"
        ) from error
    notes = []
    if not _is_known_type(transformers, model_type):
        notes.append(
            f"model_type {shorten(model_type)} is unknown; "
            f"the model is built as {config_class.model_type}, the type of its declared class"
        )
    return ConfigSource(name, config, found.origin, tuple(notes))


def _config_from_remote_code(
    transformers: Any, found: FoundConfig, trust_remote_code: bool
) -> ConfigSource:
    """Build the config with code of the model's own repository, if the user trusts it."""
    if not trust_remote_code:
        raise CannotTrace(
            f"{found.name}: its architecture is defined by code in its own repository; "
            "--trust-remote-code downloads that code and runs it on this machine"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(found.location, trust_remote_code=True)
    except Exception as error:
        raise CannotTrace(
            f"{found.name}: the code of its repository fails: {describe(error)}"
        ) from error
    notes = ("code of the model's repository was run",)
    return ConfigSource(found.name, config, found.origin, notes)


def _is_known_type(transformers: Any, model_type: Any) -> bool:
    return isinstance(model_type, str) and model_type in transformers.CONFIG_MAPPING


def _config_class(transformers: Any, keys: dict[str, Any]) -> Any:
    """The config class of `model_type`, or of the declared model class if the type is unknown."""
    model_type = keys.get("model_type")
    if _is_known_type(transformers, model_type):
        return transformers.CONFIG_MAPPING[model_type]
    for class_name in declared_classes(keys.get("architectures")):
        declared = getattr(transformers, class_name, None)
        if declared is not None:
            return getattr(declared, "config_class", None)
    return None


def declared_classes(value: Any) -> tuple[str, ...]:
    """The class names in a config's `architectures`, whatever type its value has."""
    names = value if isinstance(value, list) else [value]
    return tuple(name for name in names if isinstance(name, str))


def _config_at_path(name: str, path: Path) -> FoundConfig:
    is_folder = os.path.isdir(path)
    file = path / "config.json" if is_folder else path
    if not os.path.isfile(file):
        if os.path.lexists(file):
            raise UnknownModel(f"{shorten(name)}: {file.name} is not a file or a link to one")
        problem = "the folder has no config.json" if is_folder else "the file does not exist"
        raise UnknownModel(f"{shorten(name)}: {problem}")
    label = path.name if is_folder else path.parent.name or path.stem
    return FoundConfig(
        printable(label or name), read_config(file, name), "local file", str(file.parent)
    )
