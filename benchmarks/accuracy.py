"""Measures the error of predictions, and how often their bands hold.

    python -m benchmarks.accuracy --json FILE [--data DIR] [--silicon DIR] [--table FILE]
        [--points FILE]

The DIR of `--data` holds `operators.csv.gz`, `end_to_end.csv.gz` and `published.csv`, which an
engine is scored by; that of `--silicon` runs of models on a GPU (see `silicon_rows`), which
transformers is scored by, and training steps (see `silicon_training` for their memory and
`silicon_steps` for their times). FILE gets a list of
`{"class", "device", "n", "median_ape", "p90_ape", "coverage"}`: absolute errors as shares of the
measurement (0.08 is 8 %), and the share of measurements inside the stated band, which is nine of
ten by intent. Nothing is scored by what has seen it: rows that the shipped calibration was fitted
to are predicted by fits to the other folds of their device, all others by the calibration as it
ships. The table also shows each device as if it had never been measured. The file of `--points`
gets every whole pass, for `accuracy_plot`.
"""

import argparse
import csv
import gzip
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, fields
from pathlib import Path

import numpy as np

from benchmarks.calibrate import (
    FITTED,
    Groups,
    digest,
    grouped,
    others,
    predicted,
    transfer,
    without,
)
from benchmarks.end_to_end import Pass, bands, model_named, passes
from benchmarks.measured_kernels import Measured, UnusableRow, operators, read
from benchmarks.scored import Scored
from benchmarks.silicon_accuracy import SILICON_CLASSES, SILICON_TIMES, of_silicon
from benchmarks.silicon_steps import STEP_CLASSES, of_steps
from benchmarks.silicon_training import TRAIN_CLASSES, RunScore, of_training, runs
from benchmarks.silicon_training import table as training_table
from llmsim_magic.analyses.memory.capacity import Fit, Setup
from llmsim_magic.analyses.time.calibration_fit import NOMINAL, fit, folds
from llmsim_magic.catalog import accelerators
from llmsim_magic.catalog.calibration import calibration
from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.records.hardware.calibration import Band, Calibration
from llmsim_magic.records.trace.parallel import Parallel
from llmsim_magic.simulate.hardware.capacity_planner import CapacityPlanner

CLASSES = (
    *("matmul_bf16", "matmul_fp8", "decode_attention", "prefill_attention", "memory_bound"),
    *("collective", "prefill_step", "decode_step", "memory"),
    *SILICON_CLASSES,
    *TRAIN_CLASSES,
    *STEP_CLASSES,
)
PASSES = ("prefill_step", "decode_step", *SILICON_TIMES)
GIB = 2**30
FEW = 10  # rows that were fitted to, but are too few to fit to a part of: taken as unseen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--silicon", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--points", type=Path)
    asked = parser.parse_args()
    if asked.data is None and asked.silicon is None:
        parser.error("nothing to score: give --data, --silicon or both")
    found: list[Scored] = []
    unseen: list[dict[str, object]] = []
    left_out: Counter[str] = Counter()
    trained: list[RunScore] = []
    if asked.data is not None:
        rows, left_out = operators(asked.data)
        whole, not_passes = passes(asked.data, calibration())
        found += [*of_operators(rows), *of_passes(whole), *of_memory(asked.data)]
        unseen = summary(if_unseen(grouped(rows)))
        left_out += not_passes
    if asked.silicon is not None:
        trained = runs(asked.silicon)
        found += [*of_silicon(asked.silicon), *of_training(trained), *of_steps(asked.silicon)]
    if asked.points is not None:
        write_points(asked.points, found)
    scores = summary(found)
    named = [score for score in scores if score["class"] in CLASSES]
    asked.json.write_text(json.dumps(named, indent=1) + "\n", encoding="utf-8")
    text = "\n".join((*report(scores, unseen, left_out), *training_report(trained)))
    print(text)
    if asked.table:
        asked.table.write_text(text + "\n", encoding="utf-8")


