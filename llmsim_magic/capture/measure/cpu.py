"""Measure this machine's CPU in half a minute of torch: peak rates and kernel times.

Each kernel is timed between all others, round after round in a new order, so that its code and its
weights are not in a cache from its last run; its inputs are in the cache, as if the previous kernel
of a model had just written them. A matmul is timed with several weights in turn and its median
counts, because their addresses affect its speed. Other work on the machine can only slow a kernel
down, so the minimum over all rounds is reported.
"""

import os
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmsim_magic.capture.measure.timers import Run, seconds_of
from llmsim_magic.capture.meta.isolation import isolated
from llmsim_magic.records.deferred_interrupt import DeferredInterrupt
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.calibration import Host, Sample
from llmsim_magic.records.hardware.dtypes import arithmetic
from llmsim_magic.records.hardware.kernel_shapes import Attention, KernelShape, Matmul, Stream
from llmsim_magic.records.trace.workload import IsCancelled

_CPU = torch.device("cpu")
DTYPES = (torch.bfloat16, torch.float32)
POOL_BYTES = 400 * 2**20
_MATMULS = (  # m, n, k: the few rows of decode first, the width of a vocabulary last
    *((m, n, k) for m in (1, 4, 16) for n, k in ((1024, 1024), (3072, 1024), (1024, 3072))),
    *((m, n, k) for m in (1, 16) for n, k in ((4096, 4096), (48000, 1024))),
    *((m, n, k) for m in (64, 128, 512) for n, k in ((1024, 1024), (3072, 1024), (1024, 3072))),
    *((128, 4096, 4096), (128, 48000, 1024), (1024, 2048, 2048)),
)
_ATTENTIONS = (  # batch, heads, key-value heads, head size, queries, keys
    *((1, 16, 8, 128, 1, keys) for keys in (16, 128, 1024, 8192)),
    *((8, 16, 8, 128, 1, keys) for keys in (128, 1024)),
    *((1, 16, 8, 128, tokens, tokens) for tokens in (16, 128, 512, 1024)),
    *((4, 16, 8, 128, 128, 128), (1, 12, 12, 64, 128, 128)),
)
_ROWS = (1, 16, 128, 1024)  # of 1024 or 3072 elements, for elementwise kernels
_REPEATS = 8
_BUDGET_S = 20.0
_MIN_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Measurement:
    """This machine as an accelerator, the times of its kernels, and the overhead of launches."""

    accelerator: Accelerator
    samples: tuple[Sample, ...]
    host: Host


@dataclass(frozen=True, slots=True)
class _Job:
    """A call to time; `size` is None for overhead of the host.

    `inputs` are written before each timing, and `run` is then called `repeats` times, with other
    weights each time.
    """

    size: KernelShape | None
    run: Run
    inputs: tuple[Tensor, ...] = ()
    repeats: int = 1


@isolated()
def measure() -> Measurement:
    """Measure the CPU with the number of threads that torch uses, in less than half a minute.

    Returns:
        Peak rates in FLOP/s, memory bandwidth in bytes/s, and times in seconds.

    Raises:
        KeyboardInterrupt: The measurement was cancelled.
    """
    with DeferredInterrupt() as stopped, torch.inference_mode():
        pools = {dtype: _pool(dtype) for dtype in DTYPES}
        jobs = [*_matmuls(pools), *_attentions(), *_streams(), *_host_jobs()]
        *times, view, call = _times(jobs, stopped)
        samples = tuple(
            Sample(job.size, seconds, "eager")
            for job, seconds in zip(jobs, times, strict=False)
            if job.size is not None
        )
        bandwidth = pools[torch.float32].nbytes / min(_seconds(pools[torch.float32].sum, 25))
        return Measurement(_accelerator(samples, bandwidth), samples, Host(0.0, view, call))


def _times(jobs: Sequence[_Job], stopped: IsCancelled) -> list[float]:
    """The minimum time of each job in seconds, over rounds of all jobs."""
    times: list[list[float]] = [[] for _ in jobs]
    deadline = time.perf_counter() + _BUDGET_S
    for place in _rounds(len(jobs)):
        if stopped():
            raise KeyboardInterrupt
        if time.perf_counter() > deadline and min(map(len, times)) >= _MIN_ROUNDS:
            break
        for tensor in jobs[place].inputs:
            tensor.mul_(1)
        times[place].append(statistics.median(_seconds(jobs[place].run, jobs[place].repeats)))
    return [min(each) for each in times]


def _rounds(number: int) -> Iterator[int]:
    """Yields the numbers below `number` in random order, again and again without end."""
    shuffled = Random(0)  # noqa: S311 - not for cryptography
    while True:
        yield from shuffled.sample(range(number), number)


def _seconds(run: Run, repeats: int) -> list[float]:
    return [seconds_of(run, _CPU) for _ in range(repeats)]


