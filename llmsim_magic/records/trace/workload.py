"""A workload: phase, batch size and context length of one forward pass."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

from llmsim_magic.records.errors import InvalidValue, is_instance
from llmsim_magic.records.validation import choice

PHASES = ("prefill", "decode")  # of inference
TRAIN = "train"
ATTENTIONS = ("sdpa", "eager")
DEFAULT_CONTEXT = 128
IsCancelled = Callable[[], bool]


def never_cancelled() -> bool:
    """The default of `is_cancelled`: never."""
    return False


@dataclass(frozen=True, slots=True)
class Workload:
    """Phase, batch size and context length of one forward pass.

    `prefill` reads `context` tokens at once with an empty cache. `decode` reads one token with
    `context` tokens in the cache. `train` is one step on `batch` sequences of `context` tokens:
    forward, backward and optimizer. `forward` calls a module with given inputs and has no context;
    neither has a `train` step on given inputs, whose context is 0.

    Raises:
        InvalidValue: If the phase does not exist or a size is below 1.
    """

    phase: str = "prefill"
    batch: int = 1
    context: int = DEFAULT_CONTEXT

    def __post_init__(self) -> None:
        if not (is_instance(self.phase, str) and self.phase == "forward"):
            choice("phase", self.phase, (*PHASES, TRAIN))
        object.__setattr__(self, "batch", whole_number("batch", self.batch))
        if self.phase != "forward" and not (self.phase == TRAIN and self.context == 0):
            object.__setattr__(self, "context", whole_number("context", self.context))

    def __str__(self) -> str:
        if self.phase == "forward":
            return "forward of the given inputs"
        if not self.context:
            return f"{self.phase} on the given inputs"
        return f"{self.phase}, batch {self.batch} × context {self.context}"


def whole_number(name: str, value: object) -> int:
    """The value as an int from 1 to 2³¹ − 1; NumPy integers are accepted."""
    try:
        number = 0 if is_instance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except Exception:
        number = 0
    if not 1 <= number < 2**31:
        raise InvalidValue.must_be(name, value, "a whole number from 1 to 2147483647")
    return number


def grid(
    phases: tuple[str, ...], batches: tuple[int, ...], contexts: tuple[int, ...]
) -> tuple[Workload, ...]:
    """Every distinct combination, with phases as the outermost loop."""
    return tuple(dict.fromkeys(Workload(p, b, c) for p, b, c in product(phases, batches, contexts)))
