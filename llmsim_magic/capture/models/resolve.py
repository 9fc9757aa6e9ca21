"""From what the user calls a model to its config: object, file, catalogue, local cache, hub."""

import copy
import importlib
import json
import os.path
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmsim_magic.capture.models.config_limits import check_sizes
from llmsim_magic.catalog import models
from llmsim_magic.records.errors import CannotTrace, UnknownModel, describe, shorten
from llmsim_magic.records.printable import printable

HUB_LIMIT_S = 5.0
LARGEST = 4 << 20  # bytes of a config; one with 20,000 labels has 2 MiB
MOST_VALUES, DEEPEST = 200_000, 50


@dataclass(frozen=True, slots=True)
class ConfigSource:
    """A `PretrainedConfig`, what to call it, and where it came from."""

    name: str
    config: Any
    origin: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FoundConfig:
    """The keys of a `config.json`, before transformers is asked what they mean.

    `where` is the folder or hub id that they came from.
    """

    name: str
    keys: dict[str, Any]
    origin: str
    where: str


def find_config(name: str, *, refresh: bool = False) -> FoundConfig:
    """What a name stands for; needs neither torch nor transformers.

    Raises `UnknownModel` with the nearest known ids where nothing is found.
    """
    if not name.strip():
        raise UnknownModel("'' is no model's name: give a hub id, a folder or a config.json")
    path = Path(os.path.expanduser(name))
    is_local = os.path.isfile(path) or os.path.isfile(path / "config.json")
    if name.startswith((".", "/", "~")) or is_local:
        return _from_path(name, path)
    entry = models.find(name)
    if entry is not None and not refresh:
        return FoundConfig(entry.name, copy.deepcopy(entry.config), "catalogue", entry.name)
    if os.path.isdir(path) or name.endswith(".json"):
        return _from_path(name, path)
    if not refresh and (cached := _from_cache(name)):
        return FoundConfig(name, _read(cached, name), "local cache", name)
    return FoundConfig(name, _from_hub(name), "hub", name)


def load_config(facts: FoundConfig, *, trust_remote_code: bool = False) -> ConfigSource:
    """The config object that those keys describe.

    Raises `CannotTrace` where transformers does not know the architecture or refuses a value.
    """
    transformers = importlib.import_module("transformers")
    keys = facts.keys
    check_sizes(facts.name, keys)
    config_class = _config_class(transformers, keys)
    if config_class is None and "auto_map" in keys:
        if not trust_remote_code:
            raise CannotTrace(
                f"{facts.name}: its architecture is code from its own repository; "
                "--trust-remote-code would download and run it on this machine"
            )
        try:
            config = transformers.AutoConfig.from_pretrained(facts.where, trust_remote_code=True)
        except Exception as error:
            raise CannotTrace(f"{facts.name}: its code cannot be run: {describe(error)}") from error
        return ConfigSource(
            facts.name, config, facts.origin, ("code of the model's repository was run",)
        )
    if config_class is None:
        given = keys.get("model_type")
        what = f"model_type {shorten(given)}" if given else "a config without model_type"
        raise CannotTrace(
            f"{facts.name}: {what} is no architecture of transformers {transformers.__version__}"
        )
    try:
        config = config_class.from_dict(copy.deepcopy(keys))
    except Exception as error:
        raise CannotTrace(
            f"{facts.name}: {config_class.__name__} refuses the config: {describe(error)}"
        ) from error
    notes = []
    if not _is_known(transformers, given := keys.get("model_type")):
        kind = config_class.model_type
        notes.append(f"model_type {shorten(given)} is unknown: taken for {kind}, as its class is")
    return ConfigSource(facts.name, config, facts.origin, tuple(notes))


def _is_known(transformers: Any, model_type: Any) -> bool:
    return isinstance(model_type, str) and model_type in transformers.CONFIG_MAPPING


def _config_class(transformers: Any, keys: dict[str, Any]) -> Any:
    """By `model_type`, or by the declared class where a repository names its type otherwise."""
    model_type = keys.get("model_type")
    if _is_known(transformers, model_type):
        return transformers.CONFIG_MAPPING[model_type]
    for class_name in declared_classes(keys.get("architectures")):
        declared = getattr(transformers, class_name, None)
        if declared is not None:
            return getattr(declared, "config_class", None)
    return None


def declared_classes(value: Any) -> tuple[str, ...]:
    """The names under `architectures`, whatever a config holds there."""
    names = value if isinstance(value, list) else [value]
    return tuple(name for name in names if isinstance(name, str))