def _accelerator(samples: tuple[Sample, ...], bandwidth: float) -> Accelerator:
    """The CPU with the best measured rates as its peaks."""
    peaks: dict[str, float] = {}
    for sample in samples:
        if isinstance(sample.size, Matmul):
            name = arithmetic(sample.size.dtype)
            peaks[name] = max(peaks.get(name, 0.0), sample.size.flops / sample.seconds)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Accelerator(
        name="local-cpu",
        vendor=platform.processor() or platform.machine(),
        kind="cpu",
        architecture=platform.machine(),
        memory_bytes=memory,
        bandwidth_bytes_per_s=bandwidth,
        peak_flops=peaks,
        link=None,
        interconnect_bytes_per_s=None,
        llc_bytes=None,
        compute_units=torch.get_num_threads(),
        tdp_w=None,
        source=f"measured here with torch {torch.__version__}",
    )


def _pool(dtype: torch.dtype) -> Tensor:
    return torch.full((POOL_BYTES // dtype.itemsize,), 0.01, dtype=dtype)


def _matmuls(pools: dict[torch.dtype, Tensor]) -> Iterator[_Job]:
    for dtype, pool in pools.items():
        for m, n, k in _MATMULS:
            rows = torch.full((m, k), 0.01, dtype=dtype)
            run = partial(_matmul, rows, _cycle_weights(pool, n, k))
            yield _Job(Matmul(m=m, n=n, k=k, dtype=arithmetic(dtype)), run, (rows,), _REPEATS)


def _matmul(rows: Tensor, weights: Iterator[Tensor]) -> Tensor:
    return functional.linear(rows, next(weights))


def _cycle_weights(pool: Tensor, n: int, k: int) -> Iterator[Tensor]:
    """Yields weights of n × k from successive parts of the pool, without end."""
    number = max(pool.numel() // (n * k), 1)
    parts = [pool[place * n * k : (place + 1) * n * k].view(n, k) for place in range(number)]
    while True:
        yield from parts


def _attentions() -> Iterator[_Job]:
    attend = functional.scaled_dot_product_attention
    for dtype in DTYPES:
        for batch, heads, kv_heads, head_dim, queries, keys in _ATTENTIONS:
            query = torch.full((batch, heads, queries, head_dim), 0.01, dtype=dtype)
            key = torch.full((batch, kv_heads, keys, head_dim), 0.01, dtype=dtype)
            causal = queries > 1
            shape = Attention(
                batch=batch,
                heads=heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
                queries=queries,
                keys=keys,
                causal=causal,
                dtype=arithmetic(dtype),
            )
            run = partial(attend, query, key, key, is_causal=causal, enable_gqa=True)
            yield _Job(shape, run, (query,))


def _streams() -> Iterator[_Job]:
    """The kernels of a decoder layer between its matmuls, at the sizes it uses."""
    for dtype in DTYPES:
        other = torch.float32 if dtype == torch.bfloat16 else torch.bfloat16
        table = torch.full((32000, 1024), 0.5, dtype=dtype)
        for rows in _ROWS:
            for width in (1024, 3072):
                x = torch.full((rows, width), 0.5, dtype=dtype)
                yield from _elementwise(x, other)
            ids, nbytes = torch.arange(rows), 2 * rows * table[0].nbytes
            yield _Job(Stream("embedding", nbytes, rows), partial(functional.embedding, ids, table))
            softmax = partial(torch.softmax, x, -1)
            yield _Job(Stream("softmax", 2 * x.nbytes, rows), softmax, (x,))
            norm = partial(functional.layer_norm, x, x.shape[-1:])
            yield _Job(Stream("normalisation", 2 * x.nbytes, rows), norm, (x,))


def _elementwise(x: Tensor, other: torch.dtype) -> Iterator[_Job]:
    rows, nbytes = x.shape[0], x.nbytes
    y, one = x.clone(), torch.ones(rows, 1, dtype=x.dtype)
    converted = x.numel() * other.itemsize
    for moved, run in (
        (3 * nbytes, lambda: x + y),
        (3 * nbytes, lambda: x * y),
        (2 * nbytes, lambda: x * one),
        (2 * nbytes, lambda: functional.silu(x)),
        (2 * nbytes, lambda: x.pow(2)),
        (nbytes, lambda: x.mean(-1, keepdim=True)),
        (4 * nbytes, lambda: torch.cat((x, y))),
        (nbytes + converted, lambda: x.to(other)),
    ):
        yield _Job(Stream("elementwise", moved, rows), run, (x, y))


def _host_jobs() -> Iterator[_Job]:
    """The overhead of a view, which is its dispatch, and of a module call."""
    x, module = torch.zeros(4, 4), nn.Identity()
    yield _Job(None, lambda: x.transpose(0, 1))
    yield _Job(None, lambda: module(x))
