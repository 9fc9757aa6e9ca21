"""A grid of kernels so small that a CPU times them all in a fraction of a second."""

from llmsim_magic.capture.measure.grid import Grid
from llmsim_magic.records.trace.workload import Workload

SMALL = Grid(
    activations=((1, 256), (8, 256)),
    routers=((8, 16),),
    matmuls=((1, 64, 32), (8, 64, 32)),
    batched=((2, 8, 16, 32),),
    grouped=((4, 8, 16, 32),),
    attentions=((1, 4, 2, 16, 1, 8), (1, 4, 2, 16, 8, 8)),
    masked=((1, 4, 4, 16, 8, 8),),
    models=(),
    workloads=(Workload("prefill", 1, 8), Workload("decode", 2, 8)),
    pool_bytes=2**16,
    needed_bytes=2**20,
)
