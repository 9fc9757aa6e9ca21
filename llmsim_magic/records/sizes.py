"""Parses sizes that people write: 24GB, 24GiB, 8B parameters, 500M, 10ms."""

import re

from llmsim_magic.records.errors import InvalidValue

_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE]([+-]?[0-9]+))?\s*([A-Za-zµμ]*)")
_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
_BYTES = {
    **_DECIMAL,
    **{f"{prefix}b": factor for prefix, factor in _DECIMAL.items()},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgtp", 1)},
}
_PARAMETERS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9,
            "min": 60.0, "h": 3600.0}  # fmt: skip
_MOST_DIGITS = 40
# Numbers without a unit below these lack it: no model has as few bytes or parameters.
_FEWEST_BYTES = 10**6
_MOST_GIGABYTES = 10**4  # of a device; a larger number is one of megabytes
_FEWEST_PARAMETERS = 10**3


def parse_bytes(name: str, text: str) -> int:
    """Bytes: 24GB is 24·10⁹, 24GiB is 24·2³⁰; a number without a unit is bytes.

    Raises:
        InvalidValue: not a size above 0, or so few bytes that the unit was forgotten; `name` is
            the option in the message.
    """
    number = _parse(text, _BYTES)
    if number is None:
        raise InvalidValue.must_be(name, text, "a size such as 24GB or 24GiB")
    if _has_no_unit(text) and number < _FEWEST_BYTES:
        prefix = "G" if number <= _MOST_GIGABYTES else "M"
        raise InvalidValue(_without_unit(name, text, "bytes", (f"{prefix}B", f"{prefix}iB")))
    return round(number)


def parse_parameters(name: str, text: str) -> int:
    """A number of parameters: 8B is 8·10⁹, 500M is 500·10⁶.

    Raises:
        InvalidValue: not a number above 0, or so few parameters that the unit was forgotten;
            `name` is the option in the message.
    """
    number = _parse(text, _PARAMETERS)
    if number is None:
        raise InvalidValue.must_be(name, text, "a number of parameters such as 8B or 500M")
    if _has_no_unit(text) and number < _FEWEST_PARAMETERS:
        raise InvalidValue(_without_unit(name, text, "parameters", ("B", "M")))
    return round(number)


def parse_seconds(name: str, text: str) -> float:
    """Seconds: 10ms, 1.5s, 2min; without a unit, seconds.

    Raises:
        InvalidValue: not a time above 0; `name` is the option in the message.
    """
    number = _parse(text, _SECONDS)
    if number is None:
        raise InvalidValue.must_be(name, text, "a time such as 10ms or 1.5s")
    return float(number)


def _has_no_unit(text: str) -> bool:
    found = _NUMBER.fullmatch(text.strip())
    return found is not None and not found[3]


def _without_unit(name: str, text: str, what: str, units: tuple[str, str]) -> str:
    """The error for a number so small that its unit was forgotten."""
    number = text.strip()
    choices = " or ".join(f"{number}{unit}" for unit in units)
    return f"{name} {number} is {number} {what}: give the unit, such as {choices}"


def _parse(text: str, units: "dict[str, int] | dict[str, float]") -> float | None:
    """A number with a unit; None for text that is neither, or not above 0."""
    found = _NUMBER.fullmatch(text.strip())
    if found is None or len(text) > _MOST_DIGITS or abs(int(found[2] or 0)) > _MOST_DIGITS:
        return None
    factor = units.get(found[3].lower())
    if factor is None:
        return None
    digits, exponent = found[1], 10 ** int(found[2] or 0)
    number = int(digits) * exponent if digits.isdecimal() else float(digits) * exponent
    return number * factor if number > 0 else None
