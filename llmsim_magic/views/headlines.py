"""The figures with which each view opens its answer."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from llmsim_magic.analyses.allocations.step_memory import StepMemory
from llmsim_magic.analyses.cost.operator_costs import totals
from llmsim_magic.analyses.cost.parameter_dtypes import parameter_dtypes
from llmsim_magic.analyses.cost.step_passes import pass_costs, saved_bytes
from llmsim_magic.analyses.cost.tokens_read import tokens_read
from llmsim_magic.analyses.graph.dataflow import ranks
from llmsim_magic.analyses.graph.layer_folding import identical_layers
from llmsim_magic.analyses.memory.capacity import Fit
from llmsim_magic.analyses.memory.memory import Memory
from llmsim_magic.analyses.torch_time.step_time import utilization
from llmsim_magic.records.hardware.execution import RUNTIMES
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views import units
from llmsim_magic.views.section import Figure

if TYPE_CHECKING:
    import pandas as pd

    from llmsim_magic.analyses.time.pass_time import PassTime
    from llmsim_magic.views.tables.step_alternatives import StepOnDevice

Figures = Iterator[Figure]
# Of devices, by whether some do not compute in the dtype.
_FIT_IT = {False: "devices fit it", True: "devices fit it and compute in its dtype"}
_PER_DEVICE = " per device"
_FASTER = 1.005  # times the speed of a step, from which on a change is called faster
_SHOWN_PARTS = 3  # of what is alive at a peak
_PART_NAMES = {"optimizer": "states of the optimizer", "saved": "saved for backward"}
_TIMED = {"prefill": "prefill (TTFT)", "decode": "decode step (TPOT)", "train": "a step"}
_MFU = "model FLOPs, without what is computed again, over dense peak × time"


def size_figures(trace: Trace) -> Figures:
    """Parameters, and those that a token uses or a step trains if fewer; bytes of the weights.

    Of a model that devices share, those of one device.
    """
    sums, each = totals(trace), _PER_DEVICE if trace.has_shards else ""
    yield _parameters(sums.parameters, f"parameters{each}")
    if sums.active != sums.parameters:
        yield _parameters(sums.active, f"active per token{each}")
    if trace.training is not None and sums.trainable != sums.parameters:
        yield _parameters(sums.trainable, f"of them trained{each}")
    if sums.parameters:
        yield _nbytes(sums.parameter_bytes, f"of weights in {parameter_dtypes(trace)}{each}")


def work_figures(trace: Trace) -> Figures:
    """FLOPs, bytes moved, and the cache after the pass, or what a step saves for backward.

    Of several devices, those of one.
    """
    sums, each = totals(trace), _PER_DEVICE if trace.ranks > 1 else ""
    moved = sums.bytes_read + sums.bytes_written
    of_passes = f"{each} {_by_pass(trace)}".strip()
    yield Figure(units.si(sums.flops, "FLOPs"), of_passes, exact=f"{sums.flops:,} FLOPs")
    yield _nbytes(moved, f"of traffic{each} at least")
    if trace.training is not None:
        saved = sum(kept or 0 for kept in saved_bytes(trace))
        yield _nbytes(saved, f"saved for backward{each}")
    if trace.cache:
        yield _nbytes(sums.cache_bytes, f"of cache{each}")


def _by_pass(trace: Trace) -> str:
    """`(309 G forward, 184 G recompute, 620 G backward)`: the FLOPs of a step's passes."""
    if trace.training is None:
        return ""
    each = [f"{units.si(cost.flops, '')} {cost.part}" for cost in pass_costs(trace) if cost.flops]
    return f"({', '.join(each)})"


def structure_figures(trace: Trace) -> Figures:
    """Modules, operators, and layers with how many of them differ."""
    yield _count(len(trace.modules), "module")
    yield from operator_figures(trace)


def operator_figures(trace: Trace) -> Figures:
    """Operators, and layers with how many of them differ."""
    groups = identical_layers(trace)
    count = sum(len(group.indices) for group in groups)
    yield _count(len(trace.steps), "operator")
    if len(groups) > 1:
        yield _count(count, "layer", f" of {len(groups)} kinds")
    elif groups:
        yield _count(count, "layer", ", all alike" if count > 1 else "")


