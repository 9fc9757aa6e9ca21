"""The one family of errors that a user meets: each is a single line that says what to do."""

from collections.abc import Iterable


class LlmsimError(Exception):
    """Something the user can mend; `str(error)` is one line for them."""


class InvalidValue(LlmsimError):
    """A value outside what is legal."""

    def __init__(self, name: str, given: object, legal: str) -> None:
        super().__init__(f"{name}: {clip(given)} is not {legal}")


class UnknownModel(LlmsimError):
    """No config could be found under the name given."""


class UnknownHardware(LlmsimError):
    """No accelerator is listed under the name given."""

    def __init__(self, name: object, nearest: Iterable[str]) -> None:
        near = ", ".join(nearest)
        meant = f"did you mean {near}?" if near else "the catalogue lists what there is"
        super().__init__(f"hardware: {clip(name)} is not in the catalogue; {meant}")


class CannotPredict(LlmsimError):
    """A time that nothing known lets us tell."""

    def __init__(self, what: str, device: str, why: str) -> None:
        super().__init__(f"hardware: no {what} on {device} can be told: {why}")


class TooMany(LlmsimError):
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


class NoDecode(LlmsimError):
    """The model keeps no cache or state, so there is no decode step."""


class CannotTrace(LlmsimError):
    """The model could not be built or run without weights."""


def clip(given: object, limit: int = 80) -> str:
    """The value as the user would recognise it, never longer than a line can bear."""
    text = " ".join(str(given).split())
    if isinstance(given, str):
        text = repr(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def in_line(text: object, limit: int = 80) -> str:
    """A text as part of a line: its marks that cannot be seen are written out, its end is left."""
    shown = repr(" ".join(str(text).split()))[1:-1]
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def one_of(legal: Iterable[str]) -> str:
    return "one of " + ", ".join(legal)
