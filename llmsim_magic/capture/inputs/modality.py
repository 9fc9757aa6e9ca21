"""What a model sees or hears with, and the ways to hand that over."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from llmsim_magic.capture.inputs.signature import InputSpec, Keywords


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to hand over an image or a sound of each sample, and what the report says of it."""

    keywords: Keywords
    said: str


class Modality(Protocol):
    """A module of this package: `pictures` or `sound`."""

    def keyword(self, ask: InputSpec, /) -> str | None:
        """The forward's keyword for it, or None for a model without this sense."""

    def layouts(self, ask: InputSpec, /) -> Iterator[Layout]:
        """Ways to hand it over, the likeliest first. Which one a model reads only its code says."""
