"""What `--hardware local` does on a GPU, as far as a CPU can show it."""

import signal
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
import transformers

import llmsim_magic as llmsim
from llmsim_magic.capture.measure import cuda_device, gpu
from llmsim_magic.capture.measure.bench import Bench, Job
from llmsim_magic.capture.measure.grid import FULL, job_makers
from llmsim_magic.capture.measure.model_passes import model_passes
from llmsim_magic.capture.measure.product_kernels import attention_job
from llmsim_magic.capture.measure.timers import (
    Timings,
)
from llmsim_magic.catalog import accelerators
from llmsim_magic.records.errors import CannotMeasure
from llmsim_magic.records.hardware.torch_kernel import (
    TorchKernel,
    TorchKind,
)
from tests.helpers.small_grid import SMALL
from tests.helpers.small_models import CONFIGS

CPU = torch.device("cpu")
# Kernels of training are not measured: they are priced by those of a forward.
MEASURED = set(get_args(TorchKind)) - {"attention backward"}
GIB = 2**30


def _properties(name: str, gib: float, **changed: Any) -> SimpleNamespace:
    facts = {"major": 9, "minor": 0, "multi_processor_count": 132, "L2_cache_size": 50 * 2**20}
    return SimpleNamespace(name=name, total_memory=round(gib * GIB), **(facts | changed))


def _kernel(**changed: Any) -> TorchKernel:
    return replace(TorchKernel(kind="pointwise", bytes=2, elements=1), **changed)


def _never() -> bool:
    return False


def test_every_kind_of_kernel_is_timed_and_described() -> None:
    bench = Bench.on(CPU, torch.bfloat16, SMALL.pool_bytes)
    timed, left_out = gpu.kernel_times(job_makers(bench, SMALL), CPU, _never)
    assert left_out == ()
    assert {job.kernel.kind for job, _ in timed} == MEASURED
    assert all(job.runs == () for job, _ in timed), "buffers outlive their job"
    assert all(found.least > 0 for _, found in timed)
    products = [job.kernel for job, _ in timed if job.kernel.kind == "matmul"]
    for kernel in products:
        rows, columns, length = kernel.shape
        assert kernel.flops == 2 * kernel.products * rows * columns * length
        assert kernel.dtype == "bf16"
    shares = gpu.peak_rates(timed)
    assert shares.keys() == {"bf16"}
    assert shares["bf16"] == max(
        job.kernel.flops / found.median for job, found in timed if job.kernel.kind == "matmul"
    )


def test_weights_of_a_matmul_take_turns_through_the_pool() -> None:
    bench = Bench.on(CPU, torch.float32, 2**12)
    weights = bench.weights(16, 8)
    assert len(weights) == 2**12 // (16 * 8 * 4)
    assert len({each.data_ptr() for each in weights}) == len(weights)
    assert [tuple(each.shape) for each in bench.weights(64, 64)] == [(64, 64)]


def test_what_a_device_cannot_run_is_left_out_with_the_reason() -> None:
    def make() -> Job:
        raise NotImplementedError("no such kernel on this device\nwith details")

    bench = Bench.on(CPU, torch.bfloat16, SMALL.pool_bytes)
    makers = (*job_makers(bench, SMALL)[:1], make, make)
    timed, left_out = gpu.kernel_times(makers, CPU, _never)
    assert len(timed) == 1
    assert left_out == ("no such kernel on this device",)


def test_a_device_that_runs_out_of_memory_is_not_measured_in_part() -> None:
    def make() -> Job:
        raise torch.OutOfMemoryError("tried to allocate")

    with pytest.raises(torch.OutOfMemoryError):
        gpu.kernel_times((make,), CPU, _never)


def test_a_measurement_stops_when_it_is_interrupted() -> None:
    bench = Bench.on(CPU, torch.bfloat16, SMALL.pool_bytes)
    polls = iter((False, False, True))
    with pytest.raises(KeyboardInterrupt):
        gpu.kernel_times(job_makers(bench, SMALL), CPU, lambda: next(polls))


