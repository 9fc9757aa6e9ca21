"""An accelerator as its datasheet gives it: what bounds every kernel that runs on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from llmsim_magic.records.errors import RefusedDtype, one_of
from llmsim_magic.records.hardware.dtypes import arithmetic

_USUAL_CLOCK, _SLOWEST_CLOCK = 1.9e9, 1.2e9  # Hz, of GPUs under load


@dataclass(frozen=True, slots=True)
class Link:
    """A way from a device to others.

    Attributes:
        name: Its technology and generation, such as `PCIe 4`.
        bytes_per_s: In one direction, over all its lanes.
        joins: How many devices it joins; None if all of a machine.
    """

    name: str
    bytes_per_s: float
    joins: int | None = None

    def reaches(self, devices: int) -> bool:
        """Whether it joins so many devices."""
        return self.joins is None or devices <= self.joins


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One device as software sees it; what is not known is None or missing.

    `memory_bytes` is the capacity of the memory chips (datasheets say GB and mean GiB), of which a
    driver keeps some. `peak_flops` are dense, a multiply-add counts two, by arithmetic: `bf16`,
    `fp16`, `fp32`, `tf32`, `fp8`, `int8`, `fp4`. `interconnect_bytes_per_s` counts one direction,
    all links of a device together unless `note` says otherwise. `link_joins` is how many devices
    `link` joins, None if all of a machine; a bridge joins two or four. `other_link` is a second
    way, such as the bus beside a bridge. `recalled` names the figures known only from memory of a
    datasheet. `kind` (gpu, npu, cpu) and `architecture` tell its relatives.
    """

    name: str
    vendor: str
    kind: str
    architecture: str
    memory_bytes: int | None
    bandwidth_bytes_per_s: float | None
    peak_flops: Mapping[str, float] = field(hash=False)
    link: str | None
    interconnect_bytes_per_s: float | None
    llc_bytes: int | None
    compute_units: int | None
    tdp_w: float | None
    source: str
    recalled: frozenset[str] = frozenset()
    note: str | None = None
    link_joins: int | None = None
    other_link: Link | None = None

    @property
    def links(self) -> tuple[Link, ...]:
        """The ways to other devices, the fastest first."""
        found = [] if self.other_link is None else [self.other_link]
        if self.link is not None and self.interconnect_bytes_per_s is not None:
            found.append(Link(self.link, self.interconnect_bytes_per_s, self.link_joins))
        return tuple(sorted(found, key=lambda each: -each.bytes_per_s))

    def among(self, devices: int) -> "Accelerator":
        """The device with the fastest link that joins so many; itself if that is its own.

        So is one whose own link is not known.

        Args:
            devices: How many exchange with one another, with those in between.
        """
        fastest = next((each for each in self.links if each.reaches(devices)), None)
        is_known = self.interconnect_bytes_per_s is not None
        if fastest is None or fastest.name == self.link or not is_known:
            return self
        return replace(self, link=fastest.name, interconnect_bytes_per_s=fastest.bytes_per_s)

    @property
    def unit_cycles_per_s(self) -> float | None:
        """Cycles per second of all compute units of a GPU together; None of other devices.

        By the 32-bit peak: a unit multiplies and adds 128 numbers a cycle, or 64 where that would
        be an odd clock. Without a peak, a usual clock.
        """
        if self.kind != "gpu" or not self.compute_units:
            return None
        peak = self.peak_flops.get("fp32")
        if not peak:
            return self.compute_units * _USUAL_CLOCK
        wide = peak / 2 / 128
        return wide if wide >= self.compute_units * _SLOWEST_CLOCK else 2 * wide

    def peak(self, dtype: str) -> float:
        """Dense FLOP/s in an arithmetic, by any spelling of it; `RefusedDtype` if it lacks that."""
        known = self.peak_flops.get(arithmetic(dtype))
        if known is None:
            legal = one_of(self.peak_flops) if self.peak_flops else "no peak of it is known"
            raise RefusedDtype.must_be("dtype", dtype, f"one that {self.name} computes in: {legal}")
        return known
