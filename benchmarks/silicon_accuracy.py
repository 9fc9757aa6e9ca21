"""Scores predictions of transformers against runs of models on a GPU.

Rows that the shipped constants were fitted to are predicted by fits without their model, all
others by the constants that ship.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from benchmarks.calibrate_torch import FITTED, device_of, digest, without_model
from benchmarks.scored import Scored
from benchmarks.silicon_rows import (
    Row,
    measured_passes,
    predicted_peak,
    profiled_kernels,
    read_rows,
    trace_of,
)
from llmsim_magic.analyses.torch_time.constants_fit import predict_pass
from llmsim_magic.analyses.torch_time.transformers_time import band_on
from llmsim_magic.catalog.torch_calibration import torch_calibration
from llmsim_magic.records.hardware.accelerator import Accelerator

SILICON_TIMES = (
    *("transformers_graph_prefill", "transformers_graph_decode"),
    *("transformers_eager_prefill", "transformers_eager_decode"),
)
SILICON_CLASSES = (*SILICON_TIMES, "transformers_memory")
_MEMORY_SHARE, _MEMORY_BYTES = 0.01, 6e6  # how far off a peak may be: the larger of both


def of_silicon(folder: Path) -> Iterator[Scored]:
    """Every launch of every pass, and the peak memory of every pass."""
    rows = read_rows(folder, "infer")
    if not rows:
        return
    accelerator = device_of(rows)
    yield from _of_times(folder, rows, accelerator)
    for row in rows:
        if "peak_above" in row:
            guess = float(predicted_peak(trace_of(row)))
            give = max(_MEMORY_SHARE * guess, _MEMORY_BYTES)
            measured = float(row["peak_above"])
            yield Scored(
                *("transformers_memory", accelerator.name, measured, guess),
                *(guess - give, guess + give),
            )


def _of_times(folder: Path, rows: Sequence[Row], accelerator: Accelerator) -> Iterator[Scored]:
    known = torch_calibration()
    passes = list(measured_passes(rows, accelerator))
    kernels = list(profiled_kernels(read_rows(folder, "profile"), accelerator))
    fitted = set(FITTED.read_text("utf-8").split())
    refitted = cache(lambda model: without_model(model, kernels, passes, accelerator))
    for each in passes:
        constants = known.constants
        if digest(each.row) in fitted:
            constants = refitted(each.model)
        guess = predict_pass(each.sample, accelerator, constants)
        band = band_on(accelerator, known, known.passes[each.sample.launch])
        yield Scored(
            *(each.name, accelerator.name, each.sample.seconds, guess),
            *(guess * band.low, guess * band.high),
        )
