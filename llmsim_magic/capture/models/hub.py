"""Fetch a model's config from the HuggingFace hub or its local cache."""

import importlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmsim_magic.capture.models.config_file import parse_config
from llmsim_magic.capture.models.suggest_model_names import unknown_model
from llmsim_magic.records.errors import UnknownModel

TIMEOUT_S = 5.0
_NOT_AN_ID = "is not a hub id (owner/name), a folder or a file"


def cached_config_file(name: str) -> Path | None:
    """The `config.json` of a hub id in the local HuggingFace cache, or None.

    Raises:
        UnknownModel: If the name is not a valid hub id.
    """
    hub = importlib.import_module("huggingface_hub")
    try:
        file = hub.try_to_load_from_cache(name, "config.json")
    except ValueError as error:
        raise unknown_model(name, _NOT_AN_ID) from error
    return Path(file) if isinstance(file, str) else None


def cached_models() -> list[str]:
    """The hub ids of all models whose config is in the local HuggingFace cache."""
    constants = importlib.import_module("huggingface_hub.constants")
    folders = sorted(Path(constants.HF_HUB_CACHE).glob("models--*"))
    names = [folder.name.removeprefix("models--").replace("--", "/") for folder in folders]
    return [name for name in names if cached_config_file(name) is not None]


def download_config(name: str) -> dict[str, Any]:
    """Download the config of a hub id with a single request, without retries.

    Args:
        name: A hub id, such as `owner/name`.

    Returns:
        The keys of the config.

    Raises:
        UnknownModel: If the hub is offline, takes longer than `TIMEOUT_S` seconds or has no
            such config, or if the config is not valid.
    """
    hub = importlib.import_module("huggingface_hub")
    constants = importlib.import_module("huggingface_hub.constants")
    if constants.HF_HUB_OFFLINE:
        raise unknown_model(
            name, "is not in the catalogue or the local cache, and the hub is off (HF_HUB_OFFLINE)"
        )
    try:
        url = hub.hf_hub_url(name, "config.json")
        response = _call_with_timeout(
            TIMEOUT_S,
            lambda: hub.get_session().get(
                url, headers=_headers(), timeout=TIMEOUT_S, follow_redirects=True
            ),
        )
    except ValueError as error:
        raise unknown_model(name, _NOT_AN_ID) from error
    except Exception as error:
        raise unknown_model(
            name,
            "is not in the catalogue or the local cache, and the hub cannot be reached "
            "(the path of a folder with its config.json works offline)",
        ) from error
    if response.status_code == 200:
        return parse_config(response.text, name)
    if response.headers.get("X-Error-Code") == "GatedRepo":
        raise UnknownModel(
            f"{name} is a gated model: request access on the hub, then run hf auth login"
        )
    if response.headers.get("X-Error-Code") == "EntryNotFound":
        raise UnknownModel(f"{name} has no config.json on the hub")
    raise unknown_model(
        name,
        f"is not a public model of the hub, or not visible to you (HTTP {response.status_code})",
    )


def _headers() -> dict[str, str]:
    """Headers with the user's token, if any; huggingface_hub's own would cost a second request."""
    hub = importlib.import_module("huggingface_hub")
    token = None if hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else hub.get_token()
    authorization = {"authorization": f"Bearer {token}"} if token else {}
    return {"user-agent": "llmsim-magic", **authorization}


def _call_with_timeout(timeout_s: float, call: Callable[[], Any]) -> Any:
    """Return the call's result, or raise `TimeoutError` when it takes longer."""
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append(call())
        except Exception as error:
            outcome.append(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(timeout_s)
    if not outcome:
        raise TimeoutError
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]
