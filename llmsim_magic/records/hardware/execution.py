"""What executes a pass: a runtime, and how it launches kernels."""

from collections.abc import Iterable
from dataclasses import dataclass

from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.validation import choice

RUNTIMES = {"transformers": "transformers", "vllm": "vLLM"}  # as typed, and as written in a title
LAUNCHES = ("eager", "graph")
ALL_RUNTIMES = "all"
_NAMES = {
    ("transformers", "eager"): "transformers, eager",
    ("transformers", "graph"): "transformers, CUDA graph",
    ("vllm", "graph"): "vLLM",
}


@dataclass(frozen=True, slots=True)
class Execution:
    """A runtime and its launch.

    Attributes:
        runtime: `transformers` (a plain call of the model) or `vllm` (an engine's kernels).
        launch: `eager` (kernels started one by one from Python) or `graph` (captured once as a
            CUDA graph).
    """

    runtime: str
    launch: str

    def __str__(self) -> str:
        return _NAMES[self.runtime, self.launch]


EXECUTIONS = tuple(Execution(*each) for each in _NAMES)


def executions(runtime: str | None = None, launch: str | None = None) -> tuple[Execution, ...]:
    """The executions of a runtime and a launch, in the order of `EXECUTIONS`.

    Args:
        runtime: `transformers`, `vllm`, or `all` or None for both.
        launch: `eager` or `graph`; None for each launch that a runtime has.

    Raises:
        InvalidValue: An unknown runtime or launch, or a launch that the runtime does not have.
    """
    if runtime is not None:
        choice("runtime", runtime, (*RUNTIMES, ALL_RUNTIMES))
    if launch is not None:
        choice("launch", launch, LAUNCHES)
    of_runtime = [each for each in EXECUTIONS if runtime in (each.runtime, ALL_RUNTIMES, None)]
    found = tuple(each for each in of_runtime if launch in (each.launch, None))
    if not found:
        legal = " or ".join(each.launch for each in of_runtime)
        raise InvalidValue.must_be("launch", launch, f"{legal} under runtime {runtime}")
    return found


def runtimes_of(found: Iterable[Execution]) -> tuple[str, ...]:
    """Each runtime of several executions once, in their order."""
    return tuple(dict.fromkeys(each.runtime for each in found))


def under(runtimes: Iterable[str]) -> str:
    """Runtimes as a title names them: `under transformers and vLLM`."""
    return "under " + " and ".join(RUNTIMES[name] for name in runtimes)
