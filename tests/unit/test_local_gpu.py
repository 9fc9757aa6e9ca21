"""`--hardware local` on a machine with a GPU that was measured."""

import statistics
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import llmsim_magic as llmsim
from llmsim_magic.analyses.torch_time.constants_fit import predict_pass
from llmsim_magic.analyses.torch_time.kernel_time import kernel_time
from llmsim_magic.analyses.torch_time.transformers_time import transformers_time
from llmsim_magic.capture.measure import cuda_device, gpu
from llmsim_magic.capture.measure.bench import Bench
from llmsim_magic.capture.measure.grid import FULL, job_makers
from llmsim_magic.capture.measure.model_passes import ModelPass
from llmsim_magic.catalog import accelerators
from llmsim_magic.catalog.torch_calibration import torch_calibration
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.torch_kernel import TorchCalibration, TorchConstants, TorchSample
from llmsim_magic.records.trace.workload import Workload
from llmsim_magic.simulate.hardware import local_device
from tests.helpers.small_models import CONFIGS

PROPERTIES = SimpleNamespace(
    name="NVIDIA X",
    total_memory=12 * 2**30,
    major=8,
    minor=9,
    multi_processor_count=46,
    L2_cache_size=36 * 2**20,
)


def _slower() -> TorchConstants:
    """Constants of a device that gets less of its datasheet, with a host half as fast."""
    shipped = torch_calibration().constants
    return replace(
        shipped,
        memory_share=shipped.memory_share * 0.8,
        matmul_share=shipped.matmul_share * 0.7,
        host_kernel_s=shipped.host_kernel_s * 2,
        host_view_s=shipped.host_view_s * 2,
        host_call_s=shipped.host_call_s * 2,
    )


@pytest.fixture(scope="module")
def slower_gpu() -> gpu.GpuMeasurement:
    """A measurement that is what `_slower` predicts."""
    accelerator = replace(accelerators.find("A100-SXM4-80GB"), name="NVIDIA X")
    constants = _slower()
    bench = Bench.on(torch.device("meta"), torch.bfloat16, FULL.pool_bytes)
    kernels = [make().kernel for make in job_makers(bench)[::3]]
    passes = []
    for workload in (Workload("prefill", 1, 128), Workload("decode", 8, 512)):
        for launch in ("eager", "graph"):
            unknown = ModelPass("gpt2", "bfloat16", workload, launch, 1.0)
            sample = local_device._pass_sample(unknown, accelerator)
            seconds = predict_pass(sample, accelerator, constants)
            passes.append(replace(unknown, seconds=seconds))
    return gpu.GpuMeasurement(
        accelerator=accelerator,
        samples=tuple(
            TorchSample(kernel, kernel_time(kernel, accelerator, constants).seconds)
            for kernel in kernels
        ),
        passes=tuple(passes),
        gap_s=0.0,
        left_out=("no grouped products",),
    )


@pytest.mark.slow
def test_a_measured_gpu_predicts_its_own_kernels_and_passes(
    slower_gpu: gpu.GpuMeasurement,
) -> None:
    """Also those that were not measured."""
    found = local_device.torch_calibration_of(slower_gpu)
    accelerator, truth = slower_gpu.accelerator, _slower()
    bench = Bench.on(torch.device("meta"), torch.bfloat16, FULL.pool_bytes)
    errors = [
        abs(
            kernel_time(kernel, accelerator, found.constants).seconds
            / kernel_time(kernel, accelerator, truth).seconds
            - 1
        )
        for kernel in (make().kernel for make in job_makers(bench)[1::3])
    ]
    assert statistics.median(errors) < 0.05
    trace = llmsim.trace("gpt2", phase="decode", batch=4, context=256).trace
    known = replace(found, constants=truth)
    for launch in ("eager", "graph"):
        guess = transformers_time(trace, accelerator, launch, found)
        assert guess.seconds == pytest.approx(
            transformers_time(trace, accelerator, launch, known).seconds, rel=0.15
        )
        shipped = transformers_time(trace, accelerator, launch)
        assert abs(shipped.seconds - guess.seconds) > 0.1 * guess.seconds
    assert found.device == "NVIDIA X"
    assert found.kernels.low > 0.8
    assert found.passes == torch_calibration().passes
    assert found.models == ("gpt2",)
    assert found.sources[1] == "kernels that were not measured: no grouped products"


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Accelerator:
    """A machine with a GPU, which was measured."""
    accelerator = cuda_device.cuda_accelerator(
        PROPERTIES, 4e11, {"bf16": 5e13, "fp32": 2e13}, "2.11.0"
    )
    found = (accelerator, replace(torch_calibration(), device="NVIDIA X"))
    monkeypatch.setattr(cuda_device, "cuda_name", lambda: "NVIDIA X")
    monkeypatch.setattr(local_device, "_measured_gpu", lambda: found)
    return accelerator


def test_local_is_the_gpu_where_there_is_one(
    fake_gpu: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_device, "_measured_cpu", lambda: ("the CPU", "its calibration"))
    accelerator, calibration = local_device.local()
    assert accelerator == fake_gpu
    assert isinstance(calibration, TorchCalibration)
    assert calibration.device == fake_gpu.name
    assert local_device.local("local-cpu") == ("the CPU", "its calibration")
    message = local_device.benchmark_message("local")
    assert message == (
        "benchmarking kernels on the GPU of this machine, NVIDIA X (up to 2 minutes, once per "
        "session)"
    )
    assert "the CPU of this machine (about 30 seconds" in local_device.benchmark_message(
        "local-cpu"
    )


def test_a_pass_is_predicted_on_the_gpu_of_this_machine(fake_gpu: Accelerator) -> None:
    said: list[str] = []
    report = llmsim.trace(
        CONFIGS["qwen3"](),
        context=8,
        dtype="bfloat16",
        hardware="local",
        progress=said.append,
    )
    assert set(report.latency["device"]) == {"NVIDIA X"}
    assert (report.latency["time_low_s"] < report.latency["time_high_s"]).all()
    executions = report.latency[["runtime", "launch"]].drop_duplicates().values.tolist()
    assert executions == [["transformers", "eager"], ["transformers", "graph"], ["vllm", "graph"]]
    measured = report.latency.set_index("runtime")["measured"]
    assert measured["transformers"].all()
    assert not measured["vllm"].any()
    assert local_device.benchmark_message("local") in said


def test_a_device_of_this_machine_is_there_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """`local` and `local-cpu` are the same on a machine without a GPU."""
    found = accelerators.find("2-core cloud VM")
    monkeypatch.setattr(cuda_device, "cuda_name", lambda: None)
    monkeypatch.setattr(local_device, "_measured_cpu", lambda: (found, None))
    report = llmsim.trace(CONFIGS["qwen3"](), context=8, hardware=("local", "local-cpu"))
    assert [device.name for device, _ in report.costing.devices] == [found.name]


def test_local_is_the_cpu_of_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_device, "cuda_name", lambda: None)
    monkeypatch.setattr(local_device, "_measured_cpu", lambda: ("the CPU", "its calibration"))
    assert local_device.local() == ("the CPU", "its calibration")
    assert "the CPU of this machine" in local_device.benchmark_message("local")
