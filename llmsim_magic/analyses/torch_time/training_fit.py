"""Fits what the host takes for training steps to steps that were measured on one device.

The constants of the device itself are those that forwards and single kernels were fitted to.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np

from llmsim_magic.analyses.torch_time.constants_fit import Array, damped, least_squares
from llmsim_magic.analyses.torch_time.launch_time import (
    OperatorRun,
    OperatorWork,
    operator_seconds,
    run_operators,
)
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.torch_kernel import TorchConstants, TrainingConstants

_PRIOR_WEIGHT = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSample:
    """A measured training step that the host starts kernel by kernel.

    Attributes:
        work: of its operators, with replayed layers.
        seconds: of `forward`, `forward_backward` and `step`, as far as measured.
    """

    work: tuple[OperatorWork, ...]
    seconds: Mapping[str, float]


def fit_training(
    samples: Sequence[StepSample],
    accelerator: Accelerator,
    constants: TorchConstants,
    start: TrainingConstants,
) -> TrainingConstants:
    """Fit the constants of the host to steps; what these do not determine stays at its start."""
    runs = [run_operators(each.work, accelerator, constants) for each in samples]
    first = np.log(np.array(astuple(start)))

    def residuals(theta: Array) -> Array:
        training = _constants(theta)
        logs = [
            math.log(predicted / each.seconds[name])
            for each, run in zip(samples, runs, strict=True)
            for name, predicted in _seconds(run, constants, training).items()
            if name in each.seconds
        ]
        return np.concatenate([damped(np.array(logs)), _PRIOR_WEIGHT * (theta - first)])

    return _constants(least_squares(residuals, first))


def _constants(theta: Array) -> TrainingConstants:
    """Constants from their logarithms."""
    names = [each.name for each in fields(TrainingConstants)]
    values = [float(f"{value:.6g}") for value in np.exp(theta).tolist()]
    return TrainingConstants(**dict(zip(names, values, strict=True)))


def predict_step(
    sample: StepSample,
    accelerator: Accelerator,
    constants: TorchConstants,
    training: TrainingConstants,
) -> dict[str, float]:
    """Predicted seconds of `forward`, `forward_backward` and `step`."""
    return _seconds(run_operators(sample.work, accelerator, constants), constants, training)


def _seconds(
    runs: Sequence[OperatorRun], constants: TorchConstants, training: TrainingConstants
) -> dict[str, float]:
    each = operator_seconds(runs, "eager", constants, training)
    found = {"forward": 0.0, "forward_backward": 0.0, "step": math.fsum(each)}
    for run, seconds in zip(runs, each, strict=True):
        if run.work.part == "forward":
            found["forward"] += seconds
        if run.work.part != "optimizer":
            found["forward_backward"] += seconds
    return found
