"""Single kernels on a device: two ceilings, and a grid of sizes for each class of kernels.

A kernel's seconds are those of one among many in a CUDA graph, the gap to the next included.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.nn.attention import SDPBackend

from benchmarks.silicon_rows import Row
from llmsim_magic.capture.measure.bench import Bench, Job, JobMaker
from llmsim_magic.capture.measure.gpu import copy_bandwidth, matmul_rate
from llmsim_magic.capture.measure.grid import FULL, Grid, makers_without_attention
from llmsim_magic.capture.measure.product_kernels import AttentionSize, attention_job
from llmsim_magic.capture.measure.timers import Timings, kernel_timings
from llmsim_magic.records.errors import clip, describe

BACKENDS = (
    *(SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION),
    *(SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH),
)
MOST_SCORES = 2**27  # of `math`, which writes them to memory


def ceilings(device: torch.device, size: int = 8192, nbytes: int = 2**30) -> Iterator[Row]:
    """The rates of one large matmul in bf16, size × size × size, and of one large copy."""
    rate = matmul_rate(device, torch.bfloat16, size)
    yield {"kind": "ceiling", "matmul_tflops": rate / 1e12}
    yield {"kind": "ceiling", "copy_tb_s": copy_bandwidth(device, nbytes) / 1e12}


def kernels(device: torch.device, has_time: Callable[[], bool], grid: Grid = FULL) -> Iterator[Row]:
    """A row for each kernel and size; one that the device cannot run has `error`."""
    with torch.inference_mode():
        bench = Bench.on(device, torch.bfloat16, grid.pool_bytes)
        for make, labels in _makers(bench, grid):
            if not has_time():
                return
            yield {"kind": "kernel"} | _row(make, device) | labels


def _makers(bench: Bench, grid: Grid) -> Iterator[tuple[JobMaker, Row]]:
    """Jobs; attention by the implementation that torch selects, and by each that has memory."""
    yield from ((make, {}) for make in makers_without_attention(bench, grid))
    for size in grid.attentions:
        yield partial(attention_job, bench, size), {"selected": True}
    for size in grid.masked:
        yield partial(attention_job, bench, size, is_masked=True), {"selected": True}
    for size in grid.attentions:
        for backend in BACKENDS:
            if backend != SDPBackend.MATH or _scores(size) <= MOST_SCORES:
                yield partial(attention_job, bench, size, backend), {"selected": False}


def _scores(size: AttentionSize) -> int:
    batch, heads, _, _, queries, keys = size
    return batch * heads * queries * keys


def _row(make: JobMaker, device: torch.device) -> Row:
    job: Job | None = None
    try:
        job = make()
        found = kernel_timings(job.runs, device)
    except RuntimeError as error:  # no such kernel for the device, or no memory for it
        named = {} if job is None else _described(job)
        return named | {"error": clip(describe(error))}
    return _described(job) | _seconds(found)


def _described(job: Job) -> Row:
    """The kernel as the profiler names it, and what its time is predicted from."""
    kernel = job.kernel
    return {
        "kernel": f"aten::{job.name}",
        "class": kernel.kind,
        "shapes": [list(shape) for shape in job.shapes],
        "dtype": job.dtype,
        "bytes": kernel.bytes,
        "elements": kernel.elements,
        "flops": kernel.flops,
        "products": kernel.products,
        "product_shape": list(kernel.shape),
        **({} if kernel.implementation is None else {"implementation": kernel.implementation}),
    }


def _seconds(found: Timings) -> Row:
    return {"seconds": found.median, "seconds_min": found.least, "seconds_max": found.most}
