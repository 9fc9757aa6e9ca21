"""Conditions of a report: parameters, memory and time within limits, and devices that fit."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from llmsim_magic.analyses.cost.operator_costs import totals
from llmsim_magic.records.hardware.execution import RUNTIMES
from llmsim_magic.records.trace.parallel import Parallel
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.simulate.hardware.capacity_planner import CapacityPlanner
from llmsim_magic.simulate.hardware.device_costs import DeviceCosts
from llmsim_magic.simulate.training.step_on_device import rebuilt
from llmsim_magic.views import units
from llmsim_magic.views.tables.conditions import Condition

if TYPE_CHECKING:
    from llmsim_magic.simulate.report_tables import ReportTables


def conditions(report: "ReportTables") -> tuple[Condition, ...]:
    """Every condition of a report, over all its workloads.

    The limits that were asked for; on devices also whether the model fits them. Empty without
    limits and devices.

    Raises:
        LlmsimError: a figure cannot be predicted.
    """
    traces = report.sweep.traces if report.sweep else (report.trace,)
    return (*_parameters(report), *_memory(report, traces), *_time(report, traces))


def _parameters(report: "ReportTables") -> Iterator[Condition]:
    limit = report.limits.parameters
    if limit is not None:
        trace, planner = report.trace, report.planner
        if planner is not None and trace.has_shards:
            trace = _of_whole_model(planner, trace)
        yield Condition(
            quantity="parameters",
            where="",
            value=totals(trace).parameters,
            limit=limit,
            unit="parameters",
        )


def _of_whole_model(planner: CapacityPlanner, trace: Trace) -> Trace:
    """The pass on one device, which holds every parameter."""
    training = trace.training
    if training is not None:
        training = replace(training, zero=0, dp=1)
    whole = rebuilt(planner, replace(planner.build, parallel=Parallel(), training=training))
    return whole.tracer(Parallel())(trace.workload)


def _memory(report: "ReportTables", traces: Sequence[Trace]) -> Iterator[Condition]:
    """The memory of each workload under each runtime, and of each device."""
    limit = report.limits.memory
    for trace in traces:
        costing = DeviceCosts((trace,), report.deployment, report.planner)
        if limit is not None:
            for runtime, memory in costing.memories.items():
                yield Condition(
                    quantity="memory",
                    where=f"{RUNTIMES[runtime]}, {trace.workload}",
                    value=memory.required,
                    limit=limit,
                    unit="bytes",
                )
        if report.planner is not None:
            yield from _fits(costing, report.planner)


def _fits(costing: DeviceCosts, planner: CapacityPlanner) -> Iterator[Condition]:
    for device, runtime in costing.places:
        fit = planner.fit(costing.setup, device, runtime)
        if fit is not None:
            remedies = ", ".join(map(str, fit.remedies))
            detail = f"to make it fit: {remedies}" if remedies else None
            yield Condition(
                quantity=f"fits {device.name}",
                where=f"{RUNTIMES[runtime]}, {costing.traces[0].workload}",
                value=fit.memory.required,
                limit=fit.usable,
                unit="bytes",
                detail=detail if fit.refusal is None else f"{device.name} {fit.refusal}",
            )


def _time(report: "ReportTables", traces: Sequence[Trace]) -> Iterator[Condition]:
    limit = report.limits.seconds
    if limit is None:
        return
    costing = replace(report.costing, traces=tuple(traces))
    for trace, time in costing.passes:
        yield Condition(
            quantity="time",
            where=f"{time.accelerator.name}, {time.execution}, {trace.workload}",
            value=time.seconds,
            limit=limit,
            unit="s",
            detail=f"90 % interval {units.seconds_interval(time.low, time.high)}",
        )
