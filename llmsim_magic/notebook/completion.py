"""Tab completion of `%llmsim`: options, values, models and variables."""

from collections.abc import Iterable

from IPython.core.completer import (
    CompletionContext,
    SimpleCompletion,
    SimpleMatcherResult,
    context_matcher,
)
from IPython.core.getipython import get_ipython

from llmsim_magic.catalog import models
from llmsim_magic.notebook.arguments import parser
from llmsim_magic.notebook.variables import model_variables
from llmsim_magic.simulate.options import OPTIONS

_VALUES = {option.flag: option.choices for option in OPTIONS if option.choices}
_LISTS = {option.flag for option in OPTIONS if option.is_list}


@context_matcher()
def complete(context: CompletionContext) -> SimpleMatcherResult:
    """The completions at the cursor of a line that calls the magic."""
    line = context.line_with_cursor[: context.cursor_position]
    words = line.split("%llmsim", 1)
    if len(words) < 2 or (words[0].strip() and not words[0].rstrip().endswith("=")):
        return {"completions": []}
    given = words[1]
    token = "" if given.endswith(" ") else given.split(" ")[-1]
    before = given[: len(given) - len(token)].split()
    candidates = _candidates(token, before[-1] if before else "")
    found = [SimpleCompletion(text=text, type="llmsim") for text in candidates]
    return {
        "completions": found,
        "matched_fragment": token,
        "suppress": bool(found),
        "ordered": True,
    }


def _candidates(token: str, previous: str) -> list[str]:
    option, equals, value = token.partition("=")
    if equals:
        return [f"{option}={known}" for known in _values(option, value)]
    if _takes_value(previous) and not _is_model(previous):
        return _values(previous, token)
    if token.startswith("-"):
        return sorted(name for name in _options() if name.startswith(token))
    lowered = token.lower()
    known = [name for name in models.entries() if lowered in name.lower()]
    return [name for name in _variables() if name.startswith(token)] + known


def _values(option: str, typed: str) -> list[str]:
    """The values of an option that continue what is typed; of a list, its last item."""
    if option == "--explain":
        return _matching(last_paths(), typed)
    if option not in _VALUES:
        return []
    before, comma, last = typed.rpartition(",") if option in _LISTS else ("", "", typed)
    chosen = {name.strip().lower() for name in before.split(",")}
    free = [value for value in _VALUES[option] if value.lower() not in chosen]
    return [f"{before}{comma}{value}" for value in free if value.lower().startswith(last.lower())]


def _matching(paths: Iterable[str], typed: str) -> list[str]:
    """The paths that begin with the text, then those with a part that does."""
    every = list(paths)
    first = [path for path in every if path.startswith(typed)]
    return first + [path for path in every if f".{typed}" in path and path not in set(first)]


def last_paths() -> tuple[str, ...]:
    """The paths of the modules of the model that the magic showed last, in this session."""
    shell = get_ipython()
    magics = None if shell is None else shell.magics_manager.registry.get("LLMSim")
    found: tuple[str, ...] = getattr(magics, "last_paths", ())
    return found


def _takes_value(option: str) -> bool:
    return _options().get(option, False)


def _is_model(option: str) -> bool:
    return option in ("--model", "--compare")


def _options() -> dict[str, bool]:
    """Every option, and whether it takes a value."""
    return {
        name: action.nargs != 0 for action in parser()._actions for name in action.option_strings
    }


def _variables() -> list[str]:
    shell = get_ipython()
    return [] if shell is None else model_variables(shell.user_ns)
