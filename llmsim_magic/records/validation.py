"""Validation of option values; an illegal value raises `InvalidValue`.

A value may be any object, so only its type is inspected before it is known to be safe.
"""

from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any

from llmsim_magic.records.errors import InvalidValue, is_instance, one_of, type_name
from llmsim_magic.records.spelling import nearest

MAX_VALUES = 100_000  # of one option
_NO_NAMES: Mapping[str, str] = MappingProxyType({})


def choice(
    name: str, value: Any, legal: Collection[str], names: Mapping[str, str] = _NO_NAMES
) -> str:
    """The value if it is one of the legal strings.

    Args:
        name: the option.
        value: its value.
        legal: the legal strings.
        names: other names of legal strings, by which an error suggests them.

    Raises:
        InvalidValue: it is none of them; the message has the nearest.
    """
    if not is_instance(value, str):
        raise InvalidValue.must_be(name, value, one_of(legal))
    if value not in legal:
        raise InvalidValue.must_be(name, value, one_of(legal), nearest(str(value), legal, names))
    return str(value)


def flag(name: str, value: Any) -> bool:
    """The value as a bool; NumPy bools are accepted."""
    if not is_instance(value, bool) and type_name(value) not in ("bool", "bool_"):
        raise InvalidValue.must_be(name, value, "True or False")
    return bool(value)


def require_callable(name: str, value: Any, what: str) -> None:
    """Raise `InvalidValue` if the value is not callable; `what` says what it is called with."""
    if not callable(value):
        raise InvalidValue.must_be(name, value, f"a function {what}")


def as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    """One value or an iterable of values, as a tuple."""
    if is_instance(value, str) or not hasattr(type(value), "__iter__"):
        return (value,)
    values: Iterable[Any] = value
    try:
        many = tuple(islice(values, MAX_VALUES + 1))
    except Exception as error:
        raise InvalidValue.must_be(name, value, "one value or several") from error
    if len(many) > MAX_VALUES:
        raise InvalidValue.must_be(name, value, f"at most {MAX_VALUES:,} values")
    return many


def as_nonempty_tuple(name: str, value: Any) -> tuple[Any, ...]:
    """One value or a non-empty iterable of values, as a tuple."""
    many = as_tuple(name, value)
    if not many:
        raise InvalidValue.must_be(name, value, "one value or several")
    return many
