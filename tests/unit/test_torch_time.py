"""Times of passes as transformers runs them: properties, and runs on a real H100.

`tests/data/measured_passes.csv` are runs on an H100-SXM with random weights in bfloat16
(torch 2.11, transformers 5.17): seconds of a pass started by the host, and in a CUDA graph.
"""

import csv
import math
import statistics
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import llmsim_magic as llmsim
from llmsim_magic.analyses.time.pass_time import PassTime
from llmsim_magic.analyses.torch_time.constants_fit import (
    PassSample,
    fit_constants,
    predict_pass,
)
from llmsim_magic.analyses.torch_time.kernel_time import kernel_time
from llmsim_magic.analyses.torch_time.launch_time import (
    host_seconds,
    operator_seconds,
    operator_work,
    run_operators,
)
from llmsim_magic.analyses.torch_time.transformers_time import transformers_time
from llmsim_magic.catalog import accelerators
from llmsim_magic.catalog.torch_calibration import torch_calibration
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.torch_kernel import TorchKernel, TorchSample
from llmsim_magic.records.trace.trace import Trace
from tests.helpers.small_models import CONFIGS

H100 = accelerators.find("H100-SXM5-80GB")
A100 = accelerators.find("A100-SXM4-80GB")
MI300 = accelerators.find("MI300X")
CONSTANTS = torch_calibration().constants
MEASURED = Path(__file__).parent.parent / "data" / "measured_passes.csv"
LAUNCHES = ("eager", "graph")
each_launch = pytest.mark.parametrize("launch", LAUNCHES)


@cache
def traced(name: str = "qwen3", phase: str = "decode", context: int = 24) -> Trace:
    report = llmsim.trace(CONFIGS[name](), phase=phase, context=context, dtype="bfloat16")
    return report.trace


def timed(launch: str, device: Any = H100, **options: Any) -> PassTime:
    return transformers_time(traced(**options), device, launch)


@each_launch
def test_operators_sum_to_the_pass_and_lie_in_their_bands(launch: str) -> None:
    time = timed(launch)
    assert len(time.operators) == len(traced().paths)
    assert time.seconds == pytest.approx(sum(each.seconds for each in time.operators))
    assert time.low < time.seconds < time.high
    assert all(each.low <= each.seconds <= each.high for each in time.operators)
    assert (time.execution.runtime, time.execution.launch) == ("transformers", launch)
    assert time.seen


def test_a_graph_takes_as_long_as_its_kernels_and_the_gaps_between_them() -> None:
    runs = run_operators(operator_work(traced(), H100), H100, CONSTANTS)
    kernels = [time for run in runs for time in run.times]
    assert not any(time.binds == "compute" for time in kernels)  # whose clock power holds down
    expected = sum(time.seconds + CONSTANTS.gap_s for time in kernels)
    assert math.fsum(operator_seconds(runs, "graph", CONSTANTS)) == pytest.approx(expected)


@pytest.mark.parametrize("slower", [0.001, 1.0, 1000.0], ids=["device", "both", "host"])
def test_eager_takes_as_long_as_the_slower_of_host_and_device(slower: float) -> None:
    constants = replace(
        CONSTANTS,
        host_kernel_s=CONSTANTS.host_kernel_s * slower,
        host_gather_s=CONSTANTS.host_gather_s * slower,
        host_view_s=CONSTANTS.host_view_s * slower,
        host_call_s=CONSTANTS.host_call_s * slower,
    )
    work = operator_work(traced(phase="prefill"), H100)
    runs = run_operators(work, H100, constants)
    host = sum(host_seconds(each, constants) for each in work)
    device = sum(time.seconds for run in runs for time in run.times)
    whole = math.fsum(operator_seconds(runs, "eager", constants))
    assert whole >= max(host, device) * 0.999
    assert whole <= host + device
    if slower != 1.0:
        assert whole == pytest.approx(max(host, device), rel=0.05)


def product(rows: int, columns: int, length: int, dtype: Any = "bf16") -> TorchKernel:
    itemsize = 4 if dtype == "fp32" else 2
    return TorchKernel(
        kind="matmul",
        bytes=itemsize * (rows * length + length * columns + rows * columns),
        elements=rows * columns,
        flops=2 * rows * columns * length,
        dtype=dtype,
        shape=(rows, columns, length),
    )


def test_a_result_whose_rows_are_not_aligned_takes_longer() -> None:
    """On tensor cores, which PyTorch does not use for float32 by default."""
    for dtype, least, most in (("bf16", 2.0, math.inf), ("fp32", 0.98, 1.02)):
        odd, even = (
            kernel_time(product(8192, columns, 768, dtype), H100, CONSTANTS).seconds
            for columns in (50257, 50264)
        )
        assert least <= odd / even <= most


