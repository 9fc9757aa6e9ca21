"""Resolve a model's name to its config: a file, the catalogue, the local cache or the hub.

What reads the hub and folders is imported for a model that is in one of them.
"""

import copy
import importlib
import os.path
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmsim_magic.capture.checkpoint.found_config import LOCAL_FILE, FoundConfig
from llmsim_magic.capture.checkpoint.lora_adapter import declare_task
from llmsim_magic.capture.configs.config_limits import check_sizes, gives_sizes
from llmsim_magic.capture.hub.config_file import decode_config, parse_config, read_content
from llmsim_magic.capture.hub.repository_name import is_address, parse_name
from llmsim_magic.capture.hub.request import HubWait
from llmsim_magic.capture.hub.settings import import_hub
from llmsim_magic.catalog import models
from llmsim_magic.records.errors import CannotTrace, UnknownModel, describe, shorten
from llmsim_magic.records.printable import printable

if TYPE_CHECKING:
    from llmsim_magic.capture.checkpoint.checkpoint import Checkpoint
    from llmsim_magic.capture.configs.repository_kinds import FindBase


@dataclass(frozen=True, slots=True)
class ConfigSource:
    """A `PretrainedConfig` with its display name, its origin and notes for the report.

    `adapter` has the keys of the adapter whose layers the model gets. `has_own_code` says whether
    the model's repository has code of its own, which was not run. `checkpoint` has facts about
    the checkpoint; None for a config object.
    """

    name: str
    config: Any
    origin: str
    notes: tuple[str, ...] = ()
    adapter: Mapping[str, Any] | None = None
    has_own_code: bool = False
    checkpoint: "Checkpoint | None" = None


def find_config(name: str, *, refresh: bool = False, wait: HubWait | None = None) -> FoundConfig:
    """Find the config of a model; needs neither torch nor transformers.

    Args:
        name: A hub id (`owner/name`, `owner/name@revision`), an address of the hub, a catalogue
            alias, a folder or the path of a `config.json`.
        refresh: Skip the catalogue and the local cache and ask the hub.
        wait: How long to wait for the hub, and what to call meanwhile.

    Returns:
        The keys of the config and where they came from.

    Raises:
        UnknownModel: If nothing is found, with the closest known names.
        InvalidValue: If a setting of huggingface_hub has no meaning, and the hub's cache is read.
        Cancelled: Cancelled while waiting for the hub.
    """
    wait = wait or HubWait()
    return _find(name, refresh, wait, partial(_find, refresh=refresh, wait=wait, find_base=None))


def _find(name: str, refresh: bool, wait: HubWait, find_base: "FindBase | None") -> FoundConfig:
    """Find a config; `find_base` is None for the base model of an adapter."""
    if not name.strip():
        raise UnknownModel(
            "the model's name is empty; it must be a hub id, a folder or the path of a config.json"
        )
    path = Path(os.path.expanduser(name))
    is_local = os.path.isfile(path) or os.path.isfile(path / "config.json")
    if name.startswith((".", "/", "~")) or is_local:
        return _config_at_path(name, path, find_base)
    entry = models.find(name)
    if entry is None and (is_address(name) or "@" in name) and not os.path.isdir(path):
        import_hub()
        parsed = parse_name(name.strip())
        entry = models.find(parsed.repo) if str(parsed) == parsed.repo else None
    if entry is not None and not refresh:
        return FoundConfig(entry.name, copy.deepcopy(entry.config), "catalogue", entry.name)
    if not is_address(name) and (os.path.isdir(path) or name.endswith(".json")):
        return _config_at_path(name, path, find_base)
    return _config_on_hub(name, refresh, wait, find_base, is_in_catalogue=entry is not None)


def _config_on_hub(
    name: str,
    refresh: bool,
    wait: HubWait,
    find_base: "FindBase | None",
    *,
    is_in_catalogue: bool,
) -> FoundConfig:
    """The config of a model in the local cache, or on the hub."""
    from llmsim_magic.capture.configs.repository_kinds import config_of
    from llmsim_magic.capture.hub.failures import HubUnavailable
    from llmsim_magic.capture.hub.repository import HubRepository

    import_hub()
    repository = HubRepository(parse_name(name.strip()), wait, refresh)
    try:
        return config_of(repository, find_base)
    except HubUnavailable as error:
        if not refresh:
            raise
        where = "the built-in catalogue" if is_in_catalogue else "the local cache"
        if not is_in_catalogue and not repository.is_cached("config.json"):
            raise
        raise HubUnavailable(f"{error}; without --refresh {where} answers") from error


