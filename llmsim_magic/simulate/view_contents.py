"""The answer of each view: its heading, its figures, and its pictures and tables.

Importing it loads no charts, since a line of a terminal is checked against the views.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.records.hardware.execution import Execution, under
from llmsim_magic.views import headlines, units
from llmsim_magic.views.section import Figure, Section

if TYPE_CHECKING:
    import pandas as pd

    from llmsim_magic.analyses.memory.memory import Memory
    from llmsim_magic.analyses.time.pass_time import PassTime
    from llmsim_magic.records.trace.trace import Trace
    from llmsim_magic.records.trace.workload import Workload
    from llmsim_magic.simulate.report import Report

Sections = Iterator[Section]
Figures = Iterator[Figure]
Tables = dict[str, "pd.DataFrame"]
_PROMPTS = {
    "transformers": "transformers reads the whole prompt in one pass, before a decode step too, "
    "and makes all its logits.",
    "vllm": "vLLM reads prompts in chunks, and limits itself to a share of the memory.",
}
_ALTERNATIVES = (
    "Each row was traced. Rows that fit come first, the most tokens/s per device on top; then rows "
    "that do not fit, the lowest peak on top. Their times are hypothetical."
)
_COMPARED = {
    "parameters": "parameters, second ÷ first",
    "memory_bytes": "memory",
    "flops": "FLOPs",
    "cache_bytes": "cache",
}


def named(executions: Iterable[Execution]) -> str:
    """Executions as a heading names them."""
    return "; ".join(map(str, executions))


def under_first(report: "Report") -> str:
    """The first device and its first execution, which tables of one execution describe."""
    costing = report.costing
    return f"on {costing.first} ({costing.first_execution})" if costing.devices else ""


def summary_figures(report: "Report") -> Figures:
    """The size of the model, and the work of the pass; of a training step first what it needs."""
    yield from training_figures(report)
    yield from headlines.size_figures(report.trace)
    yield from headlines.work_figures(report.trace)


def training_figures(report: "Report") -> Figures:
    """Where a training step peaks, and whether devices hold it; nothing of inference."""
    memory = None if report.trace.training is None else _plain_memory(report)
    if memory is not None and memory.step is not None:
        yield headlines.step_peak_figure(memory, memory.step)
        yield from headlines.fit_figures(report.costing.capacities, report.costing.largest_name)


def summary_sections(report: "Report") -> Sections:
    """The card, and every quantity below it."""
    from llmsim_magic.views.charts.summary_card import summary_card

    yield Section("", summary_card(report.trace, _plain_memory(report)))
    yield Section("All quantities", lambda: report.summary, is_detail=True)


def _plain_memory(report: "Report") -> "Memory | None":
    """The memory under transformers, where it can be predicted."""
    try:
        return report.costing.memories.get("transformers")
    except LlmsimError:
        return None


def ops_figures(report: "Report") -> Figures:
    """Operators, the work of the pass, and on a device its time."""
    yield from headlines.operator_figures(report.trace)
    if report.costing.devices:
        yield from costs_figures(report)
    else:
        yield from headlines.work_figures(report.trace)


def _first_time(report: "Report") -> Figures:
    """The time that the tables of one device describe, unless the model does not fit there."""
    trace, time = report.costing.first_passes[0]
    if report.costing.first_fits:
        yield from headlines.time_figures(trace, time)
        yield headlines.execution_figure(time)
    else:
        yield headlines.misfit_figure(time)


def ops_sections(report: "Report") -> Sections:
    """Operators with what each costs; modules, and times of each execution, on demand."""
    costing = report.costing
    operators = report.ops
    title = "Operators"
    if costing.devices:
        operators = costing.operators
        title = f"Operators, with their time {under_first(report)}"
    yield Section(title, operators, bars=("time_s",) if costing.devices else ("flops",))
    yield Section("Modules", lambda: report.modules, is_detail=True)
    if costing.devices:
        what = f"Time of the operators on {costing.first}: {named(costing.executions())}"
        yield Section(what, lambda: report.times, is_detail=True)


def ops_tables(report: "Report") -> Tables:
    """Modules, operators and kernels; on a device also times."""
    found = {"modules": report.modules, "ops": report.ops, "kernels": report.kernels}
    return found | ({"times": report.times} if report.costing.devices else {})


def deps_sections(report: "Report") -> Sections:
    """The graph; modules and dataflow on demand."""
    yield Section("", report.drawings["deps"])
    yield Section("Modules", lambda: report.modules, is_detail=True)
    yield Section(
        "Dataflow",
        lambda: report.edges,
        "Each row is a tensor that one operator writes and another one reads.",
        is_detail=True,
    )


def topological_sections(report: "Report") -> Sections:
    """The graph; the order of operators on demand."""
    yield Section("", report.drawings["topological"])
    yield Section(
        "Execution order",
        lambda: report.topological,
        "rank: the longest chain of operators before this one; equal ranks could run in parallel.",
        is_detail=True,
    )


def multi_config_figures(report: "Report") -> Figures:
    """The size of the model, and how many workloads there are."""
    yield from headlines.size_figures(report.trace)
    if report.sweep is not None:
        yield headlines.workloads_figure(len(report.sweep.traces))


def multi_config_sections(report: "Report") -> Sections:
    """The workloads side by side, then shapes by operator."""
    if report.sweep is not None:
        yield from report.sweep.sections(_seconds(report))


def _seconds(report: "Report") -> "dict[Workload, float]":
    """The time of each workload under the first execution of the first device."""
    return {trace.workload: time.seconds for trace, time in _first_passes(report)}


def _first_passes(report: "Report") -> "list[tuple[Trace, PassTime]]":
    """Each workload with its time under the first execution of the first device."""
    if not report.costing.devices:
        return []
    first = report.costing.first
    return [each for each in report.costing.first_passes if each[1].accelerator.name == first]


def multi_config_tables(report: "Report") -> Tables:
    """Shapes and totals of each workload, and the operators of all."""
    from llmsim_magic.views.tables.sweeps import with_predictions

    sweep, passes = report.sweep, _first_passes(report)
    if sweep is None:
        return {}
    totals = with_predictions(sweep.totals, passes) if passes else sweep.totals
    return {"shapes": sweep.shapes, "workloads": totals, "sweep_ops": sweep.ops}


def costs_figures(report: "Report") -> Figures:
    """Work, and on a device its time and bottleneck."""
    yield from headlines.cost_figures(report.trace, _first_stage(report))
    if report.costing.devices:
        yield from _first_time(report)


def _first_stage(report: "Report") -> "PassTime | None":
    """The time of the traced pipeline stage, which tables and charts of operators describe."""
    return report.costing.first_stage if report.costing.devices else None


def costs_sections(report: "Report") -> Sections:
    """What makes up the costs as bars, the table by type, and on a device the roofline."""
    from llmsim_magic.views.charts.cost_chart import cost_charts

    costing, time = report.costing, _first_stage(report)
    *by_pass, by_type, by_layer = cost_charts(report.trace, time)
    for chart in (*by_pass, by_type):
        yield Section("", chart)
    costs = report.costs
    if time is not None:
        costs = costs.sort_values("time_s", ascending=False)
    yield Section("", costs)
    yield Section("", by_layer)
    if costing.devices:
        yield Section("Roofline", costing.roofline)
    yield Section("Layers", lambda: report.layers, is_detail=True)


def costs_tables(report: "Report") -> Tables:
    """Costs by type and by layer; on a device also times."""
    found = {"costs": report.costs, "layers": report.layers}
    return found | ({"times": report.times} if report.costing.devices else {})


def memory_figures(report: "Report") -> Figures:
    """The peak of the first runtime and its parts; whether it fits."""
    runtime, memory = report.costing.first_memory
    if memory.step is not None:
        yield from training_figures(report)
        yield from headlines.step_part_figures(memory.step)
        return
    yield from headlines.memory_figures(runtime, memory)
    yield from headlines.fit_figures(report.costing.capacities, report.costing.largest_name)


def memory_sections(report: "Report") -> Sections:
    """What fills a device as bars, then parts of memory; shards and what fits."""
    from llmsim_magic.views.charts.memory_chart import fit_chart, memory_chart

    parallel, costing = report.trace.model.parallel, report.costing
    if costing.capacities:
        yield Section("", fit_chart(costing.capacities, costing.largest_name))
    else:
        yield Section("", memory_chart(costing.memories))
    trains = report.trace.training is not None
    if trains:
        yield Section("Memory over a steady step", costing.memory_plot)
    yield Section("", report.memory)
    if trains:
        yield Section("Timeline of a steady step", report.timeline)
    if costing.can_fit:
        yield Section(
            "Largest sizes that fit, by device and runtime",
            costing.fits,
            " ".join(_PROMPTS[name] for name in costing.runtimes if not trains),
        )
    if not parallel.is_one:
        yield Section(f"Each device of {report.trace.layout}", costing.ranks)
        yield Section("Communication per pass", lambda: costing.collectives, is_detail=True)
        yield Section("Parameter shards per device", lambda: costing.shards, is_detail=True)


def memory_tables(report: "Report") -> Tables:
    """Parts of memory, shards and communication of a parallel layout, and what fits."""
    costing, found = report.costing, {"memory": report.memory}
    if report.trace.training is not None:
        found["timeline"] = report.timeline
    if not report.trace.model.parallel.is_one:
        found |= {
            "ranks": costing.ranks,
            "collectives": costing.collectives,
            "shards": costing.shards,
        }
    return found | ({"fits": costing.fits} if costing.can_fit else {})


def hardware_figures(report: "Report") -> Figures:
    """Whether the model fits, and its times where it is fastest."""
    costing = report.costing
    if report.trace.training is not None:
        yield from training_figures(report)
    else:
        yield from headlines.fit_figures(costing.capacities, costing.largest_name)
    able = [
        each
        for each, fits in zip(costing.passes, costing.passes_fit, strict=True)
        if fits is not False
    ]
    if not able:
        return
    phase = able[-1][0].workload.phase
    workload = next(trace.workload for trace, _ in able if trace.workload.phase == phase)
    same = [time for trace, time in able if trace.workload == workload]
    if phase == "train":  # whose loop starts kernels one by one; a graph of it is the exception
        same = [time for time in same if time.execution.launch == "eager"] or same
    fastest = min(same, key=lambda time: time.seconds)
    shown: dict[str, tuple[Trace, PassTime]] = {}
    for trace, time in able:
        if (time.accelerator, time.execution) == (fastest.accelerator, fastest.execution):
            shown.setdefault(trace.workload.phase, (trace, time))
    for trace, time in shown.values():
        yield from headlines.time_figures(trace, time)
    yield headlines.execution_figure(fastest, is_fastest=len(same) > 1)


def hardware_sections(report: "Report") -> Sections:
    """Memory beside the device's, times with their bands as bars, and the table."""
    from llmsim_magic.views.charts.memory_chart import fit_chart
    from llmsim_magic.views.charts.time_chart import time_charts

    costing = report.costing
    if costing.capacities:
        yield Section("", fit_chart(costing.capacities, costing.largest_name))
    yield Section("", time_charts(costing.passes, costing.passes_fit))
    remark = "Times of what does not fit are hypothetical."
    yield Section("", costing.ranked_latency, remark if False in costing.passes_fit else "")


