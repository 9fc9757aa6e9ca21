"""The views of a report. To add one, add a `View` to `VIEWS`: every interface reads this table."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from llmsim_magic.records.hardware.execution import Execution, under
from llmsim_magic.simulate.request import ALL, Request
from llmsim_magic.simulate.view import View
from llmsim_magic.views.section import Section

if TYPE_CHECKING:
    import pandas as pd

    from llmsim_magic.simulate.report import Report

Sections = Iterator[Section]
Tables = dict[str, "pd.DataFrame"]
# Options that some views use and others do not.
_DRAWING = ("depth", "layers", "level")
_STORED = ("weight_dtype", "kv_dtype")
_IN_MEMORY = (*_STORED, "runtime")
_TIMED = (*_IN_MEMORY, "launch")
_PROMPTS = {
    "transformers": "transformers reads the whole prompt in one pass, before a decode step too, "
    "and makes all its logits.",
    "vllm": "vLLM reads prompts in chunks, and limits itself to a share of the memory.",
}
_BAND = "Low to high: 90 % interval."


def _summary(report: "Report") -> Sections:
    yield Section(f"Summary of {report.title}", report.summary)


def _ops(report: "Report") -> Sections:
    yield Section(f"Modules of {report.title}", report.modules)
    yield Section(f"Operators of {report.title}", report.ops)
    if report.costing.devices:
        yield Section(
            f"Time of the operators on {report.costing.first}: "
            f"{_named(report.costing.executions())}",
            report.times,
            _BAND,
        )


def _named(executions: Iterable[Execution]) -> str:
    return "; ".join(map(str, executions))


def _under(report: "Report") -> str:
    """The first device and its first execution, which tables of one execution describe."""
    costing = report.costing
    return f"on {costing.first} ({costing.first_execution})"


def _ops_tables(report: "Report") -> Tables:
    found = {"modules": report.modules, "ops": report.ops, "kernels": report.kernels}
    return found | ({"times": report.times} if report.costing.devices else {})


def _deps(report: "Report") -> Sections:
    if not report.shows("ops"):
        yield Section(f"Modules of {report.title}", report.modules)
    yield Section(
        f"Dataflow of {report.title}",
        report.edges,
        "Each row is a tensor that one operator writes and another one reads.",
    )
    yield Section(f"Dependencies of {report.title}", report.drawings["deps"])


def _topological(report: "Report") -> Sections:
    yield Section(
        f"Execution order of {report.title}",
        report.topological,
        "rank: the longest chain of operators before this one; equal ranks could run in parallel.",
    )
    yield Section(f"Topology of {report.title}", report.drawings["topological"])


def _multi_config(report: "Report") -> Sections:
    return report.sweep.sections() if report.sweep else iter(())


def _multi_config_tables(report: "Report") -> Tables:
    sweep = report.sweep
    if sweep is None:
        return {}
    return {"shapes": sweep.shapes, "workloads": sweep.totals, "sweep_ops": sweep.ops}


def _costs(report: "Report") -> Sections:
    if not report.costing.devices:
        yield Section(f"Costs of {report.title} by type of operator", report.costs)
        yield Section(f"Costs of {report.title} by layer", report.layers)
        return
    where = _under(report)
    yield Section(f"Costs of {report.title} by type of operator, {where}", report.costs, _BAND)
    yield Section(f"Roofline of {report.title} {where}", report.costing.roofline)
    yield Section(f"Costs of {report.title} by layer, {where}", report.layers, _BAND)


def _costs_tables(report: "Report") -> Tables:
    found = {"costs": report.costs, "layers": report.layers}
    return found | ({"times": report.times} if report.costing.devices else {})


def _memory(report: "Report") -> Sections:
    parallel, costing = report.trace.model.parallel, report.costing
    yield Section(f"Memory of {report.title} {under(costing.runtimes)}", report.memory)
    if not parallel.is_one:
        yield Section(f"Each device of {parallel} {under(costing.runtimes)}", costing.ranks)
        yield Section("Communication per pass", costing.collectives)
        yield Section("Parameter shards per device", costing.shards)
    if costing.can_fit:
        yield Section(
            "Devices that the model fits, by runtime",
            costing.fits,
            " ".join(_PROMPTS[name] for name in costing.runtimes),
        )


def _memory_tables(report: "Report") -> Tables:
    costing, found = report.costing, {"memory": report.memory}
    if not report.trace.model.parallel.is_one:
        found |= {
            "ranks": costing.ranks,
            "collectives": costing.collectives,
            "shards": costing.shards,
        }
    return found | ({"fits": costing.fits} if costing.can_fit else {})


VIEWS: dict[str, View["Report"]] = {
    view.name: view
    for view in (
        View(
            name="summary",
            title="Summary",
            help="totals: operators, parameters, FLOPs, bytes, cache, and what is not counted",
            sections=_summary,
            tables=lambda report: {"summary": report.summary},
            main_table="summary",
            python="report.summary",
        ),
        View(
            name="ops",
            title="Operators",
            help="every module and operator with shapes, parameters, FLOPs, bytes, source line",
            sections=_ops,
            tables=_ops_tables,
            main_table="ops",
            python="report.ops",
            pane="operators",
        ),
        View(
            name="multi-config",
            title="Shapes",
            help="shapes of 8 workloads: batch 1 and 16, context 1 and 128, prefill and decode",
            sections=_multi_config,
            tables=_multi_config_tables,
            main_table="shapes",
            compute=lambda report: report.shapes,
            python="sweep.totals\nsweep.shapes",
            pane="table",
            has_all_workloads=True,
            uses=("sure",),
        ),
        View(
            name="deps",
            title="Dependencies",
            help="module hierarchy and dataflow, as a table and a graph",
            sections=_deps,
            tables=lambda report: {"modules": report.modules, "edges": report.edges},
            main_table="edges",
            python="report.dependency_graph({})",
            pane="graph",
            draw=lambda report: report.dependency_graph(),
            uses=_DRAWING,
        ),
        View(
            name="topological",
            title="Topological",
            help="execution order and the dependencies of each operator, as a table and a graph",
            sections=_topological,
            tables=lambda report: {"topological": report.topological},
            main_table="topological",
            python="report.topological_graph({})",
            pane="graph",
            draw=lambda report: report.topological_graph(),
            uses=_DRAWING,
        ),
        View(
            name="costs",
            title="Costs",
            help="FLOPs, bytes and arithmetic intensity by type of operator; time on --hardware",
            sections=_costs,
            tables=_costs_tables,
            main_table="costs",
            python="report.costs",
        ),
        View(
            name="memory",
            title="Memory",
            help="weights, cache and activations, by runtime; what fits on --hardware",
            sections=_memory,
            tables=_memory_tables,
            main_table="memory",
            python="report.memory",
            compute=_memory_tables,
            uses=_IN_MEMORY,
        ),
    )
}


def _conditions(report: "Report") -> Sections:
    yield Section(f"Conditions of {report.title}", report.conditions)


def _latency(report: "Report") -> Sections:
    remark = f"One row per device, runtime, launch and pass. {_BAND}"
    executions = _named(report.costing.all_executions)
    yield Section(f"Time of {report.trace.model.name}: {executions}", report.latency, remark)


def _sizing(report: "Report") -> Sections:
    yield report.sizing.section()


def _comparison(report: "Report") -> Sections:
    costing = report.costing
    what = f"Memory {under(costing.runtimes[:1])}"
    if costing.devices:
        what += f", times of {costing.first_execution}"
    yield Section(" beside ".join(report.compared_names), report.comparison, f"{what}.")


def _explanation(report: "Report") -> Sections:
    path = report.explained or ""
    yield Section(f"{path or 'The model'} explained", report.explain(path))


def _no_tables(report: "Report") -> Tables:
    return {}


# Views that an option selects instead of a flag with their name.
OPTION_VIEWS = LATENCY, SIZING, COMPARISON, EXPLANATION, CONDITIONS = (
    View(
        name="hardware",
        title="Time",
        help="time on each device, by runtime and launch",
        sections=_latency,
        tables=lambda report: {"latency": report.latency},
        main_table="latency",
        compute=lambda report: (report.latency, report.costing.larger_devices),
        python="report.latency",
        uses=_TIMED,
    ),
    View(
        name="hardware all",
        title="Sizing",
        help="the devices that hold the model, and how fast each is",
        sections=_sizing,
        tables=lambda report: {"sizing": report.sizing.table},
        main_table="sizing",
        compute=lambda report: report.sizing,
        python="report.sizing",
        uses=_TIMED,
    ),
    View(
        name="compare",
        title="Comparison",
        help="two models side by side",
        sections=_comparison,
        tables=lambda report: {"comparison": report.comparison},
        main_table="comparison",
        compute=lambda report: report.comparison,
        python="report.comparison",
        uses=_IN_MEMORY,
    ),
    View(
        name="explain",
        title="Explanation",
        help="the arithmetic behind one module",
        sections=_explanation,
        tables=_no_tables,
        main_table="",
        python="report.explain()",
    ),
    View(
        name="max-memory",
        title="Conditions",
        help="whether parameters, memory and time are within their limits",
        sections=_conditions,
        tables=lambda report: {"conditions": report.conditions},
        main_table="conditions",
        compute=lambda report: report.checked,
        python="report.conditions",
        uses=_IN_MEMORY,
    ),
)


def views_of(request: Request) -> tuple[View["Report"], ...]:
    """The views of a request: conditions, devices, named views, comparison, explanation."""
    if request.check:
        return (CONDITIONS,)
    hardware = request.deployment.hardware
    names = (*request.views, *(("multi-config",) if request.is_sweep else ()))
    shown: list[View[Report]] = [CONDITIONS] if request.limits.is_any else []
    if any(name != ALL for name in hardware):
        shown.append(LATENCY)
    if ALL in hardware:
        shown.append(SIZING)
    shown += [view for name, view in VIEWS.items() if name in names]
    if request.compare is not None:
        shown.append(COMPARISON)
    if request.explain is not None:
        shown.append(EXPLANATION)
    return tuple(shown)