def order_figures(trace: Trace) -> Figures:
    """Operators, the longest chain of them, and how many can run at the same time."""
    found = ranks(trace)
    width = max(Counter(found).values(), default=0)
    yield _count(len(found), "operator")
    yield Figure(units.count(max(found, default=-1) + 1), "on the critical path")
    yield Figure(units.count(width), "can run in parallel")


def cost_figures(trace: Trace, time: "PassTime | None") -> Figures:
    """FLOPs, bytes, and FLOPs per byte.

    Args:
        trace: the pass, of one pipeline stage.
        time: its time, whose kernels are counted: an engine's are not the model's. None without
            a device.
    """
    sums = totals(trace)
    flops, moved = float(sums.flops), float(sums.bytes_read + sums.bytes_written)
    if time is not None and time.execution.runtime != "transformers":
        flops = math.fsum(operator.flops for operator in time.operators)
        moved = math.fsum(operator.bytes for operator in time.operators)
    yield Figure(units.si(flops, "FLOPs"), "", exact=f"{flops:,.0f} FLOPs")
    yield _nbytes(round(moved), "of traffic at least")
    if moved:
        intensity = flops / moved
        yield Figure(units.three_digits(intensity), "FLOPs per byte", exact=f"{intensity:.9g}")


def memory_figures(runtime: str, memory: Memory) -> Figures:
    """The peak under a runtime and its largest parts."""
    yield _nbytes(memory.total, f"peak under {RUNTIMES[runtime]}")
    yield _nbytes(memory.weights, "weights")
    if memory.cache:
        yield _nbytes(memory.cache, "cache")
    yield _nbytes(memory.activations, "peak activations")


def step_peak_figure(memory: Memory, step: StepMemory) -> Figure:
    """The peak of a steady training step, and where it is."""
    return _nbytes(memory.total, f"peak in {step.place}")


def step_part_figures(step: StepMemory) -> Figures:
    """The largest parts of what is alive at the peak of a training step."""
    parts = sorted(step.alive._asdict().items(), key=lambda part: -part[1])
    for name, size in parts[:_SHOWN_PARTS]:
        yield _nbytes(size, _PART_NAMES.get(name, name))


def time_figures(trace: Trace, time: "PassTime") -> Figures:
    """The time of a pass, and the tokens per second: of each user and in total in decode.

    A prefill is the time to the first token (TTFT), a decode step that of each further one (TPOT).
    A training step has its MFU.
    """
    phase, batch = trace.workload.phase, trace.workload.batch
    name = _TIMED.get(phase, phase)
    limit = next(iter(time.bound), None)
    interval = units.seconds_interval(time.low, time.high)
    yield Figure(
        units.seconds(time.seconds),
        f"{name}, limited by {limit}" if limit else name,
        f"{time.seconds:.6g} s, 90 % interval {interval}",
    )
    if not time.seconds or not trace.workload.context:  # whose inputs need not be tokens
        return
    total = tokens_read(trace) / time.seconds
    together = "" if trace.ranks == 1 else f" on {trace.ranks} devices"
    exact = f"{total:.6g} tokens/s"
    if phase == "decode" and batch > 1:
        yield Figure(units.rate(1 / time.seconds), "tokens/s per user")
        yield Figure(units.rate(total), f"tokens/s in total{together}", exact)
    else:
        yield Figure(units.rate(total), f"tokens/s{together}", exact)
    mfu = utilization(trace, time)
    if mfu is not None:
        yield Figure(units.share(mfu), "MFU", f"{mfu:.6g}: {_MFU}")


def execution_figure(time: "PassTime", *, is_fastest: bool = False) -> Figure:
    """What the times of a headline are of, and whether there are slower ones."""
    where = f"under {time.execution} on {time.accelerator.name}"
    return Figure("", f"{where}, the fastest here" if is_fastest else where)


def misfit_figure(time: "PassTime") -> Figure:
    """That times in the tables below are of a device which cannot hold the model."""
    where = f"{time.accelerator.name}: its times below are hypothetical"
    return Figure("does not fit", where, is_bad=True)


def workloads_figure(number: int) -> Figure:
    """How many workloads there are."""
    return _count(number, "workload")