def alternatives_figures(report: "Report") -> Figures:
    """Of each device, the change that makes a training step fit, or is fastest."""
    yield from headlines.alternatives_figures(report.traced_alternatives.rows)


def alternatives_sections(report: "Report") -> Sections:
    """The table of changes; what fits and is fastest first."""
    yield Section("", report.alternatives, _ALTERNATIVES)


def comparison_figures(report: "Report") -> Figures:
    """How many times the second model is the first, in size and work."""
    ratios = report.comparison["ratio"].dropna()
    for quantity, label in _COMPARED.items():
        ratio = ratios.get(quantity)
        if ratio is not None:
            yield Figure(f"×{units.three_digits(ratio)}", label, exact=f"{ratio:.9g}")
    differing = int((report.differences["status"] != "same").sum())
    yield Figure(units.count(differing), "module differs" if differing == 1 else "modules differ")


def comparison_sections(report: "Report") -> Sections:
    """The quantities of two models, the modules that differ, and both graphs."""
    from llmsim_magic.views.charts.comparison_chart import comparison_chart
    from llmsim_magic.views.screen.screen_table import quantity_words
    from llmsim_magic.views.tables.differences import only_differing

    costing = report.costing
    what = f"Memory {under(costing.runtimes[:1])}"
    if costing.devices:
        what += f", times of {costing.first_execution}"
    compared = report.comparison["ratio"].dropna()
    ratios = {
        quantity_words(name): ratio
        for name, ratio in zip(compared.index.astype(str), compared, strict=True)
        if not name.endswith((".low", ".high"))
    }
    yield Section("", comparison_chart(ratios, report.compared_names))
    differing = only_differing(report.differences)
    same = len(report.differences) - len(differing)
    first, second = report.compared_names
    remark = f"Of one layer of each kind: {same} modules are the same. Added: only in {second}; "
    yield Section("Modules that differ", differing, f"{remark}removed: only in {first}.")
    yield Section("Quantities", report.comparison, f"{what}.")
    if report.compared is not None:
        graphs = (report.dependency_graph(), report.compared.dependency_graph())
        yield Section("Dependencies side by side", graphs)


def explanation_sections(report: "Report") -> Sections:
    """The arithmetic of one module."""
    yield Section("", report.explain(report.explained or ""))
