"""Predicted time of a pass as transformers runs it: in a CUDA graph, or started from Python."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TypeVar

from llmsim_magic.analyses.kernels.elementwise_work import functional_name
from llmsim_magic.analyses.kernels.memoize import memoize, memoize_by_options
from llmsim_magic.analyses.kernels.training_kernels import list_length
from llmsim_magic.analyses.time.kernel_sizes import StoredDtypes, collective_shape, view_counts
from llmsim_magic.analyses.time.pass_time import counted
from llmsim_magic.analyses.time.roofline import estimate
from llmsim_magic.analyses.torch_time.kernel_time import KernelTime, kernel_time
from llmsim_magic.analyses.torch_time.kernels import kernels_on
from llmsim_magic.catalog.calibration import calibration
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.kernel_shapes import Collective
from llmsim_magic.records.hardware.torch_kernel import (
    TorchConstants,
    TorchKernel,
    TrainingConstants,
)
from llmsim_magic.records.trace.recorded import Pass
from llmsim_magic.records.trace.trace import Trace

_IDLE_SHARE = 0.3  # of a call: dropout in inference against a linear layer, 3.2 to 10.4 µs on a CPU
_SEVERAL_LAUNCHES = ("sort", "topk", "gathered", "grouped matmul")
Each = TypeVar("Each")
Result = TypeVar("Result")
_FORWARDS = ("forward", "recompute")
_SKIPS_MASKS = (5, 18)  # the first release of transformers that skips masks while it is captured


@dataclass(frozen=True, kw_only=True)
class OperatorWork:
    """The kernels of an operator, its exchanges with other devices, and its number of views.

    Attributes:
        sent: exchanges that the next operator waits for.
        overlapped: exchanges of data parallelism, which run beside the kernels of later operators.
        part: the pass of a training step that runs it.
        ops: how many ATen ops start the kernels.
        is_module: whether it is a call of a module, and not of a function.
        is_checkpointed: whether it runs again in backward, or is such a second run.
        listed: tensors in the lists that an optimizer's kernels work on.
    """

    kernels: tuple[TorchKernel, ...]
    sent: tuple[Collective, ...]
    views: int
    overlapped: tuple[Collective, ...] = ()
    part: Pass = "forward"
    ops: int = 0
    is_module: bool = False
    is_checkpointed: bool = False
    listed: int = 0

    @property
    def exchanges(self) -> tuple[Collective, ...]:
        return (*self.sent, *self.overlapped)

    @cached_property
    def flops(self) -> float:
        return float(sum(kernel.flops for kernel in self.kernels))

    @cached_property
    def bytes(self) -> float:
        return float(sum(kernel.bytes for kernel in self.kernels))

    @cached_property
    def dtype(self) -> str:
        """The arithmetic of the first product."""
        return next((kernel.dtype for kernel in self.kernels if kernel.flops), "bf16")

    @cached_property
    def launches(self) -> int:
        """How many kernels the host starts."""
        return sum(kernel.launches for kernel in self.kernels)

    @cached_property
    def gathers(self) -> int:
        """How many kernels launch several of their own."""
        return sum(kernel.kind in _SEVERAL_LAUNCHES for kernel in self.kernels)


@dataclass(frozen=True, kw_only=True)
class OperatorRun:
    """The work of an operator with the times of its kernels and exchanges."""

    work: OperatorWork
    times: tuple[KernelTime, ...]
    sent_s: float

    @cached_property
    def kernels_s(self) -> float:
        """Seconds of all kernels, without gaps."""
        return math.fsum(time.seconds for time in self.times)

    @cached_property
    def last_s(self) -> float:
        """Seconds of the last kernel that is started."""
        return self.times[-1].seconds / self.work.kernels[-1].launches if self.times else 0.0

    @cached_property
    def arithmetic_s(self) -> float:
        """Seconds of the kernels that arithmetic bounds."""
        return math.fsum(time.seconds for time in self.times if time.binds == "compute")

    @cached_property
    def slowest(self) -> tuple[KernelTime, TorchKernel] | None:
        """The kernel that takes longest; None if there is none."""
        pairs = zip(self.times, self.work.kernels, strict=True)
        return max(pairs, key=_seconds, default=None)

    def device_s(self, gap_s: float, slower: float) -> float:
        """Seconds on the device, with a gap before each kernel and arithmetic `slower` times."""
        added_s = self.work.launches * gap_s + self.arithmetic_s * (slower - 1)
        return self.sent_s + self.kernels_s + added_s


def _seconds(pair: tuple[KernelTime, TorchKernel]) -> float:
    return pair[0].seconds


def makes_masks(launch: str, version: str) -> bool:
    """Whether a release of transformers makes masks under a launch that it skips otherwise.

    Up to 5.17 it takes a stream that a CUDA graph captures for a traced model, whose mask it may
    not look at, and repeats the keys and values of grouped heads for an attention that reads a
    mask.
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    is_old = found is not None and tuple(map(int, found.groups())) < _SKIPS_MASKS
    return launch == "graph" and is_old


