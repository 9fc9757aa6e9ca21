"""The errors a user sees: each is one line that says what is wrong and what to do."""

import re
from collections.abc import Iterable
from typing import Self

from llmsim_magic.records.printable import printable

# `repr` of a module has the path of its file.
_MODULE = re.compile(r"<module '(?P<name>[\w.]+)'( from '[^']*')?>")

MAX_LENGTH = 500  # characters of an error


class LlmsimError(Exception):
    """An error the user can fix; `str(error)` is one printable line."""

    def __init__(self, text: str) -> None:
        line = printable(" ".join(text.split()))
        if len(line) > MAX_LENGTH:  # keeps the value at the start and the advice at the end
            line = f"{line[: MAX_LENGTH // 2]}…{line[-MAX_LENGTH // 2 + 1 :]}"
        super().__init__(line)


class InvalidValue(LlmsimError):
    """A value that an option does not accept, or that conflicts with another option."""

    @classmethod
    def must_be(cls, name: str, given: object, legal: str, meant: str | None = None) -> Self:
        """The error `NAME must be LEGAL, not GIVEN`, such as `batch must be at least 1, not 0`.

        Args:
            name: the option.
            given: its illegal value.
            legal: what is legal, in words.
            meant: the legal value that the given one probably means.
        """
        question = f"; did you mean {meant}?" if meant else ""
        return cls(f"{name} must be {legal}, not {shorten(given)}{question}")


class RefusedDtype(InvalidValue):
    """A device that does not compute in the dtype of a workload."""


class UnknownModel(LlmsimError):
    """No config was found for the model name."""


class UnknownHardware(LlmsimError):
    """No accelerator of the catalogue has the name."""

    def __init__(self, name: object, nearest: Iterable[str]) -> None:
        near = ", ".join(nearest)
        meant = (
            f"did you mean {near}?"
            if near
            else "--hardware all, or hardware='all', predicts for every device of the catalogue"
        )
        super().__init__(f"hardware: {shorten(name)} is not in the catalogue; {meant}")


class CannotPredict(LlmsimError):
    """A time that cannot be predicted from the catalogue and the calibration."""

    def __init__(self, what: str, device: str, why: str) -> None:
        super().__init__(f"hardware: the {what} on {device} cannot be predicted: {why}")


class CannotMeasure(LlmsimError):
    """A device of this machine whose kernels cannot be timed."""

    def __init__(self, device: str, why: str) -> None:
        super().__init__(
            f"hardware: {device} cannot be measured: {why}; local-cpu measures the CPU instead"
        )


class TooManyWorkloads(LlmsimError):
    """A sweep so large that the user has to confirm it."""

    def __init__(self, number: int, most: int, seconds: float) -> None:
        hours = seconds / 3600
        long = f"{hours:,.1f} hours" if hours >= 1.5 else f"{hours * 60:.1f} minutes"
        super().__init__(
            f"sweep: {number:,} workloads would take about {long}; ask for at most {most:,}, "
            "or confirm with --sure or --yes (in Python, sure=True)"
        )


class Cancelled(LlmsimError):
    """Work that was cancelled before it had a result."""


class RecursiveTrace(LlmsimError):
    """A trace that was requested while the same thread is tracing."""


class NoDecode(LlmsimError):
    """The model keeps no cache or state, so there is no decode step."""


class CannotTrace(LlmsimError):
    """The model could not be built or run without weights."""


def shorten(given: object, limit: int = 80) -> str:
    """The value as one line of at most `limit` characters; a string is quoted."""
    text = " ".join(safe_str(given).split())
    return _cut(repr(text) if is_instance(given, str) else text, limit)


def safe_str(given: object) -> str:
    """`str(given)`, or its type if that raises."""
    try:
        return str(given)
    except Exception:
        return f"an object of type {type_name(given)}"


def type_name(given: object) -> str:
    """The name of a value's type, without calling its metaclass."""
    name: str = vars(type)["__name__"].__get__(type(given))
    return name


def is_instance(given: object, kind: type) -> bool:
    """`isinstance` by `type()`, because a hostile `__class__` may lie or raise."""
    return issubclass(type(given), kind)


def clip(text: str, limit: int = 80) -> str:
    """A text as one line of at most `limit` characters, without quotes."""
    return _cut(" ".join(text.split()), limit)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def one_of(legal: Iterable[str]) -> str:
    """The legal values as `one of a, b, c`."""
    return "one of " + ", ".join(legal)


def is_own(error: BaseException) -> bool:
    """Whether a class of this package was raised, whose message says everything."""
    module = vars(type)["__module__"].__get__(type(error))
    return is_instance(module, str) and module.partition(".")[0] == __name__.partition(".")[0]


def describe(error: BaseException) -> str:
    """An exception as `Type: message` in one line; one of this package as its message alone."""
    while isinstance(error, ModuleNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # transformers' lazy import hides the real cause
    try:
        text = _MODULE.sub(r"module \g<name>", " ".join(str(error).split()))
    except Exception:  # __str__ of a user's class may raise
        text = ""
    if text and is_own(error):
        return _cut(text, 240)
    return f"{type_name(error)}: {_cut(text or 'no message', 240)}"
