"""Runtimes that models are served by, and the memory that they take beside the model's own."""

import csv
from dataclasses import replace
from functools import cache
from importlib import resources

from llmsim_magic.records.errors import InvalidValue, one_of
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.runtime import Runtime


@cache
def entries() -> dict[str, tuple[Runtime, ...]]:
    """Every runtime by its name, as it sets itself up on small devices and on larger ones."""
    text = resources.files(__package__).joinpath("runtimes.csv").read_text("utf-8")
    found: dict[str, tuple[Runtime, ...]] = {}
    for row in csv.DictReader(text.splitlines()):
        found[row["name"]] = (*found.get(row["name"], ()), _runtime(row))
    return found


def find(name: str, memory_bytes: int | None = None) -> Runtime:
    """The runtime of that name on a device of such a memory; on a large one if none is given.

    Raises `InvalidValue` for a name that is not known.
    """
    known = entries().get(str(name).lower())
    if known is None:
        raise InvalidValue.must_be("runtime", name, one_of(entries()))
    if memory_bytes is None:
        return known[-1]
    return [each for each in known if each.from_memory_bytes <= memory_bytes][-1]


def on(name: str, device: Accelerator | None) -> Runtime:
    """The runtime of that name on a device; on a large GPU if none is given.

    A CPU has no context of a GPU's driver, and its software sees the whole memory.

    Raises:
        InvalidValue: A name that is not known.
    """
    if device is None:
        return find(name)
    found = find(name, device.memory_bytes)
    if device.kind != "cpu":
        return found
    return replace(found, visible_share=1.0, context_bytes=0, parallel_context_bytes=0)


def _runtime(row: dict[str, str]) -> Runtime:
    return Runtime(
        name=row["name"],
        from_memory_bytes=int(row["from_memory_gib"]) * 2**30,
        usable_share=float(row["usable_share"]),
        visible_share=float(row["visible_share"]),
        context_bytes=int(row["context_bytes"]),
        parallel_context_bytes=int(row["parallel_context_bytes"]),
        sampled_sequences=int(row["sampled_sequences"]),
        logit_copies=float(row["logit_copies"]),
        chunk_tokens=int(row["chunk_tokens"]),
        own_attention=row["own_attention"] == "yes",
        source=row["source"],
        note=row["note"],
    )
