"""An accelerator as its datasheet gives it: what bounds every kernel that runs on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmsim_magic.records.errors import RefusedDtype, one_of
from llmsim_magic.records.hardware.dtypes import arithmetic

_USUAL_CLOCK, _SLOWEST_CLOCK = 1.9e9, 1.2e9  # Hz, of GPUs under load


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One device as software sees it; what is not known is None or missing.

    `memory_bytes` is the capacity of the memory chips (datasheets say GB and mean GiB), of which a
    driver keeps some. `peak_flops` are dense, a multiply-add counts two, by arithmetic: `bf16`,
    `fp16`, `fp32`, `tf32`, `fp8`, `int8`, `fp4`. `interconnect_bytes_per_s` counts one direction,
    all links of a device together unless `note` says otherwise. `recalled` names the figures known
    only from memory of a datasheet. `kind` (gpu, npu, cpu) and `architecture` tell its relatives.
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
