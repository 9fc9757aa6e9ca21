"""Read a `config.json` and check that it is a JSON object of a reasonable size."""

import json
from pathlib import Path
from typing import Any

from llmsim_magic.records.errors import UnknownModel, shorten

MAX_FILE_BYTES = 4 << 20  # a config with 20,000 labels has 2 MiB
MAX_VALUES, MAX_DEPTH = 200_000, 50


def read_config(file: Path, name: str) -> dict[str, Any]:
    """Read and parse a config file.

    Args:
        file: The path of the `config.json`.
        name: The model's name, for error messages.

    Returns:
        The keys of the config.

    Raises:
        UnknownModel: If the file cannot be read or is not a config; the message says why.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise UnknownModel(
                f"{shorten(name)}: {file.name} is over 4 MiB, too large for a config"
            )
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UnknownModel(f"{shorten(name)}: {file.name} cannot be read: {error}") from error
    return parse_config(text, name)


def parse_config(text: str, name: str) -> dict[str, Any]:
    """Parse the text of a config; `name` is the model's name, for error messages.

    Raises:
        UnknownModel: If the text is not a JSON object, is nested too deep or holds too much.
    """
    try:
        keys = json.loads(text)
    except json.JSONDecodeError as error:
        position = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise UnknownModel(f"{shorten(name)}: its config is not valid JSON ({position})") from error
    except RecursionError as error:
        raise UnknownModel(f"{shorten(name)}: its config is nested too deep") from error
    except ValueError as error:
        raise UnknownModel(
            f"{shorten(name)}: a number in its config has too many digits"
        ) from error
    if not isinstance(keys, dict):
        raise UnknownModel(f"{shorten(name)}: its config must be a JSON object")
    _check_extent(keys, name)
    return keys


def _check_extent(keys: dict[str, Any], name: str) -> None:
    """Reject a config with too many values or levels: transformers copies it many times."""
    level: list[Any] = [keys]
    count = depth = 0
    while level:
        count, depth = count + len(level), depth + 1
        if depth > MAX_DEPTH:
            raise UnknownModel(f"{shorten(name)}: its config is nested too deep")
        if count > MAX_VALUES:
            raise UnknownModel(f"{shorten(name)}: its config holds over {MAX_VALUES:,} values")
        collections = (value for value in level if isinstance(value, (dict, list)))
        level = [
            item
            for collection in collections
            for item in (collection.values() if isinstance(collection, dict) else collection)
        ]