def test_a_measurement_keeps_to_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_BUDGET_S", -1.0)
    bench = Bench.on(CPU, torch.bfloat16, SMALL.pool_bytes)
    assert gpu.kernel_times(job_makers(bench, SMALL), CPU, _never) == ([], ())


def test_attention_is_described_by_the_implementation_that_runs() -> None:
    """The one that torch selects here; in bf16, a CPU has `flash` and `math`."""
    bench = Bench.on(CPU, torch.bfloat16, SMALL.pool_bytes)
    for size in SMALL.attentions:
        assert attention_job(bench, size).kernel.implementation in ("flash", "math")
        chosen = attention_job(bench, size, torch.nn.attention.SDPBackend.MATH)
        assert chosen.kernel.implementation == "math"
        assert chosen.runs[0]().shape == chosen.shapes[0]  # type: ignore[attr-defined]


def test_all_buffers_fit_in_the_memory_that_is_asked_for() -> None:
    """Of each kernel: its operands and its result, beside the pool of weights."""
    bench = Bench.on(torch.device("meta"), torch.bfloat16, FULL.pool_bytes)
    jobs = [make() for make in job_makers(bench)]
    assert max(job.kernel.bytes for job in jobs) + FULL.pool_bytes < FULL.needed_bytes
    assert 300 < len(jobs) < 500
    sizes = {job.kernel.shape[0] for job in jobs if job.kernel.kind == "matmul"}
    assert {1, 8192} <= sizes
    steps = {job.kernel.shape[2] for job in jobs if job.kernel.kind == "attention decode"}
    assert {64, 96, 128, 256} <= steps


def test_a_gpu_needs_free_memory() -> None:
    cuda_device.check_memory("GPU", 4 * GIB, 4 * GIB, 8 * GIB)
    with pytest.raises(CannotMeasure, match=r"GPU cannot be measured: it is too small: it needs 4"):
        cuda_device.check_memory("GPU", 4 * GIB, 2 * GIB, 3 * GIB)
    with pytest.raises(CannotMeasure, match=r"it is busy: it needs 4.0 GiB.*2.0 of 80.0 GiB are"):
        cuda_device.check_memory("GPU", 4 * GIB, 2 * GIB, 80 * GIB)


def test_a_gpu_whose_times_vary_is_busy() -> None:
    steady = [Timings((1.0, 1.1, 1.2)), Timings((1.0, 1.0, 9.0)), Timings((2.0, 2.1, 2.2))]
    gpu.require_steady("GPU", steady)
    shared = [Timings((1.0, 1.9)), Timings((1.0, 1.0)), Timings((1.0, 2.3))]
    with pytest.raises(CannotMeasure, match=r"vary by a factor of 1.9; end what else") as error:
        gpu.require_steady("GPU", shared)
    assert "local-cpu" in str(error.value)


