"""Fits the constants of PyTorch's kernels to measured kernels and passes of one device.

Least squares on log(seconds) by Levenberg–Marquardt on the logarithms of the constants. What the
measurements do not determine stays at its start.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsim_magic.analyses.torch_time.kernel_time import kernel_time
from llmsim_magic.analyses.torch_time.launch_time import (
    OperatorWork,
    operator_seconds,
    run_operators,
)
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.torch_kernel import (
    KernelConstants,
    TorchConstants,
    TorchSample,
)

Array = NDArray[np.float64]

_PASS_WEIGHTS = {"graph": 2.0, "eager": 0.5}  # a host varies by half from run to run
_KERNEL_WEIGHT = 0.5
_PRIOR_WEIGHT = 0.1
# Large copies and products tell the shares; what else they do not determine makes up for itself.
_PRIOR_WEIGHTS = {
    "memory_share": 2.0,
    "matmul_memory_share": 1.0,
    "matmul_share": 1.0,
    "attention_length": 2.0,
    "gap_s": 0.3,
    "hot_share": 0.3,
}
_OUTLIER = 0.3  # residuals beyond it count as magnitudes, not as squares
_STEP = 1e-3
_MAX_CHANGE = 0.7  # of a logarithm in one step
_ITERATIONS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class PassSample:
    """One measured pass: the work of its operators, its launch, and its seconds."""

    work: tuple[OperatorWork, ...]
    launch: str
    seconds: float


def fit_constants(
    samples: Sequence[TorchSample],
    passes: Sequence[PassSample],
    accelerator: Accelerator,
    start: TorchConstants,
) -> TorchConstants:
    """Fit constants to single kernels and to passes.

    Args:
        samples: Measured kernels.
        passes: Measured passes; none for a device whose kernels alone were measured.
        accelerator: The device.
        start: Initial constants, kept where nothing determines them.
    """
    vector = _Vector(start)

    def residuals(theta: Array) -> Array:
        constants = vector.constants(theta)
        logs = [
            _KERNEL_WEIGHT * math.log(predicted / measured)
            for predicted, measured in _kernels(samples, accelerator, constants)
        ]
        logs += [
            _PASS_WEIGHTS[each.launch]
            * math.log(predict_pass(each, accelerator, constants) / each.seconds)
            for each in passes
        ]
        prior = vector.weights * (theta - vector.start)
        return np.concatenate([damped(np.array(logs)), prior])

    return vector.constants(least_squares(residuals, vector.start))


def predict_pass(sample: PassSample, accelerator: Accelerator, constants: TorchConstants) -> float:
    """Predicted seconds of a pass."""
    runs = run_operators(sample.work, accelerator, constants)
    return math.fsum(operator_seconds(runs, sample.launch, constants))


def _kernels(
    samples: Sequence[TorchSample], accelerator: Accelerator, constants: TorchConstants
) -> list[tuple[float, float]]:
    return [
        (kernel_time(each.kernel, accelerator, constants).seconds, each.seconds) for each in samples
    ]


def damped(logs: Array) -> Array:
    """Residuals whose squares grow only linearly beyond `_OUTLIER`."""
    size = np.abs(logs)
    damped = np.sqrt(np.maximum(2 * _OUTLIER * size - _OUTLIER**2, 0.0))
    return np.asarray(np.where(size <= _OUTLIER, logs, np.sign(logs) * damped))


class _Vector:
    """Constants as a vector of logarithms; exponents, which may be negative, are as they are."""

    _SIGNED = ("attention_length",)

    def __init__(self, start: TorchConstants) -> None:
        self._start = start
        self._scalars = [each.name for each in fields(start) if each.name != "kinds"]
        self._kinds = list(start.kinds)
        values = [self._encoded(name, getattr(start, name)) for name in self._scalars]
        for kind in start.kinds.values():
            values += [math.log(kind.start_s), math.log(kind.element_flops or 1.0)]
        self.start = np.array(values)
        self.weights = np.full(len(values), _PRIOR_WEIGHT)
        for name, weight in _PRIOR_WEIGHTS.items():
            self.weights[self._scalars.index(name)] = weight

    def _encoded(self, name: str, value: float) -> float:
        return value if name in self._SIGNED else math.log(value)

    def constants(self, theta: Array) -> TorchConstants:
        numbers = iter(theta.tolist())
        scalars: dict[str, Any] = {}
        for name in self._scalars:
            value = next(numbers)
            scalars[name] = _rounded(value if name in self._SIGNED else math.exp(value))
        kinds = {}
        for name in self._kinds:
            start_s, element = _rounded(math.exp(next(numbers))), math.exp(next(numbers))
            uses_elements = self._start.kinds[name].element_flops > 0
            kinds[name] = KernelConstants(
                start_s=start_s, element_flops=_rounded(element) if uses_elements else 0.0
            )
        return TorchConstants(kinds=kinds, **scalars)


def _rounded(number: float) -> float:
    return float(f"{number:.6g}")


def least_squares(residuals: Callable[[Array], Array], start: Array) -> Array:
    """The vector near `start` with the least sum of squared residuals, by Levenberg–Marquardt."""
    theta, damping = start, 0.1
    here = residuals(theta)
    for _ in range(_ITERATIONS):
        slopes = np.stack(
            [(residuals(theta + _STEP * unit) - here) / _STEP for unit in np.eye(len(theta))], 1
        )
        gradient, curvature = slopes.T @ here, slopes.T @ slopes
        scale = np.diag(np.diag(curvature) + 1e-6)
        for _ in range(6):
            change = np.linalg.solve(curvature + damping * scale, -gradient)
            trial = theta + np.clip(change, -_MAX_CHANGE, _MAX_CHANGE)
            tried = residuals(trial)
            if tried @ tried < here @ here:
                is_small = here @ here - tried @ tried < 1e-3 * (here @ here)
                theta, here, damping = trial, tried, damping / 4
                break
            damping *= 4
        else:
            break
        if is_small:
            break
    return theta
