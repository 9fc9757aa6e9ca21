"""The raw keys of a model's config, and where they were found."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LOCAL_FILE = "local file"


@dataclass(frozen=True, slots=True)
class FoundConfig:
    """The raw keys of a `config.json`, before transformers interprets them.

    Attributes:
        name: the name shown to the user.
        keys: the keys of the config.
        origin: where they come from, for the report.
        location: the folder or the hub id that they came from.
        notes: what the report says about how they were found.
        adapter: the keys of the `adapter_config.json` of an adapter, whose base model they are.
    """

    name: str
    keys: dict[str, Any]
    origin: str
    location: str
    notes: tuple[str, ...] = ()
    adapter: Mapping[str, Any] | None = None
