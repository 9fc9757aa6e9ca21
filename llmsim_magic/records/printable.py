"""Text whose every character can be seen, whoever chose it."""

from typing import Any, TypeVar

import msgspec

Record = TypeVar("Record")


def printable(text: str) -> str:
    r"""The text, what cannot be seen in it as Python would write it: `\x1b`, `\n`, `\u202e`."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _written(each) for each in text)


def _written(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def printable_record(record: Record) -> Record:
    """A record whose every text is legible: mostly the one given."""
    try:
        written = msgspec.json.encode(record).decode()
    except UnicodeEncodeError:  # half of a surrogate pair
        written = ""
    if written and written.isprintable() and "\\" not in written:  # JSON escapes what is not
        return record
    return msgspec.convert(_throughout(msgspec.to_builtins(record)), type(record))


def _throughout(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, (list, tuple)):
        return [*map(_throughout, value)]
    if isinstance(value, dict):
        return {_throughout(key): _throughout(each) for key, each in value.items()}
    return value