def _from_path(name: str, path: Path) -> FoundConfig:
    is_folder = os.path.isdir(path)
    file = path / "config.json" if is_folder else path
    if not os.path.isfile(file):
        if os.path.lexists(file):
            raise UnknownModel(f"{shorten(name)}: {file.name} is no file, or a link to none")
        what = "folder holds no config.json" if is_folder else "file does not exist"
        raise UnknownModel(f"{shorten(name)}: that {what}")
    label = path.name if is_folder else path.parent.name or path.stem
    return FoundConfig(printable(label or name), _read(file, name), "local file", str(file.parent))


def _read(file: Path, name: str) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            content = opened.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise UnknownModel(f"{shorten(name)}: {file.name} is no config: it is over 4 MiB long")
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UnknownModel(f"{shorten(name)}: {file.name} cannot be read: {error}") from error
    return _parse(text, name)


def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        keys = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise UnknownModel(f"{shorten(name)}: its config is not JSON ({where})") from error
    except RecursionError as error:
        raise UnknownModel(f"{shorten(name)}: its config is nested too deep") from error
    except ValueError as error:
        raise UnknownModel(
            f"{shorten(name)}: its config holds a number of too many digits"
        ) from error
    if not isinstance(keys, dict):
        raise UnknownModel(f"{shorten(name)}: its config is no JSON object")
    _check_extent(keys, name)
    return keys


def _check_extent(keys: dict[str, Any], name: str) -> None:
    """Raises `UnknownModel` for more than a config holds: transformers copies it many times."""
    level: list[Any] = [keys]
    count = depth = 0
    while level:
        count, depth = count + len(level), depth + 1
        if depth > DEEPEST:
            raise UnknownModel(f"{shorten(name)}: its config is nested too deep")
        if count > MOST_VALUES:
            raise UnknownModel(f"{shorten(name)}: its config holds over {MOST_VALUES:,} values")
        holders = (value for value in level if isinstance(value, (dict, list)))
        level = [
            item
            for holder in holders
            for item in (holder.values() if isinstance(holder, dict) else holder)
        ]


def _from_cache(name: str) -> Path | None:
    hub = importlib.import_module("huggingface_hub")
    try:
        found = hub.try_to_load_from_cache(name, "config.json")
    except ValueError as error:
        raise _unknown(name, "is neither a hub id (owner/name), a folder nor a file") from error
    return Path(found) if isinstance(found, str) else None


def cached_models() -> list[str]:
    """The ids of the models whose config lies in the local HuggingFace cache."""
    constants = importlib.import_module("huggingface_hub.constants")
    folders = sorted(Path(constants.HF_HUB_CACHE).glob("models--*"))
    names = [folder.name.removeprefix("models--").replace("--", "/") for folder in folders]
    return [name for name in names if _from_cache(name) is not None]


def _from_hub(name: str) -> dict[str, Any]:
    """One request for the config, without retries."""
    hub = importlib.import_module("huggingface_hub")
    constants = importlib.import_module("huggingface_hub.constants")
    if constants.HF_HUB_OFFLINE:
        raise _unknown(name, "is not in the catalogue or the local cache, and the hub is off")
    try:
        url = hub.hf_hub_url(name, "config.json")
        answer = _within(
            HUB_LIMIT_S,
            lambda: hub.get_session().get(
                url, headers=_headers(), timeout=HUB_LIMIT_S, follow_redirects=True
            ),
        )
    except ValueError as error:
        raise _unknown(name, "is neither a hub id (owner/name), a folder nor a file") from error
    except Exception as error:
        raise _unknown(
            name,
            "is not in the catalogue or the local cache, and the hub cannot be reached "
            "(a folder with its config.json works too)",
        ) from error
    if answer.status_code == 200:
        return _parse(answer.text, name)
    if answer.headers.get("X-Error-Code") == "GatedRepo":
        raise UnknownModel(f"{name}: its owner wants you to ask for access and to log in")
    if answer.headers.get("X-Error-Code") == "EntryNotFound":
        raise UnknownModel(f"{name}: the hub holds no config.json for it")
    raise _unknown(name, f"is no model that the hub shows you (status {answer.status_code})")


def _headers() -> dict[str, str]:
    """The user's own token, if any; the library's own headers cost a second request."""
    hub = importlib.import_module("huggingface_hub")
    token = None if hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else hub.get_token()
    known = {"authorization": f"Bearer {token}"} if token else {}
    return {"user-agent": "llmsim-magic", **known}


def _within(limit_s: float, call: Callable[[], Any]) -> Any:
    """The call's result, or `TimeoutError` when it takes longer than the limit."""
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append(call())
        except Exception as error:
            outcome.append(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(limit_s)
    if not outcome:
        raise TimeoutError
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def _unknown(name: str, why: str) -> UnknownModel:
    close = models.nearest(name)
    known = ", ".join(close or list(models.entries())[:3])
    return UnknownModel(f"{shorten(name)} {why}; {'nearest' if close else 'such as'}: {known}")
