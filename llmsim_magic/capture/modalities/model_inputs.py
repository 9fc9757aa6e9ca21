"""The keywords of one forward pass, with notes for the report."""

from dataclasses import dataclass, field

from llmsim_magic.capture.modalities.signature import Keywords


@dataclass(slots=True)
class ModelInputs:
    """The keywords of one forward pass, and the notes that the report shows about them."""

    keywords: Keywords
    notes: list[str] = field(default_factory=list)
