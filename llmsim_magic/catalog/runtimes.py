"""Runtimes that models are served by, and the memory that they take beside the model's own."""

import csv
from functools import cache
from importlib import resources

from llmsim_magic.records.errors import InvalidValue, one_of
from llmsim_magic.records.runtime import Runtime


@cache
def entries() -> dict[str, Runtime]:
    """Every runtime of the catalogue by its name."""
    text = resources.files(__package__).joinpath("runtimes.csv").read_text("utf-8")
    return {row["name"]: _runtime(row) for row in csv.DictReader(text.splitlines())}


def find(name: str) -> Runtime:
    """The runtime of that name, case aside; `InvalidValue` for one that is not known."""
    known = entries().get(str(name).lower())
    if known is None:
        raise InvalidValue("runtime", name, one_of(entries()))
    return known


def _runtime(row: dict[str, str]) -> Runtime:
    return Runtime(
        row["name"],
        float(row["usable_share"]),
        float(row["visible_share"]),
        int(row["context_bytes"]),
        int(row["parallel_context_bytes"]),
        int(row["sampled_sequences"]),
        float(row["logit_copies"]),
        int(row["chunk_tokens"]),
        row["source"],
        row["note"],
    )
