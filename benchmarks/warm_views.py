"""Times what follows a trace: sizes, tables, pages, and a slider of the panel, in a warm kernel.

    python -m benchmarks.warm_views [--runs 7] [--only WORD]

Each figure is the median of the runs, in one process that was asked for another model before: the
time of this process alone, which other programs on the machine do not stretch. Where it says
`traces kept`, the session has the traces and nothing that was computed from each of them.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import llmsim_magic as llmsim
from benchmarks.peers import table
from llmsim_magic.notebook.arguments import parse_line
from llmsim_magic.notebook.background_worker import Job
from llmsim_magic.notebook.panel.panel import Panel
from llmsim_magic.records.trace.recorded import Record
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.simulate.answer import answer
from llmsim_magic.simulate.cache.session_cache import forget_traces

SMALL, MIDDLE, DEEP = "Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B", "meta-llama/Llama-3.1-405B"
SLIDER = (256, 512, 1024)  # contexts that the slider moves between
# view, milliseconds that its page, and its text, may take of a small model
VIEWS = (
    ("--summary", 25, 25),
    ("--ops", 50, 25),
    ("--costs", 25, 25),
    ("--memory", 25, 25),
    ("--deps", 100, 50),
    ("--topological", 50, 25),
)
PANES: tuple[tuple[str, dict[str, str]], ...] = (
    ("summary", {}),
    ("ops", {}),
    ("ops", {"hardware": "H100"}),
    ("costs", {}),
    ("memory", {}),
    ("deps", {}),
)


@dataclass(frozen=True)
class Row:
    """What is timed after what is done before each run, and the milliseconds that it may take."""

    what: str
    run: Callable[[], object]
    target_ms: float
    before: Callable[[], object] = gc.collect


def keep_traces() -> None:
    """Forget what was computed from each trace of this process."""
    kinds = (Trace, Record)
    for each in [each for each in gc.get_objects() if type(each) in kinds]:
        for name in vars(each).keys() - {field.name for field in fields(each)} - {"_family"}:
            del vars(each)[name]
    gc.collect()


def report(line: str) -> Any:
    return answer(parse_line(line, {}).request)


def tables() -> None:
    sweep = llmsim.sweep(SMALL)
    assert len(sweep.ops)
    assert len(sweep.shapes)


def slider(view: str, options: dict[str, Any]) -> Callable[[], object]:
    """A function that moves the slider of a panel to the next context, without its threads."""
    panel = llmsim.panel(SMALL, view=view, **options)
    number = panel.controls.context.number
    number.unobserve_all()
    panel.controls.context.slider.unobserve_all()
    contexts = iter(SLIDER * 1000)

    def move() -> None:
        number.value = str(next(contexts))
        _answer(panel)

    for _ in SLIDER:
        move()
    return move


def _answer(panel: Panel) -> None:
    question = panel._question()
    assert question is not None
    found = panel._compute(question, Job(question.key, partial(panel._compute, question)))
    panel._display(question, found)


def rows() -> Iterator[Row]:
    """Everything that is timed; each row prepares what it needs when it is reached."""
    llmsim.size(SMALL)
    llmsim.size(MIDDLE)
    size = partial(llmsim.size, MIDDLE)
    yield Row(f"`size({MIDDLE!r})`, 80 devices", size, 300, forget_traces)
    yield Row("… traces kept", size, 300, keep_traces)
    tables()
    yield Row("8 workloads: `.ops`, `.shapes`, traces kept", tables, 50, keep_traces)
    page = f"{SMALL} --multi-config"
    yield Row("8 workloads: page, traces kept", lambda: _page(page), 50, keep_traces)
    for name, options in PANES:
        text = f"slider: {name}{''.join(f', {each}' for each in options.values())}"
        yield Row(text, slider(name, options), 15)
    for model, factor in ((SMALL, 1), (DEEP, 2)):
        for view, page_ms, text_ms in VIEWS:
            line = f"{model} {view}"
            _page(line)
            yield Row(f"`{line}`, page", partial(_page, line), factor * page_ms)
            yield Row("… text", lambda line=line: report(line).text(), factor * text_ms)


def _page(line: str) -> object:
    return report(line)._repr_mimebundle_()


def median_ms(row: Row, runs: int) -> float:
    seconds = []
    for _ in range(runs):
        row.before()
        start = time.process_time()
        row.run()
        seconds.append(time.process_time() - start)
    return 1000 * statistics.median(seconds)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--runs", type=int, default=7)
    arguments.add_argument("--only", default="", help="rows that contain this")
    given = arguments.parse_args()
    found = []
    for row in rows():
        if given.only in row.what:
            figure = median_ms(row, given.runs)
            holds = "yes" if figure <= row.target_ms else "no"
            found.append((row.what, f"{figure:.1f} ms", f"≤ {row.target_ms} ms", holds))
    print(table(("what", "figure", "target", "holds"), found))


if __name__ == "__main__":
    main()