def operator_work(
    trace: Trace,
    accelerator: Accelerator,
    *,
    stored: StoredDtypes | None = None,
    with_masks: bool = False,
) -> tuple[OperatorWork, ...]:
    """The work of each operator of the pass, in order, with replayed layers."""
    recorded = recorded_work(trace, accelerator.architecture, stored or StoredDtypes(), with_masks)
    return tuple(trace.expand_replays(recorded))


@memoize_by_options
def recorded_work(
    trace: Trace, architecture: str, stored: StoredDtypes, with_masks: bool
) -> tuple[OperatorWork, ...]:
    """The work of each recorded operator, on any device of an architecture."""
    kernels = kernels_on(trace.recorded, architecture, stored, with_masks)
    operators = trace.recorded.operators
    checkpointed = {each.path for each in operators if each.part == "recompute"}
    return tuple(
        OperatorWork(
            kernels=each,
            sent=sent,
            views=views,
            overlapped=overlapped,
            part=operator.part,
            ops=len(ops),
            is_module=operator.kind == "module" and operator.part in _FORWARDS,
            is_checkpointed=operator.part in _FORWARDS and operator.path in checkpointed,
            listed=listed,
        )
        for operator, ops, each, (sent, overlapped), views, listed in zip(
            operators,
            trace.recorded.kernels_by_operator,
            kernels,
            _exchanges(trace),
            view_counts(trace),
            _listed(trace),
            strict=True,
        )
    )


def run_operators(
    work: Sequence[OperatorWork], accelerator: Accelerator, constants: TorchConstants
) -> tuple[OperatorRun, ...]:
    """The time of each kernel; the operators of replayed layers share theirs.

    Raises:
        CannotPredict: If the catalogue lacks a figure of the device.
        InvalidValue: If the device cannot compute in a dtype.
    """
    price = cache(lambda kernel: kernel_time(kernel, accelerator, constants))

    def run(each: OperatorWork) -> OperatorRun:
        return OperatorRun(
            work=each,
            times=tuple(map(price, each.kernels)),
            sent_s=sum(estimate(size, accelerator, calibration()).seconds for size in each.sent),
        )

    distinct, steps = _distinct(work)
    runs = list(map(run, distinct))
    return tuple([runs[step] for step in steps])


def _distinct(values: Sequence[Each]) -> tuple[list[Each], list[int]]:
    """The different objects among several, and the index of each of the several in these."""
    by_id = {id(each): each for each in values}
    places = {key: place for place, key in enumerate(by_id)}
    return [*by_id.values()], [places[id(each)] for each in values]


def operator_seconds(
    runs: Sequence[OperatorRun],
    launch: str,
    constants: TorchConstants,
    training: TrainingConstants | None = None,
) -> list[float]:
    """Seconds of each operator under a launch, `graph` or `eager`."""
    distinct, steps = _distinct(runs)
    if launch == "eager":
        return eager_seconds(distinct, steps, constants, training)
    seconds = graph_seconds(distinct, steps, constants)
    return [seconds[step] for step in steps]


def graph_seconds(
    runs: Sequence[OperatorRun], steps: Sequence[int], constants: TorchConstants
) -> list[float]:
    """Seconds of each run in a CUDA graph, where the device never waits for the host.

    Args:
        runs: the different runs of operators.
        steps: for each operator of the pass, the index of its run.
        constants: of the device.
    """
    slower = _slower(runs, steps, constants)
    return [run.device_s(constants.gap_s, slower) for run in runs]


