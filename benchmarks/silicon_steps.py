"""Reads the times of training steps on a GPU, fits the host's constants to them, and scores them.

Rows are those of `silicon_training`, with medians in seconds: `forward_s`, `forward_backward_s`
and `step_s`.
"""

import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import NormalDist

import numpy as np

from benchmarks.scored import Scored
from benchmarks.silicon_rows import Row, read_rows
from benchmarks.silicon_training import trace_of_step
from llmsim_magic.analyses.time.calibration_fit import NOMINAL
from llmsim_magic.analyses.torch_time.launch_time import operator_work
from llmsim_magic.analyses.torch_time.training_fit import StepSample, fit_training, predict_step
from llmsim_magic.catalog import accelerators
from llmsim_magic.catalog.torch_calibration import torch_calibration
from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.calibration import Band
from llmsim_magic.records.hardware.torch_kernel import TrainingConstants

FITTED = Path(__file__).parent / "fitted_training.txt"
MEASURES = ("forward", "forward_backward", "step")
STEP_CLASSES = ("train_time", "train_forward_time", "train_forward_backward_time")
_CLASS_OF = dict(zip(("step", "forward", "forward_backward"), STEP_CLASSES, strict=True))
# Where the fit begins: a module's call and an op of Python in round figures, twice as much for an
# op of backward with its node, and half as much again for hooks on saved tensors.
START = TrainingConstants(
    host_module_s=30e-6,
    host_op_s=15e-6,
    host_backward_s=30e-6,
    host_tensor_s=1e-6,
    checkpoint_share=1.5,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredStep:
    """A measured step: its row and its work."""

    row: Row
    sample: StepSample

    @property
    def model(self) -> str:
        return str(self.row["model"])


def digest(row: Row) -> str:
    """A number that tells a row from all others, so that no row is scored by what has seen it."""
    names = ("device", "model", "batch", "context", "checkpoint", "lora", "step_s")
    return f"{zlib.crc32(json.dumps([row.get(name) for name in names]).encode()):08x}"


def timed_rows(folder: Path) -> list[Row]:
    """The rows of training steps whose time was measured."""
    return [row for row in read_rows(folder, "train") if "step_s" in row]


def measured_steps(rows: Sequence[Row], accelerator: Accelerator) -> Iterator[MeasuredStep]:
    """Every step that can be traced."""
    for row in rows:
        try:
            work = operator_work(trace_of_step(row), accelerator)
        except LlmsimError:
            continue  # which the table of their memory says
        seconds = {name: row[f"{name}_s"] for name in MEASURES}
        yield MeasuredStep(row=row, sample=StepSample(work=work, seconds=seconds))


def fitted_training(steps: Sequence[MeasuredStep], accelerator: Accelerator) -> TrainingConstants:
    """The constants of the host by some steps."""
    constants = torch_calibration().constants
    return fit_training([each.sample for each in steps], accelerator, constants, START)


def calibrated(folder: Path) -> tuple[TrainingConstants, Band]:
    """Fit the constants, earn the band by leaving one model out, and note the rows as seen."""
    rows = timed_rows(folder)
    accelerator = _device_of(rows)
    steps = list(measured_steps(rows, accelerator))
    logs = _left_out_logs(steps, accelerator)
    for name, some in logs.items():
        errors = np.abs(np.expm1(-np.array(some)))
        print(
            f"training, {name}, one model left out: median {np.median(errors):.1%}, n {len(some)}"
        )
    FITTED.write_text("".join(f"{each}\n" for each in sorted(map(digest, rows))), encoding="utf-8")
    return fitted_training(steps, accelerator), predictive_band(logs)


def predictive_band(logs: Mapping[str, Sequence[float]]) -> Band:
    """The factors that should contain the nominal share of further steps.

    A few steps do not show the ends of their distribution. So it is taken as normal, its spread is
    that of all measures, and its ends are those of Student's t for as many steps.

    Args:
        logs: log(measured ÷ predicted) of each step, by measure.
    """
    every = np.concatenate([np.array(some) for some in logs.values()])
    number = min(map(len, logs.values()))
    spread = float(np.sqrt(np.mean(every**2))) * math.sqrt(1 + 1 / number)
    end = math.exp(_students_t((1 + NOMINAL) / 2, number - 1) * spread)
    return Band(round(1 / end, 4), round(end, 4))


def _students_t(share: float, freedom: int) -> float:
    """Quantile of Student's t by the expansion of Cornish and Fisher."""
    z = NormalDist().inv_cdf(share)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2


def _left_out_logs(
    steps: Sequence[MeasuredStep], accelerator: Accelerator
) -> dict[str, list[float]]:
    """log(measured ÷ predicted) by measure, each step by the fit to those of other models."""
    logs: dict[str, list[float]] = {name: [] for name in MEASURES}
    for model in dict.fromkeys(each.model for each in steps):
        training = _without(model, steps, accelerator)
        for each in steps:
            if each.model == model:
                for name, guess in _predicted(each, accelerator, training).items():
                    logs[name].append(math.log(each.sample.seconds[name] / guess))
    return logs


def of_steps(folder: Path) -> Iterator[Scored]:
    """Steps, forwards, and both with backward.

    Rows that the shipped constants were fitted to are predicted by fits without their model.
    """
    rows = timed_rows(folder)
    if not rows:
        return
    accelerator, known = _device_of(rows), torch_calibration()
    steps = list(measured_steps(rows, accelerator))
    seen = set(FITTED.read_text("utf-8").split())
    fitted = [each for each in steps if digest(each.row) in seen]
    refitted = cache(lambda model: _without(model, fitted, accelerator))
    for each in steps:
        training = refitted(each.model) if each in fitted else known.training
        for name, guess in _predicted(each, accelerator, training).items():
            measured = each.sample.seconds[name]
            low, high = guess * known.steps.low, guess * known.steps.high
            yield Scored(_CLASS_OF[name], accelerator.name, measured, guess, low, high)


def _without(
    model: str, steps: Sequence[MeasuredStep], accelerator: Accelerator
) -> TrainingConstants:
    return fitted_training([each for each in steps if each.model != model], accelerator)


def _predicted(
    step: MeasuredStep, accelerator: Accelerator, training: TrainingConstants
) -> dict[str, float]:
    return predict_step(step.sample, accelerator, torch_calibration().constants, training)


def _device_of(rows: Sequence[Row]) -> Accelerator:
    names = {str(row["device"]) for row in rows}
    if len(names) != 1:
        raise SystemExit(f"one device at a time, not {', '.join(sorted(names))}")
    return accelerators.find(names.pop())
