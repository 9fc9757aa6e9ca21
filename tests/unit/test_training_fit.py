"""The constants of the host in training are found from the times that they explain."""

import math
from dataclasses import fields, replace
from functools import cache

import pytest

import llmsim_magic as llmsim
from benchmarks.silicon_steps import digest, predictive_band
from llmsim_magic.analyses.torch_time.launch_time import OperatorWork, host_seconds, operator_work
from llmsim_magic.analyses.torch_time.training_fit import StepSample, fit_training, predict_step
from llmsim_magic.catalog import accelerators
from llmsim_magic.catalog.torch_calibration import torch_calibration
from llmsim_magic.records.hardware.torch_kernel import TorchKernel
from tests.helpers.small_models import CONFIGS

H100 = accelerators.find("H100-SXM5-80GB")
CONSTANTS, TRAINING = torch_calibration().constants, torch_calibration().training
KERNEL = TorchKernel(kind="pointwise", bytes=1, elements=1)


@cache
def sample(name: str, *, checkpointing: bool = False) -> StepSample:
    trace = llmsim.trace(
        CONFIGS[name](), phase="train", context=8, precision="bf16", checkpointing=checkpointing
    ).trace
    return StepSample(work=operator_work(trace, H100), seconds={})


def test_a_fit_finds_the_constants_that_explain_the_times() -> None:
    slower = replace(
        TRAINING,
        host_module_s=2 * TRAINING.host_module_s,
        host_op_s=0.5 * TRAINING.host_op_s,
        host_backward_s=1.5 * TRAINING.host_backward_s,
    )
    samples = [
        replace(each, seconds=predict_step(each, H100, CONSTANTS, slower))
        for each in (sample("llama"), sample("llama", checkpointing=True), sample("gpt2"))
    ]
    found = fit_training(samples, H100, CONSTANTS, TRAINING)
    for each in samples:
        for name, seconds in predict_step(each, H100, CONSTANTS, found).items():
            assert seconds == pytest.approx(each.seconds[name], rel=0.1)  # a prior holds it back
    assert found.host_backward_s == pytest.approx(slower.host_backward_s, rel=0.15)


def test_what_no_step_determines_stays_at_its_start() -> None:
    measured = replace(sample("llama"), seconds={"step": 1.0})
    found = fit_training([measured], H100, CONSTANTS, TRAINING)
    assert found.checkpoint_share == pytest.approx(TRAINING.checkpoint_share, rel=1e-4)


def test_forward_and_backward_are_parts_of_a_step() -> None:
    found = predict_step(sample("gpt2"), H100, CONSTANTS, TRAINING)
    assert 0 < found["forward"] < found["forward_backward"] < found["step"]


def test_the_host_calls_modules_in_forward_ops_in_backward_and_lists_in_an_optimizer() -> None:
    def host(**options: object) -> float:
        work = OperatorWork(kernels=(KERNEL,), sent=(), views=0, ops=1, **options)  # type: ignore[arg-type]
        return host_seconds(work, CONSTANTS, TRAINING)

    called = TRAINING.host_module_s + TRAINING.host_op_s
    assert host(is_module=True) == pytest.approx(called)
    assert host() == pytest.approx(TRAINING.host_op_s)
    assert host(part="backward") == pytest.approx(TRAINING.host_backward_s)
    again = host(is_module=True, part="recompute", is_checkpointed=True)
    assert again == pytest.approx(called * TRAINING.checkpoint_share)
    listed = TRAINING.host_op_s + 7 * TRAINING.host_tensor_s
    assert host(part="optimizer", listed=7) == pytest.approx(listed)


def test_an_op_of_several_kernels_is_dispatched_once() -> None:
    one, two = (
        host_seconds(
            OperatorWork(kernels=number * (KERNEL,), sent=(), views=0, ops=1, part="backward"),
            CONSTANTS,
            TRAINING,
        )
        for number in (1, 2)
    )
    assert two - one == pytest.approx(CONSTANTS.host_kernel_s)


def test_every_constant_of_the_host_is_positive() -> None:
    assert all(getattr(TRAINING, each.name) > 0 for each in fields(TRAINING))
    assert TRAINING.checkpoint_share > 1


def test_a_band_holds_nine_of_ten_of_a_normal_distribution() -> None:
    many = {"step": [0.1, -0.1] * 5_000}
    assert math.log(predictive_band(many).high) == pytest.approx(0.1645, rel=0.01)
    few = {"step": [0.1, -0.1] * 4}  # 8 steps: Student's t with 7 degrees of freedom is 1.895
    expected = 1.895 * 0.1 * math.sqrt(1 + 1 / 8)
    assert math.log(predictive_band(few).high) == pytest.approx(expected, rel=0.01)
    assert predictive_band(few).low == pytest.approx(1 / predictive_band(few).high, rel=1e-3)


ROW = {
    "model": "gpt2",
    "batch": 2,
    "context": 16,
    "dtype": "torch.float32",
    "amp": False,
    "lora": 0,
    "optimizer": "SGD",
    "checkpoint": False,
    "over": {"attn_implementation": "eager"},
    "step_s": 0.1,
}


def test_a_row_is_known_by_what_was_measured_and_how_long_it_took() -> None:
    assert digest(ROW) == digest(ROW | {"peak_step_0": 1})
    assert digest(ROW) != digest(ROW | {"step_s": 0.2})
    assert digest(ROW) != digest(ROW | {"checkpoint": True})
