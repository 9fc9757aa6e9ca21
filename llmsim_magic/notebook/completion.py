"""Tab completion of `%llmsim`: options, their values, known models, variables."""

from IPython.core.completer import (
    CompletionContext,
    SimpleCompletion,
    SimpleMatcherResult,
    context_matcher,
)

from llmsim_magic.catalog import models
from llmsim_magic.notebook.arguments import VALUES, parser


@context_matcher()
def complete(context: CompletionContext) -> SimpleMatcherResult:
    """What may follow in a line that calls the magic."""
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
    if previous in VALUES:
        return [value for value in VALUES[previous] if value.startswith(token)]
    if token.startswith("-"):
        options = (option for action in parser()._actions for option in action.option_strings)
        return sorted(option for option in options if option.startswith(token))
    lowered = token.lower()
    return [name for name in models.entries() if lowered in name.lower()]
