"""The layout of packed matrices: codes, scales and zero points, exact to the bit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any

from llmsim_magic.records.trace.quantization_config import (
    KEPT_BY_DEFAULT,
    excluded_names,
    kept_by_default,
)

ALL = 0  # the block spans the matrix


class UnknownLayout(Exception):
    """A config does not determine the size of its weights; the text says which key does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """A layout: codes in blocks of `rows` × `columns` that share a scale and a zero point.

    Attributes:
        name: the format, for the report.
        code_bits: bits per weight, without metadata.
        rows: output features per block; `ALL` (0) if a block spans them.
        columns: input features per block; `ALL` (0) if a block spans them.
        scale_bits: bits of the scale of a block.
        zero_bits: bits of the zero point of a block.
        column_bits: bits stored per input feature of a matrix.
        matrix_bits: bits stored per matrix.
        excluded: names of modules that keep the model's dtype.
        only: names of the only modules that are quantised; empty if all are.
        by_name: layouts of modules that differ from this one, by name.
        experts_only: whether only expert matrices are packed.
        outer: layout of linear layers outside the repeated layers; None if those are not packed.
        embeddings: whether embeddings are packed.
        arithmetic: dtype in which a device multiplies the codes; None if they are always
            converted to the model's dtype first.
    """

    name: str
    code_bits: float
    rows: int
    columns: int
    scale_bits: float
    zero_bits: float = 0
    column_bits: int = 0
    matrix_bits: int = 0
    excluded: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    by_name: tuple[tuple[str, "Packing"], ...] = ()
    experts_only: bool = False
    outer: "Packing | None" = None
    embeddings: bool = False
    arithmetic: str | None = None

    @property
    def description(self) -> str:
        what = "experts" if self.experts_only else "linear layers and experts"
        named = [name for name in self.excluded if name != KEPT_BY_DEFAULT]
        kept = f" and {len(named)} parts that its config names" if named else ""
        where = "" if self.outer is not None else " inside the repeated layers"
        others = "norms" if self.embeddings else "norms and embeddings"
        if KEPT_BY_DEFAULT in self.excluded:
            others = "norms, embeddings and the head"
        if self.only:
            where = " that its config names"
        if self.outer is None:
            others = "norms, embeddings, routers and the head"
        return (
            f"{self.name}, matrices of {what}{where} in {self._description_of_layouts}; "
            f"{others}{kept} in their default dtype"
        )

    @property
    def _description_of_layouts(self) -> str:
        own = {layout.code_bits for _, layout in self.by_name} - {self.code_bits}
        if own:
            bits = " or ".join(f"{each:g}" for each in (self.code_bits, *sorted(own)))
            return f"{bits} bits with scales, as its config says by name"
        block = f"{self.rows or 'all'} × {self.columns or 'all'}"
        zero = f" and a {self.zero_bits:g}-bit zero point" if self.zero_bits else ""
        return (
            f"{self.code_bits:g} bits, a {self.scale_bits:g}-bit scale{zero} for each block of "
            f"{block} (outputs × inputs)"
        )

    def parts(self, shape: Sequence[int]) -> tuple[int, int]:
        """Bytes of the codes, and of all metadata, of matrices `[…, outputs, inputs]`.

        Blocks do not span matrices; blocks at the edge of a matrix may be partial.
        """
        *lead, outputs, inputs = shape
        number = prod(lead)
        codes = ceil(number * outputs * inputs * self.code_bits / 8)
        blocks = ceil(outputs / (self.rows or outputs)) * ceil(inputs / (self.columns or inputs))
        metadata = blocks * (self.scale_bits + self.zero_bits) + inputs * self.column_bits
        return codes, ceil(number * (metadata + self.matrix_bits) / 8)


def group_columns(size: object) -> int:
    """Inputs that share a scale by a config's group size; -1 means the whole row."""
    return size if isinstance(size, int) and size > 0 else ALL


def of_every_linear(packing: Packing, config: Mapping[str, Any]) -> Packing:
    """A layout of all linear layers that are not excluded, as transformers replaces them."""
    kept = replace(packing, excluded=(*excluded_names(config), *kept_by_default(config)))
    return replace(kept, outer=kept)
