"""Suggest known model names when a name is unknown."""

from llmsim_magic.catalog import models
from llmsim_magic.records.errors import UnknownModel, shorten


def unknown_model(name: str, problem: str, *, with_examples: bool = True) -> UnknownModel:
    """An error that ends with the catalogue's closest names.

    Args:
        name: What the user typed.
        problem: A predicate that completes the sentence, such as "is not in the catalogue".
        with_examples: Name some models of the catalogue if none is close.

    Returns:
        The exception, for the caller to raise.
    """
    ending = did_you_mean(name)
    if not ending and with_examples:
        ending = f"; known names are for example {', '.join(list(models.entries())[:3])}"
    return UnknownModel(f"{shorten(name)} {problem}{ending}")


def did_you_mean(name: str) -> str:
    """A question that names the catalogue's closest names, to end a sentence; "" without any."""
    close = models.nearest(name)
    return f"; did you mean {' or '.join(close)}?" if close else ""
