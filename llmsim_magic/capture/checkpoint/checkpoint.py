"""Facts about a checkpoint: the raw keys of its config, and its tensors."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmsim_magic.capture.checkpoint.found_config import FoundConfig
from llmsim_magic.capture.checkpoint.stored_tensors import (
    Locate,
    StoredTensors,
    files_of_weights,
    stored_tensors,
)
from llmsim_magic.capture.hub.local_cache import cached_content
from llmsim_magic.capture.hub.repository_name import parse_name


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Facts about a checkpoint that its config object does not have.

    Attributes:
        keys: The raw keys of its config.
        tensors: Its tensors; None if their names are not on this machine.
        is_checked: Whether the keys are known to give the published number of parameters.
    """

    keys: Mapping[str, Any]
    tensors: StoredTensors | None
    is_checked: bool


def checkpoint_of(found: FoundConfig) -> Checkpoint:
    """Facts about the checkpoint of a config, without a request to the hub."""
    return Checkpoint(found.keys, _stored_tensors(found), found.origin == "catalogue")


def checkpoint_version(found: FoundConfig) -> tuple[tuple[str, int, int], ...]:
    """The path, size and time of the files that say what a checkpoint stores.

    Equal versions of one config give equal models.
    """
    locate = _locator(found)
    files = files_of_weights(locate) if locate is not None else []
    return tuple((str(path), of.st_size, of.st_mtime_ns) for path in files if (of := path.stat()))


def _stored_tensors(found: FoundConfig) -> StoredTensors | None:
    """The tensors of a checkpoint; None if it is not at hand, or its files cannot be read."""
    locate = _locator(found)
    return None if locate is None else stored_tensors(locate)


def _locator(found: FoundConfig) -> Locate | None:
    """Finds files in a local folder or the local cache; nothing is asked of the hub."""
    return _in_folder(found) if os.path.isdir(found.location) else _in_cache(found)


def _in_folder(found: FoundConfig) -> Locate:
    folder = Path(found.location)

    def locate(file: str) -> Path | None:
        return folder / file if os.path.isfile(folder / file) else None

    return locate


def _in_cache(found: FoundConfig) -> Locate | None:
    if found.origin not in ("hub", "local cache"):
        return None
    name = parse_name(found.location)

    def locate(file: str) -> Path | None:
        content = cached_content(name, file)
        return content if isinstance(content, Path) else None

    return locate