@pytest.fixture
def gpu_with_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA X")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * GIB, 12 * GIB))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (torch.OutOfMemoryError("tried"), "it is busy: another program took its memory meanwhile"),
        (RuntimeError("CUDA error: no kernel image\nCompile with"), "CUDA error: no kernel image;"),
    ],
)
def test_a_failure_of_the_gpu_is_one_line(
    error: Exception, line: str, gpu_with_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(gpu, "_measure", fail)
    with pytest.raises(CannotMeasure, match=line) as refused:
        gpu.measure()
    assert str(refused.value).startswith("hardware: NVIDIA X cannot be measured: ")
    assert "\n" not in str(refused.value)


def test_a_busy_gpu_is_refused_before_anything_runs(
    gpu_with_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (GIB, 12 * GIB))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(CannotMeasure, match=r"it is busy: it needs 4.0 GiB of free memory"):
        llmsim.trace(CONFIGS["qwen3"](), context=8, hardware="local")


def test_an_interrupted_measurement_stops(
    gpu_with_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(device: object, grid: object, stopped: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        if stopped():
            raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "_measure", interrupted)
    # A run in the background of a shell ignores interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            gpu.measure()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_gpu_whose_driver_refuses_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: object = None) -> str:
        raise RuntimeError("CUDA error: device is busy\nCUDA kernel errors might be")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", refuse)
    with pytest.raises(CannotMeasure, match="CUDA error: device is busy;"):
        cuda_device.cuda_name()


def test_a_sample_is_without_the_gap_before_it() -> None:
    job = Job("add", _kernel(), (), "bfloat16", ())
    timed = [(job, Timings((3e-6, 5e-6, 4e-6))), (job, Timings((1e-6,)))]
    found = gpu.samples(timed, 1.5e-6)
    assert found[0].kernel is job.kernel
    assert found[0].seconds == pytest.approx(2.5e-6)
    assert found[1].seconds > 0


def test_passes_of_models_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = transformers.Qwen3ForCausalLM(CONFIGS["qwen3"]()).eval()
    monkeypatch.setattr("llmsim_magic.capture.measure.model_passes.build", lambda *_: model)
    with torch.inference_mode():
        found = [*model_passes(["a"], SMALL.workloads, CPU, torch.bfloat16, _never)]
        with pytest.raises(KeyboardInterrupt):
            next(model_passes(["a"], SMALL.workloads, CPU, torch.bfloat16, lambda: True))
    assert [each.workload for each in found] == list(SMALL.workloads)
    assert all((each.launch, each.dtype) == ("eager", "bfloat16") for each in found)
    assert all(0 < each.seconds < 1 for each in found)


def test_a_listed_gpu_has_the_rates_of_its_datasheet() -> None:
    known = accelerators.find("H100-SXM")
    properties = _properties("NVIDIA H100 80GB HBM3", 79.1)
    found = cuda_device.cuda_accelerator(properties, 2.9e12, {"bf16": 7e14}, "2.11.0")
    assert found.name == "NVIDIA H100 80GB HBM3"
    assert found.peak_flops == known.peak_flops
    assert found.bandwidth_bytes_per_s == known.bandwidth_bytes_per_s
    assert found.memory_bytes == properties.total_memory
    assert "2900 GB/s, 700 TFLOP/s in bf16, measured here with torch 2.11.0" in found.source


@pytest.mark.parametrize(
    ("major", "minor", "architecture"),
    [(7, 5, "turing"), (8, 9, "ada"), (9, 0, "hopper"), (12, 0, "blackwell-gb20x")],
)
def test_another_gpu_has_the_rates_that_were_measured(
    major: int, minor: int, architecture: str
) -> None:
    properties = _properties("NVIDIA GeForce RTX 4070", 12, major=major, minor=minor)
    found = cuda_device.cuda_accelerator(properties, 4e11, {"bf16": 5e13, "fp32": 2e13}, "2.11.0")
    assert (found.vendor, found.kind, found.architecture) == ("NVIDIA", "gpu", architecture)
    assert architecture in {each.architecture for each in accelerators.entries().values()}
    assert found.peak("bfloat16") == 5e13
    assert found.bandwidth_bytes_per_s == 4e11
    assert (found.llc_bytes, found.compute_units) == (50 * 2**20, 132)


def test_an_architecture_of_the_future_is_named_by_its_capability() -> None:
    properties = _properties("NVIDIA X", 12, major=99, minor=1, L2_cache_size=0)
    found = cuda_device.cuda_accelerator(properties, 4e11, {}, "2.11.0")
    assert found.architecture == "compute capability 99.1"
    assert found.llc_bytes is None


def test_a_whole_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU in place of the GPU, with the properties of a GPU."""
    properties = _properties("NVIDIA GeForce RTX 4070", 12, major=8, minor=9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(gpu, "_COPY_BYTES", 2**20)
    monkeypatch.setattr(gpu, "_FP32_SIZE", 64)
    monkeypatch.setattr(gpu, "_MOST_SPREAD", float("inf"))
    found = gpu._measure(CPU, SMALL, _never)
    assert found.accelerator.peak_flops.keys() == {"bf16", "fp32"}
    assert {each.kernel.kind for each in found.samples} == MEASURED
    assert all(each.seconds > 0 for each in found.samples)
    assert found.left_out == ()
