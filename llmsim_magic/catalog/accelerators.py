"""Accelerators that people size for, each figure with its source."""

import csv
import difflib
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources

from llmsim_magic.records.errors import UnknownHardware, safe_str
from llmsim_magic.records.hardware.accelerator import Accelerator, Link
from llmsim_magic.records.hardware.dtypes import ARITHMETICS

_BRANDS = frozenset({"nvidia", "tesla", "geforce", "amd", "instinct", "radeon"})
_REPORTED_MEMORY = (0.85, 1.03)  # of the chips': error correction and the driver take some


@cache
def entries() -> dict[str, Accelerator]:
    """Every accelerator of the catalogue by its name."""
    return {row["name"]: _accelerator(row) for row in _rows()}


def find(name: object) -> Accelerator:
    """The accelerator of that name or alias; case, spaces, dashes and the vendor do not matter.

    Raises `UnknownHardware`, one line with the nearest names.
    """
    known = _names().get(_spelt(safe_str(name)))
    if known is None:
        raise UnknownHardware(name, nearest(safe_str(name)))
    return entries()[known]


def of_driver(name: str, memory_bytes: int | None = None) -> Accelerator | None:
    """The accelerator that a GPU's driver calls `name`; None if it may be another one.

    A name that several variants share, such as `A100`, is none of them. Nor is a variant that the
    catalogue does not list, such as a laptop's GPU, a slice of a shared one, or one with other
    memory.

    Args:
        name: as `torch.cuda.get_device_name` gives it: `NVIDIA H100 80GB HBM3`.
        memory_bytes: what the driver reports, which is somewhat less than the chips hold; None if
            it is not known, and the name has to do.
    """
    words = [word for word in re.findall(r"[a-z0-9+]+", name.lower()) if word not in _BRANDS]
    known = _names().get("".join(words))
    variants = sum(
        each.kind == "gpu" and set(words) <= set(re.findall(r"[a-z0-9+]+", each.name.lower()))
        for each in entries().values()
    )
    if known is None or variants > 1:
        return None
    found = entries()[known]
    low, high = (share * (found.memory_bytes or 0) for share in _REPORTED_MEMORY)
    has_memory = memory_bytes is None or low <= memory_bytes <= high
    return found if found.kind == "gpu" and has_memory else None


def nearest(name: str, count: int = 3) -> list[str]:
    """The names most like a misspelt one, best first."""
    wanted = _spelt(name)
    spellings = _names()
    holding = [s for s in spellings if wanted and (wanted in s or s in wanted)]
    close = difflib.get_close_matches(wanted, spellings, n=3 * count, cutoff=0.5)
    ranked = sorted(
        dict.fromkeys((*close, *holding)),
        key=lambda spelling: -difflib.SequenceMatcher(None, wanted, spelling).ratio(),
    )
    return list(dict.fromkeys(spellings[spelling] for spelling in ranked))[:count]


@cache
def _rows() -> tuple[dict[str, str], ...]:
    text = resources.files(__package__).joinpath("accelerators.csv").read_text("utf-8")
    return tuple(csv.DictReader(text.splitlines()))


@cache
def _names() -> dict[str, str]:
    """Every spelling without case and punctuation, with the vendor and without."""
    spellings: dict[str, str] = {}
    for row in _rows():
        for spelling in (row["name"], *filter(None, row["aliases"].split("|"))):
            for form in (spelling, f"{row['vendor']} {spelling}"):
                spellings.setdefault(_spelt(form), row["name"])
    return spellings


def _spelt(name: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", name.lower())


def _accelerator(row: Mapping[str, str]) -> Accelerator:
    """Units of the file: GiB and MiB of memory, GB/s and TFLOP/s of 10⁹ and 10¹²."""

    def number(column: str, unit: float) -> float | None:
        return float(row[column]) * unit if row[column] else None

    def whole(column: str, unit: int) -> int | None:
        return round(float(row[column]) * unit) if row[column] else None

    other = number("other_gb_per_s", 1e9)
    peaks = {name: number(f"{name}_tflops", 1e12) for name in ARITHMETICS}
    return Accelerator(
        name=row["name"],
        vendor=row["vendor"],
        kind=row["kind"],
        architecture=row["architecture"],
        memory_bytes=whole("memory_gib", 2**30),
        bandwidth_bytes_per_s=number("bandwidth_gb_per_s", 1e9),
        peak_flops={name: peak for name, peak in peaks.items() if peak is not None},
        link=row["link"] or None,
        interconnect_bytes_per_s=number("interconnect_gb_per_s", 1e9),
        llc_bytes=whole("llc_mib", 2**20),
        compute_units=whole("compute_units", 1),
        tdp_w=number("tdp_w", 1),
        source=row["source"],
        recalled=frozenset(row["recalled"].split()),
        note=row["note"] or None,
        link_joins=whole("link_joins", 1),
        other_link=Link(row["other_link"], other, whole("other_joins", 1)) if other else None,
    )