def write_points(path: Path, found: Iterable[Scored]) -> None:
    """Every whole pass: its class, device, and seconds measured and predicted with the band."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(Scored))
        for each in found:
            if each.scored in PASSES:
                writer.writerow(astuple(each))


def of_operators(rows: Iterable[Measured]) -> Iterator[Scored]:
    """Rows that were fitted to by cross-validation, all others by what ships."""
    with gzip.open(FITTED, "rt", encoding="utf-8") as file:
        fitted = set(file.read().split())
    seen: list[Measured] = []
    for row in rows:
        if digest(row) in fitted:
            seen.append(row)
            continue
        guess = predicted(row, calibration())
        yield _scored(row, guess.seconds, guess.low, guess.high)
    for devices in grouped(seen).values():
        for device, some in devices.items():
            yield from _by_folds(device, some)


def _by_folds(device: str, rows: list[Measured]) -> Iterator[Scored]:
    kind = rows[0].sample.size.kind
    shipped = calibration()
    if len(rows) < FEW:
        for row, guess in without(device, rows, shipped.fits, shipped.unseen[kind]):
            yield _scored(row, guess.seconds, guess.low, guess.high)
        return
    for train, test in folds(len(rows)):
        here = fit([rows[place].sample for place in train], accelerators.find(device))
        known = Calibration({kind: {device: here}}, {kind: shipped.unseen[kind]})
        for row in (rows[place] for place in test):
            guess = predicted(row, known)
            yield _scored(row, guess.seconds, guess.low, guess.high)


def if_unseen(groups: Groups) -> Iterator[Scored]:
    """Each device by what its relatives show, with the band that the others earned."""
    fits = calibration().fits
    for kind, devices in groups.items():
        if kind not in fits:
            continue
        for device, rows in devices.items():
            known = others(device, fits)
            if kind not in known:
                continue
            measured = {name: some for name, some in devices.items() if name in known[kind]}
            for row, guess in without(device, rows, known, transfer(measured, known)):
                yield _scored(row, guess.seconds, guess.low, guess.high)


def of_passes(found: list[Pass]) -> Iterator[Scored]:
    """Whole passes; their band is what passes on all other devices earned."""
    for each in found:
        others = [other for other in found if other.device != each.device]
        earned = bands(others) or calibration().passes
        band = earned.get(each.scored.removesuffix("_step"), Band(1.0, 1.0))
        low = min(each.operators_low, each.predicted * band.low)
        high = max(each.operators_high, each.predicted * band.high)
        yield Scored(each.scored, each.device, each.measured, each.predicted, low, high)


def of_memory(data: Path) -> Iterator[Scored]:
    """What an engine reports at its start: weights, and what they leave to the cache.

    The bands are what others' padding and rounding explain; ranks may differ by more than one.
    """
    for row in read(data / "published.csv"):
        if row.get("metric") not in ("weights_memory", "available_kv_cache"):
            continue
        try:
            found, tp = _fit(row)
        except (UnusableRow, LlmsimError, ValueError):
            continue
        measured = float(row["value"]) * GIB
        if row["metric"] == "weights_memory":
            guess, give = float(found.memory.weights), measured * (0.01 if tp == 1 else 0.05)
        else:
            guess = float(found.usable - found.memory.total + found.memory.cache)
            give = GIB * (0.2 if tp == 1 else 1.0)
        if measured > 0:
            yield Scored("memory", found.device, measured, guess, guess - give, guess + give)


def _fit(row: Mapping[str, str]) -> tuple[Fit, int]:
    tp = int(float(row["n_gpus"] or 1))
    context = int(float(row["input_len"] or row["output_len"] or 2048))
    stored = row["dtype"] if row["dtype"] in ("fp8", "int8", "int4") else None
    setup = Setup(
        batch=int(float(row["batch"] or 1)),
        context=context,
        parallel=Parallel(tp),
        weight_dtype=stored,
    )
    sizer = CapacityPlanner(model_named(row["model"]))
    found = sizer.fit(setup, accelerators.find(row["hardware"]), "vllm", remedies=False)
    if found is None:
        raise UnusableRow("a device whose memory is not known")
    return found, tp


def _scored(row: Measured, seconds: float, low: float, high: float) -> Scored:
    return Scored(row.scored, row.device, row.sample.seconds, seconds, low, high)


def summary(found: Iterable[Scored]) -> list[dict[str, object]]:
    groups: dict[tuple[str, str], list[Scored]] = {}
    for each in found:
        groups.setdefault((each.scored, each.device), []).append(each)
    order = {name: place for place, name in enumerate(CLASSES)}
    scores = []
    for scored, device in sorted(groups, key=lambda key: (order.get(key[0], 99), key)):
        some = groups[scored, device]
        errors = [abs(each.predicted - each.measured) / each.measured for each in some]
        inside = [each.low <= each.measured <= each.high for each in some]
        scores.append(
            {
                "class": scored,
                "device": device,
                "n": len(some),
                "median_ape": round(float(np.median(errors)), 4),
                "p90_ape": round(float(np.quantile(errors, 0.9)), 4),
                "coverage": round(sum(inside) / len(some), 4),
            }
        )
    return scores


def report(
    scores: list[dict[str, object]], unseen: list[dict[str, object]], left_out: Counter[str]
) -> Iterator[str]:
    yield "# Accuracy"
    yield ""
    yield "Predicted against measured, by `benchmarks/accuracy.py`, which says how. Absolute errors"
    yield f"in per cent of the measurement; coverage of a stated band of {NOMINAL:.0%}."
    yield ""
    yield "## By fits to other rows of the same device"
    yield ""
    yield from _table(scores)
    if unseen:
        yield ""
        yield "## As if the device had never been measured"
        yield ""
        yield from _table(unseen)
        yield ""
        yield "Median over the devices of their median errors: " + ", ".join(_over_devices(unseen))
    if left_out:
        yield ""
        yield "## Rows left out"
        yield ""
        yield from (f"* {number}: {why}" for why, number in left_out.most_common())


def training_report(found: list[RunScore]) -> Iterator[str]:
    """The memory of each training run, if there are any."""
    if found:
        yield ""
        yield "## Memory of training steps"
        yield ""
        yield "Predicted bytes beside those of the allocator on the device, in per cent, by"
        yield "`benchmarks/silicon_training.py`: the figures of a steady step, and the worst of the"
        yield "first one, in which the optimizer creates its states."
        yield ""
        yield from training_table(found)


def _over_devices(scores: list[dict[str, object]]) -> Iterator[str]:
    """Each class, and all: a device counts as one however often it was measured."""
    every = [float(str(s["median_ape"])) for s in scores]
    for scored in dict.fromkeys(str(s["class"]) for s in scores):
        some = [float(str(s["median_ape"])) for s in scores if s["class"] == scored]
        yield f"{scored} {np.median(some):.1%}"
    if every:
        yield f"all {np.median(every):.1%}."


def _table(scores: list[dict[str, object]]) -> Iterator[str]:
    yield "| class | device | n | median error | 90 % of errors below | coverage |"
    yield "|---|---|--:|--:|--:|--:|"
    for s in scores:
        shares = (f"{100 * float(str(s[name])):.1f} %" for name in ("median_ape", "p90_ape"))
        yield (
            f"| {s['class']} | {s['device']} | {s['n']} | {' | '.join(shares)} | "
            f"{float(str(s['coverage'])):.0%} |"
        )


if __name__ == "__main__":
    main()
