"""The one family of errors that a user meets: each is a single line that says what to do."""

from collections.abc import Iterable

from llmsim_magic.records.printable import printable

LONGEST = 500  # characters of an error


class LlmsimError(Exception):
    """Something the user can mend; `str(error)` is one line for them, whatever it quotes."""

    def __init__(self, text: str) -> None:
        line = printable(" ".join(text.split()))
        if len(line) > LONGEST:  # what was given stands first, what to do last
            line = f"{line[: LONGEST // 2]}…{line[-LONGEST // 2 + 1 :]}"
        super().__init__(line)


class InvalidValue(LlmsimError):
    """A value that an option does not take, or that does not go with another."""

    @classmethod
    def must_be(cls, name: str, given: object, legal: str) -> "InvalidValue":
        """`batch must be at least 1, not 0`; any other sentence is written out by its caller."""
        return cls(f"{name} must be {legal}, not {shorten(given)}")


class UnknownModel(LlmsimError):
    """No config could be found under the name given."""


class UnknownHardware(LlmsimError):
    """No accelerator is listed under the name given."""

    def __init__(self, name: object, nearest: Iterable[str]) -> None:
        near = ", ".join(nearest)
        meant = f"did you mean {near}?" if near else "the catalogue lists what there is"
        super().__init__(f"hardware: {shorten(name)} is not in the catalogue; {meant}")


class CannotPredict(LlmsimError):
    """A time that nothing known lets us tell."""

    def __init__(self, what: str, device: str, why: str) -> None:
        super().__init__(f"hardware: no {what} on {device} can be told: {why}")


class TooManyWorkloads(LlmsimError):
    """A sweep so large that its user should be sure."""

    def __init__(self, number: int, most: int, seconds: float) -> None:
        hours = seconds / 3600
        long = f"{hours:,.1f} hours" if hours >= 1.5 else f"{hours * 60:.1f} minutes"
        super().__init__(
            f"sweep: {number:,} workloads would take about {long}; ask for at most {most:,}, "
            "or say that you are sure: --sure in the magic, sure=True in Python"
        )


class Cancelled(LlmsimError):
    """Work that was cancelled before it had anything to show."""


class RecursiveTrace(LlmsimError):
    """What was asked for from within the answer to itself."""


class NoDecode(LlmsimError):
    """The model keeps no cache or state, so there is no decode step."""


class CannotTrace(LlmsimError):
    """The model could not be built or run without weights."""


def shorten(given: object, limit: int = 80) -> str:
    """The value as the user would recognise it, never longer than a line can bear."""
    text = " ".join(safe_str(given).split())
    return _cut(repr(text) if is_instance(given, str) else text, limit)


def safe_str(given: object) -> str:
    """`str(given)`, or what it is where that fails: anything may be given."""
    try:
        return str(given)
    except Exception:
        return f"an object of type {type_name(given)}"


def type_name(given: object) -> str:
    """The name that its type has, whatever a metaclass would say."""
    name: str = vars(type)["__name__"].__get__(type(given))
    return name


def is_instance(given: object, kind: type) -> bool:
    """`isinstance` of the type itself: an object's word for its class may be a lie, or raise."""
    return issubclass(type(given), kind)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def one_of(legal: Iterable[str]) -> str:
    return "one of " + ", ".join(legal)


def describe(error: BaseException) -> str:
    """An exception as part of one line."""
    while isinstance(error, ModuleNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # transformers loads lazily, and says only what it wanted to load
    try:
        text = " ".join(str(error).split())
    except Exception:  # of a class of the user's own
        text = ""
    return f"{type_name(error)}: {_cut(text or 'no message', 240)}"
