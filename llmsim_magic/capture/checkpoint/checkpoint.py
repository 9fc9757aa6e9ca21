"""Facts about a checkpoint: the raw keys of its config, and the names of its tensors."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmsim_magic.capture.checkpoint.found_config import FoundConfig
from llmsim_magic.capture.hub.local_cache import cached_content
from llmsim_magic.capture.hub.repository_name import parse_name

_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_FILE = "model.safetensors"
_MAX_BYTES = 64 << 20  # an index of 100,000 tensors has 10 MB


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Facts about a checkpoint that its config object does not have.

    Attributes:
        keys: The raw keys of its config.
        tensors: The names of its tensors; None if its files are not on this machine.
        is_checked: Whether the keys are known to give the published number of parameters.
    """

    keys: Mapping[str, Any]
    tensors: frozenset[str] | None
    is_checked: bool


def checkpoint_of(found: FoundConfig) -> Checkpoint:
    """Facts about the checkpoint of a config, without a request to the hub."""
    return Checkpoint(found.keys, _stored_tensors(found), found.origin == "catalogue")


def _stored_tensors(found: FoundConfig) -> frozenset[str] | None:
    """The names of a checkpoint's tensors; None unless a folder or the local cache has them."""
    locate = _in_folder(found) if os.path.isdir(found.location) else _in_cache(found)
    if locate is None:
        return None
    for file in _INDICES:
        if (path := locate(file)) is not None:
            index = _read(path, 0, path.stat().st_size)
            weights = index.get("weight_map") if isinstance(index, Mapping) else None
            if isinstance(weights, Mapping):
                return frozenset(weights)
    path = locate(_FILE)
    return None if path is None else _header(path)


def _in_folder(found: FoundConfig) -> Callable[[str], Path | None]:
    folder = Path(found.location)

    def locate(file: str) -> Path | None:
        return folder / file if os.path.isfile(folder / file) else None

    return locate


def _in_cache(found: FoundConfig) -> Callable[[str], Path | None] | None:
    if found.origin not in ("hub", "local cache"):
        return None
    name = parse_name(found.location)

    def locate(file: str) -> Path | None:
        content = cached_content(name, file)
        return content if isinstance(content, Path) else None

    return locate


def _header(path: Path) -> frozenset[str] | None:
    """The names in a safetensors header: 8 bytes with its length, then JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    header = _read(path, 8, length)
    names = frozenset(header) - {"__metadata__"} if isinstance(header, Mapping) else frozenset()
    return names or None


def _read(path: Path, start: int, length: int) -> Any:
    """The JSON value in a part of a file; None if it is too large or no JSON."""
    if length > _MAX_BYTES:
        return None
    with path.open("rb") as file:
        file.seek(start)
        content = file.read(length)
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
