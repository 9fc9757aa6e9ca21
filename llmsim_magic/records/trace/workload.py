"""A workload: what one forward pass is given."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

from llmsim_magic.records.errors import InvalidValue, is_instance, one_of, safe_str
from llmsim_magic.records.validation import choice

PHASES = ("prefill", "decode")
DTYPES = ("float32", "float16", "bfloat16")
DTYPE_ALIASES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
ATTENTIONS = ("sdpa", "eager")
DEFAULT_CONTEXT = 128
IsCancelled = Callable[[], bool]


def never_cancelled() -> bool:
    """Work that nobody cancels."""
    return False


@dataclass(frozen=True, slots=True)
class Workload:
    """Phase, batch size and context length of one forward pass.

    In `prefill` the model reads `context` tokens at once, its cache empty; in `decode` `context`
    tokens stand in the cache and it reads one more. `forward` is a module given its inputs as
    they are: it has no context.

    Raises `InvalidValue` for a phase that does not exist or a size below 1.
    """

    phase: str = "prefill"
    batch: int = 1
    context: int = DEFAULT_CONTEXT

    def __post_init__(self) -> None:
        if not (is_instance(self.phase, str) and self.phase == "forward"):
            choice("phase", self.phase, PHASES)
        object.__setattr__(self, "batch", whole_number("batch", self.batch))
        if self.phase != "forward":
            object.__setattr__(self, "context", whole_number("context", self.context))

    def __str__(self) -> str:
        if self.phase == "forward":
            return "forward of the given inputs"
        return f"{self.phase}, batch {self.batch} × context {self.context}"


def whole_number(name: str, value: object) -> int:
    """`value` as an int of at least 1 that a tensor's dimension can hold; NumPy's are taken too."""
    try:
        number = 0 if is_instance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except Exception:
        number = 0
    if not 1 <= number < 2**31:
        raise InvalidValue.must_be(name, value, "a whole number from 1 to 2147483647")
    return number


def dtype_name(given: object) -> str:
    """The full name of a dtype: `bf16` is `bfloat16`, and so is `torch.bfloat16`."""
    text = safe_str(given).removeprefix("torch.")
    name = DTYPE_ALIASES.get(text, text)
    if name not in DTYPES:
        raise InvalidValue.must_be("dtype", given, one_of(DTYPES))
    return name


def grid(
    phases: tuple[str, ...], batches: tuple[int, ...], contexts: tuple[int, ...]
) -> tuple[Workload, ...]:
    """Every combination, phases outermost, none twice."""
    return tuple(dict.fromkeys(Workload(p, b, c) for p, b, c in product(phases, batches, contexts)))
