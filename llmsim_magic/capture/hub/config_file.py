"""Read a `config.json` and check that it is a JSON object of a reasonable size."""

import json
from pathlib import Path
from typing import Any

from llmsim_magic.records.errors import UnknownModel, shorten

MAX_FILE_BYTES = 4 << 20  # a config with 20,000 labels has 2 MiB
MAX_VALUES, MAX_DEPTH = 200_000, 50


def read_content(file: Path, name: str) -> bytes:
    """The content of a small file; `name` is the model's name, for error messages.

    Raises:
        UnknownModel: If the file cannot be read, or is over 4 MiB.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UnknownModel(f"{shorten(name)}: {file.name} cannot be read: {error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise UnknownModel(f"{shorten(name)}: {file.name} is over 4 MiB, too large for a config")
    return content


def decode_config(content: bytes, file: str, name: str) -> str:
    """The text of a config file, which may start with a byte order mark.

    Raises:
        UnknownModel: If it is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnknownModel(f"{shorten(name)}: {file} cannot be read: {error}") from error


def parse_config(text: str, name: str, file: str = "config.json") -> dict[str, Any]:
    """Parse the text of a config; `name` is the model's name, for error messages.

    Raises:
        UnknownModel: If the text is not a JSON object, is nested too deep or holds too much.
    """
    keys = parse_json(text, name, file)
    if not isinstance(keys, dict):
        raise UnknownModel(f"{shorten(name)}: its {_what(file)} must be a JSON object")
    return keys


def parse_json(text: str, name: str, file: str) -> Any:
    """Parse the text of a JSON file of a model; the names are for error messages.

    Raises:
        UnknownModel: If the text is not JSON, is nested too deep or holds too much.
    """
    what = _what(file)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        position = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise UnknownModel(f"{shorten(name)}: its {what} is not valid JSON ({position})") from error
    except RecursionError as error:
        raise UnknownModel(f"{shorten(name)}: its {what} is nested too deep") from error
    except ValueError as error:
        raise UnknownModel(
            f"{shorten(name)}: a number in its {what} has too many digits"
        ) from error
    _check_extent(value, f"{shorten(name)}: its {what}")
    return value


def _what(file: str) -> str:
    return "config" if file == "config.json" else file


def _check_extent(value: Any, what: str) -> None:
    """Reject a config with too many values or levels: transformers copies it many times."""
    level: list[Any] = [value]
    count = depth = 0
    while level:
        count, depth = count + len(level), depth + 1
        if depth > MAX_DEPTH:
            raise UnknownModel(f"{what} is nested too deep")
        if count > MAX_VALUES:
            raise UnknownModel(f"{what} holds over {MAX_VALUES:,} values")
        collections = (value for value in level if isinstance(value, (dict, list)))
        level = [
            item
            for collection in collections
            for item in (collection.values() if isinstance(collection, dict) else collection)
        ]
