"""Times sweeps whose workloads are traced beside sweeps whose workloads formulas give.

    python -m benchmarks.symbolic [--runs 3] [MODEL …]

Each run times both ways one after the other, in seconds of the processor; figures are medians, and
the ratio is that of each pair. `tables` are `.ops`, `.shapes` and `.totals`. Cold starts without
traces and formulas, warm has the formulas and no trace of these workloads.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import llmsim_magic as llmsim
from llmsim_magic.analyses.formulas.symbolic_trace import SymbolicTrace
from llmsim_magic.records.trace.workload import PHASES, Workload
from llmsim_magic.simulate.cache import session_cache
from llmsim_magic.simulate.cache.session_cache import Kind
from llmsim_magic.simulate.models.building import build_workload_model
from llmsim_magic.simulate.models.recipes import ModelRecipe, model_recipe
from llmsim_magic.simulate.models.workloads import question_of, trace_workload
from llmsim_magic.simulate.request import Build

MODELS = ("Qwen/Qwen3-0.6B", "meta-llama/Llama-3.1-8B", "mistralai/Mixtral-8x7B-v0.1")
BATCHES = (1, 2, 4, 8, 16)
CONTEXTS = (1, 16, 128, 512, 1024, 2048, 4096)
Pair = tuple[float, float]  # seconds traced and by formulas


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def kinds() -> list[Kind]:
    return [question_of(Workload(phase), True).kind for phase in PHASES]


def without_formulas(recipe: ModelRecipe) -> None:
    """Have the model's workloads traced: no formulas are found for it."""
    for kind in kinds():
        session_cache.keep_symbolic(recipe.owner, kind, SymbolicTrace(regions=()))


def tables(name: str, contexts: Sequence[int]) -> None:
    sweep = llmsim.sweep(name, batch=BATCHES, context=contexts)
    _ = sweep.ops, sweep.shapes, sweep.totals


def cold(recipe: ModelRecipe) -> Pair:
    """70 workloads with tables; nothing is known."""
    session_cache.forget_traces()
    without_formulas(recipe)
    traced = seconds(lambda: tables(recipe.name, CONTEXTS))
    session_cache.forget_traces()
    return traced, seconds(lambda: tables(recipe.name, CONTEXTS))


def warm(recipe: ModelRecipe, run: int) -> Pair:
    """70 other workloads with tables; the formulas are known."""
    contexts = tuple(context + 20 + 7 * run for context in CONTEXTS)
    evaluated = seconds(lambda: tables(recipe.name, contexts))
    known = {kind: session_cache.symbolic(recipe.owner, kind) for kind in kinds()}
    session_cache.forget_traces()
    without_formulas(recipe)
    traced = seconds(lambda: tables(recipe.name, contexts))
    for kind, found in known.items():
        if found is not None:
            session_cache.keep_symbolic(recipe.owner, kind, found)
    return traced, evaluated


def one(recipe: ModelRecipe) -> Iterator[Pair]:
    """Single workloads, traced and evaluated."""
    from llmsim_magic.capture.run import run

    model = build_workload_model(recipe)
    for context in range(140, 156):
        workload = Workload("prefill", 2, context)
        evaluated = seconds(lambda each=workload: trace_workload(recipe, each, True))
        yield seconds(lambda each=workload: run(model, each)), evaluated


def many(recipe: ModelRecipe) -> float:
    """Totals of 10,000 workloads; the formulas are known."""

    def totals() -> None:
        sweep = llmsim.sweep(
            recipe.name, batch=range(1, 101), context=range(100, 5_100, 100), sure=True
        )
        _ = sweep.totals

    return seconds(totals)


def line(what: str, pairs: Sequence[Pair]) -> str:
    traced, evaluated = (statistics.median(pair[place] for pair in pairs) for place in (0, 1))
    ratio = statistics.median(pair[0] / max(pair[1], 1e-9) for pair in pairs)
    return f"{what:<34}{traced:>9.4f}{evaluated:>9.4f}{ratio:>9.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    os.environ["LLMSIM_CACHE"] = "off"
    for name in options.models:
        recipe = model_recipe(name, Build())
        llmsim.sweep(name, batch=[1, 2], context=[9])
        print(f"{name:<34}{'traced':>9}{'formulas':>9}{'ratio':>9}")
        print(line("70 workloads with tables, cold", [cold(recipe) for _ in range(options.runs)]))
        print(
            line(
                "70 workloads with tables, warm",
                [warm(recipe, run) for run in range(options.runs)],
            )
        )
        print(line("one workload", list(one(recipe))))
        print(f"{'10,000 workloads, totals':<34}{'':>9}{many(recipe):>9.2f}", flush=True)


if __name__ == "__main__":
    main()
