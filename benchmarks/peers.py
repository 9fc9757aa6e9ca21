"""Times a trace against torchinfo, torchview, torchlens, hooks and a bare forward pass.

    pip install -e '.[bench]'
    python -m benchmarks.peers [--runs 5] [--write]

`peer_tools.py` says what is timed, `timing.py` how. A peer that is not installed is left out.
`--write` puts the tables into `peers.md`.
"""

import argparse
import contextlib
import operator
import os
import platform
import statistics
from collections.abc import Iterable, Iterator
from importlib import metadata
from itertools import product
from pathlib import Path

from benchmarks.peer_tools import (
    DEEP,
    FORMULAS_KNOWN,
    KEPT,
    LAYERS,
    PHASES,
    SIZES,
    SMALL,
    large,
    of_depth,
    of_prefill,
    of_sweeps,
)
from benchmarks.timing import Contender, Process, race, say

LARGE = (DEEP, "deepseek-ai/DeepSeek-V3", "moonshotai/Kimi-K2-Instruct")
PEERS = ("torchinfo", "torchview", "torchlens")
HOLDS = {"<": operator.lt, "≤": operator.le, ">": operator.gt, "≥": operator.ge}


def of_large(runs: int) -> dict[str, dict[str, float]]:
    """Medians for each large model, over that many fresh processes."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in LARGE}
    for turn, name in product(range(runs), LARGE):
        with Process() as fresh:
            found[name].append(fresh(large, name))
        say(f"round {turn + 1}: {name}: {found[name][-1]['warm']:.3f} s")
    return {
        name: {key: statistics.median(each[key] for each in results) for key in results[0]}
        for name, results in found.items()
    }


def ratio(found: dict[str, Contender], above: str, below: str) -> float | None:
    """How many times longer one takes; None where one of them was not measured."""
    over, under = found[above].median, found[below].median
    return over / under if over and under else None


def slope_ms(found: dict[str, Contender]) -> float | None:
    """What one more workload costs: the line through the sizes."""
    medians = [found[f"ours, {size} workloads"].median for size in SIZES]
    known = [median for median in medians if median is not None]
    if len(known) < len(SIZES):
        return None
    return statistics.linear_regression(list(SIZES), known).slope * 1000


def requirements(
    one: dict[str, Contender],
    many: dict[str, Contender],
    models: dict[str, dict[str, float]],
    depth: dict[str, Contender],
) -> Iterator[tuple[str, ...]]:
    """Each requirement with its figure, its target and whether it holds."""
    few, most = LAYERS
    yield judged("torchlens ÷ ours", ratio(one, "torchlens", "ours"), "≥", 100)
    yield judged("torchinfo ÷ ours", ratio(one, "torchinfo", "ours"), "≥", 5)
    yield judged("ours ÷ bare, one layer", ratio(one, "ours", "bare, one layer"), "≤", 2)
    eight = "ours, 8 workloads"
    yield judged(eight, many[eight].median, "≤", 0.15, " s")
    yield judged(KEPT, many[KEPT].median, "≤", 0.15, " s")
    above = "straightforward, 8 workloads"
    yield judged("straightforward ÷ ours, 8 workloads", ratio(many, above, eight), "≥", 100)
    yield judged("straightforward ÷ ours asked before", ratio(many, above, KEPT), "≥", 100)
    yield judged(FORMULAS_KNOWN, many[FORMULAS_KNOWN].median, "≤", 0.3, " s")
    yield judged("one more workload", slope_ms(many), "≤", 50, " ms")
    for name, found in models.items():
        yield judged(f"{name}, warm trace", found["warm"], "<", 1, " s")
        yield judged(f"{name}, peak above the imports", found["memory"], "<", 1, " GB")
    for phase in PHASES:
        figure = ratio(depth, f"{phase}, {most} layers", f"{phase}, {few} layers")
        yield judged(f"{phase}, {most} layers ÷ {few} layers", figure, "≤", 1.3)


def judged(
    what: str, figure: float | None, sign: str, limit: float, unit: str = ""
) -> tuple[str, ...]:
    target = f"{sign} {limit:g}{unit}"
    if figure is None:
        return what, "not measured", target, ""
    return what, short(figure) + unit, target, "yes" if HOLDS[sign](figure, limit) else "no"


def short(figure: float | None) -> str:
    if figure is None:
        return ""
    return f"{figure:.3g}" if figure < 100 else f"{figure:.0f}"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def timings(found: dict[str, Contender]) -> str:
    """Medians, fastest and slowest, and each median beside the first's."""
    first = next(iter(found))
    rows = []
    for name, contender in found.items():
        times = contender.problem
        if contender.seconds:
            low, high = min(contender.seconds), max(contender.seconds)
            times = f"{contender.median:.3f} ({low:.3f} to {high:.3f})"
        rows.append((name, contender.how, times, short(ratio(found, name, first))))
    return table(("what", "how", "seconds", f"÷ {first}"), rows)


def depths(found: dict[str, Contender]) -> str:
    """Medians of the shallow and the deep model beside each other."""
    few, most = (f"{layers} layers" for layers in LAYERS)
    rows = []
    for what in ("build", *PHASES):
        pair = [found[f"{what}, {layers}"] for layers in (few, most)]
        times = [f"{each.median:.3f}" if each.median else each.problem for each in pair]
        rows.append((what, *times, short(ratio(found, pair[1].name, pair[0].name))))
    return table(("what", f"{few}, s", f"{most}, s", "ratio"), rows)


def page(runs: int) -> str:
    one, many, depth = (race(each(), runs) for each in (of_prefill, of_sweeps, of_depth))
    models = of_large(runs)
    of_models = [
        (name, *(f"{found[key]:.3f}" for key in ("build", "cold", "warm", "memory")))
        for name, found in models.items()
    ]
    return "\n\n".join(
        (
            "# Beside its peers",
            f"`python -m benchmarks.peers --write`: medians of {runs} (fastest to slowest), "
            "measured in turn, each contender in a process of its own, warm.",
            machine(),
            f"## One prefill of {SMALL}, batch 1 × context 128, model built",
            timings(one),
            "Real weights are random, in the config's dtype, and run on one thread, as all else: "
            f"with all of a quiet machine they are at most {os.cpu_count()} times faster.",
            f"## Several workloads of {SMALL}",
            timings(many),
            "The straightforward way's decode reads one token without a cache.",
            f"## Depth: {DEEP} and its shallow twin",
            depths(depth),
            "## Large models, each in a fresh process",
            table(("model", "build, s", "first trace, s", "warm trace, s", "peak, GB"), of_models),
            "The peak is that above the imports, building included.",
            "## Requirements",
            table(("what", "figure", "target", "holds"), requirements(one, many, models, depth)),
        )
    )


def machine() -> str:
    found = [f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"]
    for name in ("torch", "transformers", *PEERS):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return ", ".join(found) + "."


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--write", action="store_true", help="into peers.md beside this file")
    given = arguments.parse_args()
    text = page(given.runs)
    if given.write:
        Path(__file__).with_suffix(".md").write_text(text + "\n", "utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
