"""A kernel's work in seconds at a device's datasheet figures: what the roofline combines."""

import math
from dataclasses import dataclass

from llmsim_magic.records.errors import CannotPredict
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.dtypes import arithmetic
from llmsim_magic.records.hardware.kernel_shapes import (
    Attention,
    Collective,
    KernelShape,
    Matmul,
)

# Tile sizes (rows × columns of the result) of library kernels, one tile per compute unit.
_TILES = ((256, 128), (128, 256), (128, 128), (64, 256), (128, 64), (64, 128), (64, 64), (16, 64))
_MAX_WAVE = (
    3.0  # log2; with fewer tiles than an eighth of the units, kernels split the sum (split-k)
)
_LEAST_ROWS = 16  # rows of the smallest tile of a tensor core; a kernel that has fewer pads them
# Per cycle of a compute unit, on NVIDIA and AMD alike: bytes from the last-level cache, and
# exponentials (CUDA C++ Programming Guide, throughput of native arithmetic instructions).
_LOADED_PER_CYCLE = 64
_EXPONENTIALS_PER_CYCLE = 16
_REFERENCE_CLOCK = 2e9  # Hz; `item_s` is per compute unit of this clock
_RING = 8  # ranks
_CACHE_STEEPNESS = 16  # how steeply cache hits fall once the working set exceeds the cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """A kernel's work in seconds at a device's datasheet figures.

    `fresh_s` is the time of bytes read from memory, `resident_s` of bytes the cache may still hold,
    `loaded_s` that in which compute units load all of them. `items` are attention sequences per
    compute unit, `hops` the other ranks of a collective. `wave` is log2 of the tiles in whole waves
    over the tiles needed.
    """

    compute_s: float = 0.0
    fresh_s: float = 0.0
    resident_s: float = 0.0
    loaded_s: float = 0.0
    items: float = 0.0
    hops: float = 0.0
    wave: float = 0.0


def roofline_terms(
    size: KernelShape, accelerator: Accelerator, tile: float, cached: float, *, cold: bool = False
) -> Terms:
    """A kernel's work in seconds at a device's datasheet figures."""
    if isinstance(size, Collective):
        link = _required(accelerator, "interconnect_bytes_per_s")
        return Terms(fresh_s=size.bytes / link, hops=_hops(size))
    bandwidth = memory_bandwidth(accelerator)
    reused = size.bytes - size.weight_bytes if cold else size.bytes
    cache = cached * (accelerator.llc_bytes or 0)
    held = reused * cache_hit_share(reused, cache, _CACHE_STEEPNESS)
    fresh_s, resident_s = (size.bytes - held) / bandwidth, held / bandwidth
    if isinstance(size, Matmul):
        compute, wave = _matmul(size, accelerator, tile)
        return Terms(compute_s=compute, fresh_s=fresh_s, resident_s=resident_s, wave=wave)
    if isinstance(size, Attention):
        return _attention(size, accelerator, fresh_s, resident_s)
    loaded = _loaded(size.bytes, accelerator)
    return Terms(fresh_s=fresh_s, resident_s=resident_s, loaded_s=loaded)


def _attention(
    size: Attention, accelerator: Accelerator, fresh_s: float, resident_s: float
) -> Terms:
    compute = size.flops / accelerator.peak(size.dtype)
    if size.kind == "attention decode":
        rows = size.heads / size.kv_heads
        padded = _LEAST_ROWS / rows if accelerator.kind == "gpu" and rows < _LEAST_ROWS else 1.0
        compute *= padded
        # Keys and values stored in 8 bits are widened, so that each takes as many instructions.
        loaded, wave = _loaded(size.kv_elements * 2.0, accelerator), 0.0
    else:
        compute *= softmax_overhead(size, accelerator)
        loaded = _loaded(size.bytes, accelerator)
        tiles = size.batch * size.heads * math.ceil(size.queries / 128)
        wave = 0.0 if size.queries == 1 else _wave(tiles, accelerator.compute_units)
    return Terms(
        compute_s=compute,
        fresh_s=fresh_s,
        resident_s=resident_s,
        loaded_s=loaded,
        items=size.batch * _per_unit_cycle(accelerator),
        wave=wave,
    )


def softmax_overhead(size: KernelShape, accelerator: Accelerator) -> float:
    """The time of products and exponentials over that of the products, each at its peak.

    Between the two products of attention stands a softmax, whose exponentials go with the number
    and the clock of the units, not with the tensor cores that a cheaper device has fewer of.
    """
    if not isinstance(size, Attention) or size.kind == "attention decode":
        return 1.0
    peak = accelerator.peak_flops.get(arithmetic(size.dtype))
    cycles = accelerator.unit_cycles_per_s
    if not peak or not cycles:
        return 1.0
    exponentials_s = size.exponentials / (_EXPONENTIALS_PER_CYCLE * cycles)
    return 1 + exponentials_s / (size.flops / peak)


def _loaded(nbytes: float, accelerator: Accelerator) -> float:
    """Seconds in which the compute units load bytes from the cache; 0 where not known."""
    cycles = accelerator.unit_cycles_per_s
    return nbytes / (cycles * _LOADED_PER_CYCLE) if cycles else 0.0


def _per_unit_cycle(accelerator: Accelerator) -> float:
    """One over the compute units, as if all devices had the same clock."""
    cycles = accelerator.unit_cycles_per_s
    return _REFERENCE_CLOCK / cycles if cycles else 1 / (accelerator.compute_units or 1)


def _hops(size: Collective) -> float:
    """How many exchanges follow one another.

    A ring passes every other rank. Reductions among more ranks than a node has go up and down a
    tree: https://developer.nvidia.com/blog/massively-scale-deep-learning-training-nccl-2-4/
    """
    if size.of != "all_reduce" or size.ranks <= _RING:
        return size.ranks - 1.0
    return _RING - 1 + 2 * math.log2(size.ranks / _RING)


def _matmul(size: Matmul, accelerator: Accelerator, tile: float) -> tuple[float, float]:
    """Seconds at peak with the best tile size in whole waves, and the wave overhead.

    An outer product has none: it multiplies each number that it writes once, on any unit.
    """
    if size.k == 1:
        return 0.0, 0.0
    peak = accelerator.peak(size.dtype)
    units = accelerator.compute_units
    if units is None or accelerator.kind != "gpu":
        return size.flops / peak, 0.0

    def seconds(rows: int, columns: int) -> float:
        tiles = size.groups * math.ceil(size.m / rows) * math.ceil(size.n / columns)
        whole = math.ceil(tiles / units) * units
        work = 2.0 * whole * rows * columns * size.k / peak
        return work * (1 + tile * (1 / rows + 1 / columns))

    tiles = size.groups * math.ceil(size.m / 128) * math.ceil(size.n / 128)
    return min(seconds(*each) for each in _TILES), _wave(tiles, units)


def _wave(tiles: int, units: int | None) -> float:
    if not units:
        return 0.0
    return min(math.log2(math.ceil(tiles / units) * units / tiles), _MAX_WAVE)


def cache_hit_share(nbytes: float, cache: float, steepness: float) -> float:
    """The share of a working set that is still cached when it is read again.

    Args:
        nbytes: Bytes of the working set.
        cache: Bytes of the cache; without one the share is 0.
        steepness: How steeply the share falls once the working set exceeds the cache.
    """
    return 1 / (1 + (nbytes / cache) ** steepness) if cache else 0.0


def memory_bandwidth(accelerator: Accelerator) -> float:
    """Bytes/s of the device's memory; `CannotPredict` if the catalogue lacks it."""
    return _required(accelerator, "bandwidth_bytes_per_s")


def _required(accelerator: Accelerator, name: str) -> float:
    value: float | None = getattr(accelerator, name)
    if value is None:
        raise CannotPredict("time", accelerator.name, f"the catalogue has no {name} for it")
    return value
