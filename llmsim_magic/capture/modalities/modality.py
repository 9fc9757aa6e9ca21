"""The interface of the input modalities, and one layout of an image or audio input."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from llmsim_magic.capture.modalities.signature import InputSpec, Keywords


@dataclass(frozen=True, slots=True)
class Layout:
    """Keywords that pass one image, video or audio per sample, and the note of the report."""

    keywords: Keywords
    note: str


class Modality(Protocol):
    """What the modules `images` and `audio` implement."""

    def keyword(self, spec: InputSpec, /) -> str | None:
        """The forward's keyword for this modality; None for a model without it."""

    def layouts(self, spec: InputSpec, /) -> Iterator[Layout]:
        """Yield the layouts that models use, the most likely first; each has to be tried."""
