"""What a model sees or hears with, and the ways to hand that over."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from llmsim_magic.capture.inputs.signature import Ask, Keywords


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to hand over an image or a sound of each sample, and what the report says of it."""

    keywords: Keywords
    said: str


class Sense(Protocol):
    """A module of this package: `pictures` or `sound`."""

    def keyword(self, ask: Ask, /) -> str | None:
        """The forward's keyword for it, or None for a model without this sense."""

    def layouts(self, ask: Ask, /) -> Iterator[Layout]:
        """Ways to hand it over, the likeliest first. Which one a model reads only its code says."""
