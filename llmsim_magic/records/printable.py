"""Printable text: control and invisible characters are escaped."""

from typing import Any, TypeVar

import msgspec

Record = TypeVar("Record")


def printable(text: str) -> str:
    r"""The text with unprintable characters as Python escapes: `\x1b`, `\n`, `\u202e`."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def printable_record(record: Record) -> Record:
    """The record with every string printable; the same object if all are already."""
    if is_printable(record):
        return record
    return msgspec.convert(_convert(msgspec.to_builtins(record)), type(record))


def is_printable(record: object) -> bool:
    """Whether every string in a record is printable and without backslashes."""
    try:
        encoded = msgspec.json.encode(record).decode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return encoded.isprintable() and "\\" not in encoded  # JSON escapes unprintable characters


def _convert(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, (list, tuple)):
        return [*map(_convert, value)]
    if isinstance(value, dict):
        return {_convert(key): _convert(each) for key, each in value.items()}
    return value