def fit_figures(fits: Sequence[Fit], workload: str = "") -> Figures:
    """How many devices hold the model and compute in its dtype, or whether the only one does.

    Args:
        fits: what each device needs and has.
        workload: which one they are of, where there are several.
    """
    if not fits:
        return
    of = f" for {workload}" if workload else ""
    devices = {fit.device for fit in fits}
    if len(devices) > 1:
        held = {fit.device for fit in fits if fit.runs}
        number = f"{len(held)} of {len(devices)}"
        refused = any(fit.refusal is not None for fit in fits)
        yield Figure(number, f"{_FIT_IT[refused]}{of}", is_bad=not held)
        return
    needed = [f"{RUNTIMES[fit.runtime]}: {fit.memory.required:,} bytes" for fit in fits]
    first = next((fit for fit in fits if not fit.fits), fits[0])
    if first.refusal is not None:
        yield Figure("cannot run", f"{first.device} {first.refusal}", is_bad=True)
        return
    sizes = f"{units.nbytes(first.memory.required)} of {units.nbytes(first.usable)}"
    verdict = "fits" if all(fit.fits for fit in fits) else "does not fit"
    if any(fit.fits for fit in fits) and verdict != "fits":
        names = [RUNTIMES[fit.runtime] for fit in fits if fit.fits]
        verdict = f"fits under {' and '.join(names)} only"
    ranks = first.setup.devices
    device = first.device if ranks == 1 else f"each of {ranks} × {first.device}"
    where = f"{device}, {RUNTIMES[first.runtime]}: {sizes}"
    yield Figure(verdict, f"{where}{of}", "; ".join(needed), verdict != "fits")


def sizing_figures(sizing: "pd.DataFrame", phases: Sequence[str]) -> Figures:
    """How many devices hold the model and compute in its dtype, and the fastest of them.

    Args:
        sizing: the table of `size`.
        phases: the phases that it has times of, the last of which is named.
    """
    fits, refused = sizing["fits"], sizing["refusal"].notna()
    devices = sizing[fits.notna()]["device"].nunique()
    held = sizing[fits.fillna(value=False) & ~refused]["device"].nunique()
    if devices:  # whose memory is known
        yield Figure(f"{held} of {devices}", _FIT_IT[bool(refused.any())], is_bad=not held)
    if phases and (held or not devices):
        column = f"{phases[-1]}_s"
        timed = sizing[sizing[column].notna()].sort_values(column)
        for row in timed.head(1).to_dict("records"):
            where = f"{row['device']}, {row['runtime']}, {row['launch']}"
            what = "training step" if phases[-1] == "train" else phases[-1]
            yield Figure(units.seconds(row[column]), f"fastest {what}: {where}")


def alternatives_figures(rows: Sequence["StepOnDevice"]) -> Figures:
    """For each device, the change of a training step that fits and is fastest, and how much.

    Args:
        rows: the step as it was asked for and with changes, the cheapest that fits of each device
            first.
    """
    for device in dict.fromkeys(row.device for row in rows):
        best, *others = [row for row in rows if row.device == device]
        asked = next((row for row in (best, *others) if row.is_as_asked), best)
        if best.refusal is not None:
            why = f"that was tried runs on {device}: it {best.refusal}"
            yield Figure("no change", why, is_bad=True)
        elif best.fits is False:
            yield Figure("no change", f"that was tried makes it fit {device}", is_bad=True)
        elif asked.refusal is not None:
            yield Figure(best.change, f"makes it run on {device}, which {asked.refusal}")
        elif asked.fits is False:
            peak = units.nbytes(best.allocated)
            rank = "is the fastest change that makes it fit"
            yield Figure(best.change, f"{rank} {device}: peak {peak}")
        elif best is asked or asked.cost < _FASTER * best.cost:
            yield Figure("as asked", f"fits {device}, and no change tried is faster")
        elif math.isfinite(asked.cost):
            ratio = units.three_digits(asked.cost / best.cost)
            yield Figure(best.change, f"is fastest on {device}: ×{ratio} tokens/s per device")


def _count(number: int, what: str, rest: str = "") -> Figure:
    """A number of things, whose name has an s where they are not one."""
    return Figure(units.count(number), f"{what}{'' if number == 1 else 's'}{rest}")


def _parameters(number: int, label: str) -> Figure:
    return Figure(units.parameters(number), label, exact=f"{number:,} parameters")


def _nbytes(number: int, label: str) -> Figure:
    return Figure(units.nbytes(number), label, exact=f"{number:,} bytes")