def load_config(
    found: FoundConfig, *, trust_remote_code: bool = False, wait: HubWait | None = None
) -> ConfigSource:
    """Turn the raw keys of a config into a config object of transformers.

    Args:
        found: The keys and their location.
        trust_remote_code: Run code of the model's repository, where its config needs it.
        wait: How long to wait for the hub, if it has that code.

    Returns:
        The config object, with notes for the report.

    Raises:
        CannotTrace: If transformers does not know the architecture or rejects a value.
    """
    from llmsim_magic.capture.checkpoint.checkpoint import checkpoint_of

    transformers = importlib.import_module("transformers")
    name, keys = found.name, found.keys
    check_sizes(name, keys)
    config_class = _config_class(transformers, keys)
    model_type = keys.get("model_type")
    if _needs_own_code(transformers, config_class, keys):
        if trust_remote_code:
            from llmsim_magic.capture.configs.remote_code import config_with_code

            config = config_with_code(found, config_class, wait or HubWait())
            notes = (*found.notes, "code of the model's repository was run")
            return ConfigSource(
                name, config, found.origin, notes, found.adapter, checkpoint=checkpoint_of(found)
            )
        if config_class is None:
            raise CannotTrace(
                f"{name}: its architecture is defined by code in its own repository; "
                "--trust-remote-code downloads that code and runs it on this machine"
            )
    if config_class is None:
        version = f"transformers {transformers.__version__}"
        if not model_type:
            raise CannotTrace(f"{name}: its config is without model_type, which {version} needs")
        raise CannotTrace(f"{name}: model_type {shorten(model_type)} is unknown to {version}")
    config = _config(config_class, found)
    added = []
    if not _is_known_type(transformers, model_type):
        added.append(
            f"model_type {shorten(model_type)} is unknown; "
            f"the model is built as {config_class.model_type}, the type of its declared class"
        )
    is_silent = not gives_sizes(keys) and gives_sizes(config.to_dict())
    if is_silent and found.origin != "catalogue":  # whose entries leave out what is a default
        added.append("its config gives no sizes: every size is transformers' default")
    notes = (*found.notes, *added)
    return ConfigSource(
        name=name,
        config=config,
        origin=found.origin,
        notes=notes,
        adapter=found.adapter,
        has_own_code="auto_map" in keys,
        checkpoint=checkpoint_of(found),
    )


def _config(config_class: Any, found: FoundConfig) -> Any:
    plain = {key: value for key, value in found.keys.items() if key != "auto_map"}
    try:
        config = config_class.from_dict(copy.deepcopy(plain))
    except Exception as error:
        raise CannotTrace(
            f"{found.name}: {config_class.__name__} rejects the config: {describe(error)}"
        ) from error
    if found.adapter is not None:
        declare_task(config, found.adapter)
    return config


def _needs_own_code(transformers: Any, config_class: Any, keys: dict[str, Any]) -> bool:
    """Whether a config names code of its repository, for a type or class that is not known."""
    if "auto_map" not in keys:
        return False
    declared = declared_classes(keys.get("architectures"))
    return config_class is None or not any(
        hasattr(getattr(transformers, each, None), "_from_config") for each in declared
    )


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


def _config_at_path(name: str, path: Path, find_base: "FindBase | None") -> FoundConfig:
    is_folder = os.path.isdir(path)
    file = path / "config.json" if is_folder else path
    if os.path.lexists(file) and not os.path.isfile(file):
        raise UnknownModel(f"{shorten(name)}: {file.name} is not a file or a link to one")
    if is_folder:
        from llmsim_magic.capture.configs.repository_kinds import config_of
        from llmsim_magic.capture.hub.repository import FolderRepository

        found = config_of(FolderRepository(path, name), find_base)
        return replace(found, name=printable(path.name or name))
    if not os.path.isfile(file):
        raise UnknownModel(f"{shorten(name)}: the file does not exist")
    keys = parse_config(decode_config(read_content(file, name), file.name, name), name)
    label = printable(path.parent.name or path.stem or name)
    return FoundConfig(label, keys, LOCAL_FILE, str(file.parent))
