"""Tab completion of `%llmsim`: options, values, models and variables."""

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
        return [f"{option}={known}" for known in _VALUES.get(option, ()) if known.startswith(value)]
    if previous in _VALUES:
        return [value for value in _VALUES[previous] if value.startswith(token)]
    if token.startswith("-"):
        return sorted(name for name in _options() if name.startswith(token))
    if _options().get(previous, False):
        return []
    lowered = token.lower()
    known = [name for name in models.entries() if lowered in name.lower()]
    return [name for name in _variables() if name.startswith(token)] + known


def _options() -> dict[str, bool]:
    """Every option, and whether it takes a value."""
    return {
        name: action.nargs != 0 and name != "--model"
        for action in parser()._actions
        for name in action.option_strings
    }


def _variables() -> list[str]:
    shell = get_ipython()
    return [] if shell is None else model_variables(shell.user_ns)
