"""The views of a report. To add one, add a `View` to `VIEWS`: every interface reads this table."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from llmsim_magic.records.hardware.execution import under
from llmsim_magic.simulate import view_contents as contents
from llmsim_magic.simulate.request import ALL, Request
from llmsim_magic.simulate.view import View
from llmsim_magic.views import headlines
from llmsim_magic.views.section import Figure, Section

if TYPE_CHECKING:
    import pandas as pd

    from llmsim_magic.simulate.report import Report

# Options that some views use and others do not.
_DRAWING = ("depth", "layers", "level")
_STORED = ("weight_dtype", "kv_dtype")
_IN_MEMORY = (*_STORED, "runtime")
_TIMED = (*_IN_MEMORY, "launch")


def _heading(subject: str) -> "Callable[[Report], str]":
    return lambda report: f"{subject} of {report.title}"


def _costs_heading(report: "Report") -> str:
    return f"Costs of {report.title} {contents.under_first(report)}".rstrip()


def _workloads_heading(report: "Report") -> str:
    return f"Workloads of {report.model_title} {contents.under_first(report)}".rstrip()


def _memory_heading(report: "Report") -> str:
    return f"Memory of {report.title} {under(report.costing.runtimes)}"


def _time_heading(report: "Report") -> str:
    executions = contents.named(report.costing.all_executions)
    number = "" if report.trace.ranks == 1 else f"{report.trace.ranks} × "
    names = ", ".join(f"{number}{name}" for name in report.costing.names)
    return f"{report.trace.model.name} on {names}: {executions}"


def _no_figures(report: "Report") -> tuple[Figure, ...]:
    return ()


def _no_tables(report: "Report") -> "dict[str, pd.DataFrame]":
    return {}


def _prepare_memory(report: "Report") -> object:
    return contents.memory_tables(report), report.costing.misfits


VIEWS: dict[str, View["Report"]] = {
    view.name: view
    for view in (
        View(
            name="summary",
            title="Summary",
            help="totals: operators, parameters, FLOPs, bytes, cache, and what is not counted",
            heading=_heading("Summary"),
            headline=contents.summary_figures,
            sections=contents.summary_sections,
            tables=lambda report: {"summary": report.summary},
            main_table="summary",
            python="report.summary",
        ),
        View(
            name="ops",
            title="Operators",
            help="every module and operator with shapes, parameters, FLOPs, bytes, source line",
            heading=_heading("Operators"),
            headline=contents.ops_figures,
            sections=contents.ops_sections,
            tables=contents.ops_tables,
            main_table="ops",
            python="report.ops",
            pane="operators",
        ),
        View(
            name="multi-config",
            title="Shapes",
            help="shapes of 8 workloads: batch 1 and 16, context 1 and 128, prefill and decode",
            heading=_workloads_heading,
            headline=contents.multi_config_figures,
            sections=contents.multi_config_sections,
            tables=contents.multi_config_tables,
            main_table="shapes",
            compute=lambda report: report.shapes,
            python="sweep.totals\nsweep.shapes",
            has_all_workloads=True,
            uses=("sure",),
        ),
        View(
            name="deps",
            title="Dependencies",
            help="module hierarchy and dataflow, as a table and a graph",
            heading=_heading("Dependencies"),
            headline=lambda report: headlines.structure_figures(report.trace),
            sections=contents.deps_sections,
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
            heading=_heading("Execution order"),
            headline=lambda report: headlines.order_figures(report.trace),
            sections=contents.topological_sections,
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
            heading=_costs_heading,
            headline=contents.costs_figures,
            sections=contents.costs_sections,
            tables=contents.costs_tables,
            main_table="costs",
            python="report.costs",
        ),
        View(
            name="memory",
            title="Memory",
            help="weights, cache and activations, by runtime; what fits on --hardware",
            heading=_memory_heading,
            headline=contents.memory_figures,
            sections=contents.memory_sections,
            tables=contents.memory_tables,
            main_table="memory",
            python="report.memory",
            compute=_prepare_memory,
            uses=_IN_MEMORY,
        ),
    )
}


# Views that an option selects instead of a flag with their name.
OPTION_VIEWS: tuple[View["Report"], ...] = (
    View(
        name="hardware",
        title="Time",
        help="time on each device, by runtime and launch",
        heading=_time_heading,
        headline=contents.hardware_figures,
        sections=contents.hardware_sections,
        tables=lambda report: {"latency": report.latency},
        main_table="latency",
        compute=lambda report: (report.latency, report.costing.misfits),
        python="report.latency",
        uses=_TIMED,
    ),
    View(
        name="hardware all",
        title="Sizing",
        help="the devices that hold the model, and how fast each is",
        heading=lambda report: report.sizing.title,
        headline=lambda report: report.sizing.part.figures,
        sections=lambda report: report.sizing.part.sections,
        tables=lambda report: {"sizing": report.sizing.table},
        main_table="sizing",
        compute=lambda report: report.sizing,
        python="report.sizing",
        uses=_TIMED,
    ),
    View(
        name="hardware alternatives",
        title="Alternatives",
        help="what would make a training step fit, or faster",
        heading=lambda report: f"What makes {report.title} fit or run faster",
        headline=contents.alternatives_figures,
        sections=contents.alternatives_sections,
        tables=lambda report: {"alternatives": report.alternatives},
        main_table="alternatives",
        compute=lambda report: report.alternatives,
        is_slow=True,
        python="report.alternatives",
        uses=("launch",),
    ),
    View(
        name="compare",
        title="Comparison",
        help="two models side by side",
        heading=lambda report: " vs ".join(report.compared_names),
        headline=contents.comparison_figures,
        sections=contents.comparison_sections,
        tables=lambda report: {"comparison": report.comparison, "differences": report.differences},
        main_table="comparison",
        compute=lambda report: report.comparison,
        python="report.comparison",
        uses=_IN_MEMORY,
    ),
    View(
        name="explain",
        title="Explanation",
        help="the arithmetic behind one module",
        heading=lambda report: f"{report.explained or 'The model'} explained",
        headline=_no_figures,
        sections=contents.explanation_sections,
        tables=_no_tables,
        main_table="",
        python="report.explain()",
    ),
    View(
        name="max-memory",
        title="Conditions",
        help="whether parameters, memory and time are within their limits",
        heading=_heading("Conditions"),
        headline=_no_figures,
        sections=lambda report: (Section("", report.conditions),),
        tables=lambda report: {"conditions": report.conditions},
        main_table="conditions",
        compute=lambda report: report.checked,
        python="report.conditions",
        uses=_IN_MEMORY,
    ),
)


LATENCY, SIZING, ALTERNATIVES, COMPARISON, EXPLANATION, CONDITIONS = OPTION_VIEWS


def views_of(request: Request) -> tuple[View["Report"], ...]:
    """The views of a request, in the order in which their answers are shown.

    Conditions and a comparison come first. Named views come in the order in which they are named,
    and devices after them; without a named view, devices come before the summary. Alternatives of
    one training step follow.
    """
    if request.check:
        return (CONDITIONS,)
    hardware = request.deployment.hardware
    shown: list[View[Report]] = [CONDITIONS] if request.limits.is_any else []
    if request.compare is not None:
        shown.append(COMPARISON)
    on_devices = [LATENCY] if any(name != ALL for name in hardware) else []
    on_devices += [SIZING] if ALL in hardware else []
    many = ("multi-config",) if request.is_sweep else ()
    named = [VIEWS[name] for name in dict.fromkeys((*request.views, *many))]
    is_default = request.views == ("summary",)
    shown += [*on_devices, *named] if is_default else [*named, *on_devices]
    if request.build.training is not None and LATENCY in on_devices and not request.is_sweep:
        shown.append(ALTERNATIVES)
    if request.explain is not None:
        shown.append(EXPLANATION)
    return tuple(shown)