def low_precisions() -> Iterator[tuple[str, str]]:
    for name, device in accelerators.entries().items():
        if "fp32" in device.peak_flops and device.bandwidth_bytes_per_s:
            for dtype in ("bf16", "fp16"):
                if dtype in device.peak_flops:
                    yield name, dtype


@pytest.mark.parametrize(("name", "dtype"), [*low_precisions()])
def test_no_product_in_16_bits_is_slower_than_in_32(name: str, dtype: str) -> None:
    """It reads half as much, and every device can compute it with the units that fp32 uses."""
    device, vocabularies = accelerators.find(name), (50257, 151_669, 32_000, 30_522, 128_256)
    sides = (1, 7, 100, 768, 4095, 4098, 8192)
    shapes = [(rows, columns, 768) for rows in sides for columns in vocabularies]
    shapes += [(rows, columns, length) for rows in sides for columns in sides for length in sides]
    for rows, columns, length in shapes:
        single = product(rows, columns, length, "fp32")
        for factor in (2, 4, 8, 16):
            half = replace(product(rows, columns, length, dtype), alignment=factor)
            seconds, widest = (
                kernel_time(each, device, CONSTANTS).seconds for each in (half, single)
            )
            assert seconds <= widest * (1 + 1e-9), (rows, columns, length, factor)


