"""Suggest known model names when a name is unknown."""

from llmsim_magic.catalog import models
from llmsim_magic.records.errors import UnknownModel, shorten


def unknown_model(name: str, problem: str) -> UnknownModel:
    """An error that ends with the catalogue's closest names.

    Args:
        name: What the user typed.
        problem: A predicate that completes the sentence, such as "is not in the catalogue".

    Returns:
        The exception, for the caller to raise.
    """
    if close := models.nearest(name):
        return UnknownModel(f"{shorten(name)} {problem}; did you mean {' or '.join(close)}?")
    examples = ", ".join(list(models.entries())[:3])
    return UnknownModel(f"{shorten(name)} {problem}; known names are for example {examples}")
