"""What a report shows for each view: the parts of its page, and the tables of its files."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from llmsim_magic.simulate.request import ALL
from llmsim_magic.views.page import Section

if TYPE_CHECKING:
    import pandas as pd

    from llmsim_magic.simulate.report import Report

Sections = Iterator[Section]
Tables = dict[str, "pd.DataFrame"]
_BAND = "Nine of ten measurements would lie between low and high."


def sections(report: "Report") -> Sections:
    """The page: times on devices, if any are asked for, then view by view."""
    yield from _of_devices(report)
    for view, shown in _SECTIONS.items():
        if view in report.views:
            yield from shown(report)
    if report.beside is not None:
        names = report.trace.model.name, report.beside.trace.model.name
        yield Section(" beside ".join(names), report.comparison)
    if report.explained is not None:
        name = report.explained or "The model"
        yield Section(f"{name} explained", report.explain(report.explained))


def tables(report: "Report") -> Tables:
    """Every table that the page shows or sums up, by the name of its file."""
    wanted: Tables = {}
    for view, shown in _TABLES.items():
        if view in report.views:
            wanted |= shown(report)
    if report.costing.devices:
        wanted["latency"] = report.latency
    if ALL in report.deployed.hardware:
        wanted["sizing"] = report.sizing.table
    if report.beside is not None:
        wanted["comparison"] = report.comparison
    return wanted


def _summary(report: "Report") -> Sections:
    yield Section(f"Summary of {report.title}", report.summary)


def _ops(report: "Report") -> Sections:
    yield Section(f"Modules of {report.title}", report.modules)
    yield Section(f"Operators of {report.title}", report.ops)
    if report.costing.devices:
        yield Section(f"Time of the operators on {report.costing.first}", report.times, _BAND)


def _deps(report: "Report") -> Sections:
    if "ops" not in report.views:
        yield Section(f"Modules of {report.title}", report.modules)
    yield Section(
        f"Dataflow of {report.title}",
        report.edges,
        "Each row is a tensor one operator hands another.",
    )
    yield Section(f"Dependencies of {report.title}", report.drawings["deps"])


def _topological(report: "Report") -> Sections:
    yield Section(
        f"Execution order of {report.title}",
        report.topological,
        "Rank: the longest chain of operators before it; equal ranks could run at once.",
    )
    yield Section(f"Topology of {report.title}", report.drawings["topological"])


def _sweep(report: "Report") -> Sections:
    return report.sweep.sections() if report.sweep else iter(())


def _costs(report: "Report") -> Sections:
    yield Section(f"Costs of {report.title} by type of operator", report.costs)
    remark = _BAND if report.costing.devices else ""
    if report.costing.devices:
        device = report.costing.first
        yield Section(f"{report.title} under the roof of {device}", report.costing.roofline)
    yield Section(f"Costs of {report.title} by layer", report.layers, remark)


def _memory(report: "Report") -> Sections:
    parallel, costing = report.trace.model.parallel, report.costing
    yield Section(f"Memory of {report.title}", report.memory)
    if not parallel.is_one:
        yield Section(f"Each device of {parallel}", costing.ranks)
        yield Section("What devices hand each other in the pass", costing.collectives)
        yield Section("What a device holds of each parameter", costing.shards)
    if report.costing.devices and report.sizer is not None:
        yield Section("What fits", report.costing.fits)


def _of_devices(report: "Report") -> Sections:
    if report.costing.devices:
        yield Section(f"Time of {report.trace.model.name}", report.latency, _BAND)
    if ALL in report.deployed.hardware:
        yield report.sizing.section()


def _ops_tables(report: "Report") -> Tables:
    found = {"modules": report.modules, "ops": report.ops, "kernels": report.kernels}
    return found | ({"times": report.times} if report.costing.devices else {})


def _sweep_tables(report: "Report") -> Tables:
    sweep = report.sweep
    if sweep is None:
        return {}
    return {"shapes": sweep.shapes, "workloads": sweep.totals, "sweep_ops": sweep.ops}


def _costs_tables(report: "Report") -> Tables:
    found = {"costs": report.costs, "layers": report.layers}
    if report.costing.devices:
        found |= {"times": report.times}
    return found


def _memory_tables(report: "Report") -> Tables:
    costing, found = report.costing, {"memory": report.memory}
    if not report.trace.model.parallel.is_one:
        found |= {
            "ranks": costing.ranks,
            "collectives": costing.collectives,
            "shards": costing.shards,
        }
    if costing.devices and report.sizer is not None:
        found["fits"] = costing.fits
    return found


_SECTIONS: dict[str, Callable[["Report"], Sections]] = {
    "summary": _summary,
    "ops": _ops,
    "deps": _deps,
    "topological": _topological,
    "multi-config": _sweep,
    "costs": _costs,
    "memory": _memory,
}
_TABLES: dict[str, Callable[["Report"], Tables]] = {
    "summary": lambda report: {"summary": report.summary},
    "ops": _ops_tables,
    "deps": lambda report: {"modules": report.modules, "edges": report.edges},
    "topological": lambda report: {"topological": report.topological},
    "multi-config": _sweep_tables,
    "costs": _costs_tables,
    "memory": _memory_tables,
}