def eager_seconds(
    runs: Sequence[OperatorRun],
    steps: Sequence[int],
    constants: TorchConstants,
    training: TrainingConstants | None = None,
) -> list[float]:
    """Seconds of each operator of a pass whose kernels the host starts one by one.

    The host runs ahead of the device while the device is busy; where it does not, the device
    waits for it. They sum to the time until both are done.

    Args:
        runs: the different runs of operators.
        steps: for each operator of the pass, the index of its run.
        constants: of the device.
        training: of the device in training; None for a pass of inference.
    """
    slower = _slower(runs, steps, constants)
    each = [
        (
            host_seconds(run.work, constants, training),
            run.device_s(0.0, slower),
            run.last_s,
            bool(run.times or run.sent_s),
        )
        for run in runs
    ]
    host = device = before = 0.0
    seconds = []
    for step in steps:
        call_s, busy_s, last_s, is_started = each[step]
        start = host
        host += call_s
        if is_started:
            ready = (device if device > start else start) + busy_s
            device = ready if ready > host + last_s else host + last_s
        done = host if host > device else device
        seconds.append(done - before)
        before = done
    return seconds


def host_seconds(
    work: OperatorWork, constants: TorchConstants, training: TrainingConstants | None = None
) -> float:
    """What the host takes to call an operator, and to start its kernels and views.

    One that starts nothing, such as dropout in inference, returns early.
    """
    starts = bool(work.kernels or work.views or work.sent)
    if training is not None:
        return _host_seconds_in_training(work, constants, training, starts=starts)
    if not starts:
        return _IDLE_SHARE * constants.host_call_s
    return (
        constants.host_call_s + work.launches * constants.host_kernel_s + _others_s(work, constants)
    )


def _host_seconds_in_training(
    work: OperatorWork, constants: TorchConstants, training: TrainingConstants, *, starts: bool
) -> float:
    """Modules and ATen ops that Python calls; those of backward autograd calls, without Python."""
    called_s = training.host_module_s if work.is_module else 0.0
    if not starts:
        return _IDLE_SHARE * called_s
    is_backward = work.part == "backward"
    op_s = training.host_backward_s if is_backward else training.host_op_s
    more = max(work.launches - work.ops, 0)
    seconds = called_s + work.ops * op_s + more * constants.host_kernel_s
    seconds += _others_s(work, constants) + work.listed * training.host_tensor_s
    return seconds * training.checkpoint_share if work.is_checkpointed else seconds


def _others_s(work: OperatorWork, constants: TorchConstants) -> float:
    return work.gathers * constants.host_gather_s + work.views * constants.host_view_s


def _slower(runs: Sequence[OperatorRun], steps: Sequence[int], constants: TorchConstants) -> float:
    """How much longer arithmetic takes once the limit of power holds the clock down."""
    each = counted(runs, steps)
    whole = math.fsum(run.kernels_s * number for run, number in each)
    busy = math.fsum(run.arithmetic_s * number for run, number in each)
    return 1 + constants.hot_share * busy / whole if whole else 1.0


@memoize
def _listed(trace: Trace) -> tuple[int, ...]:
    """Tensors that each recorded operator of an optimizer writes in lists."""
    return tuple(
        sum(list_length(kernel, functional_name(kernel)) for kernel in kernels)
        for kernels in trace.recorded.kernels_by_operator
    )


@memoize
def _exchanges(trace: Trace) -> tuple[tuple[tuple[Collective, ...], tuple[Collective, ...]], ...]:
    """What each recorded operator exchanges: what the next one waits for, and what overlaps."""
    found = []
    for kernels in trace.recorded.kernels_by_operator:
        sizes = [(kernel.ranks > 0, collective_shape(trace, kernel)) for kernel in kernels]
        sent, overlapped = (
            tuple(size for is_so, size in sizes if is_so is wanted and size is not None)
            for wanted in (False, True)
        )
        found.append((sent, overlapped))
    return tuple(found)