def test_the_loss_by_alignment_is_that_of_loads_and_not_of_tensor_cores() -> None:
    """Of two devices with equal units and clocks, the one with the faster tensor cores loses more.

    A unit of an RTX 4090 computes an eighth as much a cycle as one of an H100, which loads as much.
    """
    odd, even = product(8192, 50257, 768), product(8192, 50264, 768)

    def loss(device: Accelerator) -> float:
        one, other = (kernel_time(each, device, CONSTANTS).work_s for each in (odd, even))
        return one / other

    faster = replace(H100, peak_flops={**H100.peak_flops, "bf16": 2 * H100.peak("bf16")})
    assert loss(faster) == pytest.approx(2 * loss(H100), rel=0.01)
    names = ("B200", "H100-SXM5-80GB", "A100-SXM4-80GB", "L40S", "RTX 4090", "M2 Max (38-core)")
    losses = [loss(accelerators.find(name)) for name in names]
    assert losses == sorted(losses, reverse=True)
    assert losses[-2] < 1.25
    assert losses[-1] == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("name", ["H100", "A100", "H20", "RTX 4090", "MI300X", "B200"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_weight_by_one_vector_takes_as_long_as_reading_the_weight(name: str, dtype: str) -> None:
    """One FLOP a byte or less, where each device does ten or more on its fp32 units."""
    device = accelerators.find(name)
    for rows, columns in ((1, 25600), (25600, 1)):
        kernel = product(rows, columns, 5120, dtype)
        time = kernel_time(kernel, device, CONSTANTS)
        assert time.binds == "memory"
        assert device.bandwidth_bytes_per_s is not None
        reading = kernel.bytes / device.bandwidth_bytes_per_s
        assert reading <= time.seconds - time.start_s <= 1.1 * reading


@pytest.mark.parametrize("name", ["H100", "A100", "H20", "MI300X"])
def test_a_few_rows_cost_what_the_narrowest_tensor_core_tile_costs(name: str) -> None:
    """Eight rows fill half of a tile of 16, not an eighth of one of 64."""
    device = accelerators.find(name)
    few = kernel_time(product(8, 25600, 5120), device, CONSTANTS)
    assert few.binds == "memory"
    assert few.work_s == kernel_time(product(16, 25600, 5120), device, CONSTANTS).work_s
    assert few.work_s < kernel_time(product(64, 25600, 5120), device, CONSTANTS).work_s / 1.5


def test_more_of_anything_takes_no_less() -> None:
    sizes = [
        TorchKernel(kind="pointwise", bytes=4 * n, elements=n) for n in (1, 10**4, 10**6, 10**9)
    ]
    times = [kernel_time(size, H100, CONSTANTS).seconds for size in sizes]
    assert times == sorted(times)
    assert times[0] == pytest.approx(CONSTANTS.kinds["pointwise"].start_s, rel=0.01)
    assert times[-1] == pytest.approx(4e9 / (CONSTANTS.memory_share * 3.35e12), rel=0.05)


@each_launch
def test_a_band_is_wider_on_a_device_that_was_not_measured(launch: str) -> None:
    bands = [timed(launch, device).band for device in (H100, A100, MI300)]
    widths = [band.high / band.low for band in bands]
    assert widths[0] < widths[1] < widths[2] <= 9.0
    assert not timed(launch, A100).seen


@each_launch
@pytest.mark.parametrize(("name", "dtype"), [("qwen3", "float32"), ("bert", "bfloat16")])
def test_a_pass_unlike_those_measured_is_not_called_measured(
    launch: str, name: str, dtype: str
) -> None:
    """Decoders in 16 bits were measured, nothing else."""
    like = timed(launch)
    trace = llmsim.trace(CONFIGS[name](), context=16, dtype=dtype).trace
    unlike = transformers_time(trace, H100, launch)
    assert like.seen
    assert not unlike.seen
    assert unlike.band.high / unlike.band.low > like.band.high / like.band.low


def test_a_call_that_starts_nothing_costs_a_part_of_a_call() -> None:
    [idle, *_] = [
        each
        for each in operator_work(traced("gpt2", "decode"), H100)
        if not (each.kernels or each.views)
    ]
    assert 0 < host_seconds(idle, CONSTANTS) < CONSTANTS.host_call_s / 2


@each_launch
def test_a_band_is_no_wider_than_what_the_runs_allow(launch: str) -> None:
    band = timed(launch).band
    assert band.high / band.low <= {"graph": 2.0, "eager": 3.0}[launch]


def test_a_device_must_compute_in_the_dtype() -> None:
    with pytest.raises(InvalidValue, match="T4"):
        timed("graph", accelerators.find("T4"))


def test_ranks_exchange_what_they_computed() -> None:
    alone = traced("llama", "decode")
    report = llmsim.trace(CONFIGS["llama"](), phase="decode", context=24, dtype="bfloat16", tp=2)
    runs = run_operators(operator_work(report.trace, H100), H100, CONSTANTS)
    assert sum(run.sent_s for run in runs) > 0
    assert not any(each.sent for each in operator_work(alone, H100))


@cache
def work_of(name: str, phase: str) -> Any:
    return operator_work(traced(name, phase), H100)


def test_a_fit_finds_the_constants_of_a_device() -> None:
    """Of a made-up one, three times slower with a host twice as fast, from other models' runs."""
    true = replace(
        CONSTANTS,
        memory_share=CONSTANTS.memory_share / 1.1,
        matmul_share=CONSTANTS.matmul_share / 1.3,
        gap_s=CONSTANTS.gap_s * 2,
        host_call_s=CONSTANTS.host_call_s / 2,
        kinds={
            name: replace(kind, start_s=3 * kind.start_s) for name, kind in CONSTANTS.kinds.items()
        },
    )
    names = ("qwen3", "gpt2", "llama")

    def passes(name: str) -> Iterator[PassSample]:
        for phase in ("prefill", "decode"):
            for launch in LAUNCHES:
                sample = PassSample(work=work_of(name, phase), launch=launch, seconds=1.0)
                yield replace(sample, seconds=predict_pass(sample, H100, true))

    kernels = {kernel for each in work_of("qwen3", "prefill") for kernel in each.kernels}
    samples = [TorchSample(each, kernel_time(each, H100, true).seconds) for each in kernels]
    known = [sample for name in names[:2] for sample in passes(name)]
    found = fit_constants(samples, known, H100, CONSTANTS)
    for sample in passes(names[2]):
        assert predict_pass(sample, H100, found) == pytest.approx(sample.seconds, rel=0.2)


def measured(launch: str) -> Iterator[tuple[float, PassTime]]:
    with MEASURED.open() as file:
        for row in csv.DictReader(file):
            trace = llmsim.trace(
                row["model"],
                phase=row["phase"],
                batch=int(row["batch"]),
                context=int(row["context"]),
                dtype="bfloat16",
            ).trace
            # As the release that was measured runs it.
            trace = replace(trace, versions=trace.versions | {"transformers": "5.17.0"})
            yield float(row[f"{launch}_s"]), transformers_time(trace, H100, launch)


@pytest.mark.slow
@pytest.mark.parametrize(("launch", "median", "worst"), [("graph", 0.06, 0.2), ("eager", 0.2, 0.5)])
def test_predictions_are_as_a_real_h100_measured(launch: str, median: float, worst: float) -> None:
    pairs = list(measured(launch))
    errors = [abs(time.seconds / seconds - 1) for seconds, time in pairs]
    assert statistics.median(errors) < median
    assert max(errors) < worst
    inside = [time.low <= seconds <= time.high for seconds, time in pairs]
    assert sum(inside) >= 0.8 * len(inside)
