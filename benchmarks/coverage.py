"""Traces every model type that transformers can load: one row for each.

    python -m benchmarks.coverage full       # default configurations, full size, on meta
    python -m benchmarks.coverage reduced    # made small, held against real forwards on the CPU
    python -m benchmarks.coverage train      # a training step of each, made small, on meta
    python -m benchmarks.coverage step       # ... held against real steps on the CPU
    python -m benchmarks.coverage table      # all into benchmarks/coverage.csv and coverage.md

Each type has a process of its own and two of them run at once. A survey that was stopped goes on
where it stood: its rows are in `coverage-full.jsonl` and `coverage-reduced.jsonl`. The table keeps
the rows of types that were not surveyed again, with the version of transformers that they had.
"""

import argparse
import collections
import importlib
import json
import multiprocessing
import platform
import resource
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from llmsim_magic.records.errors import describe

BATCH = 2
CONTEXT = 16  # of reduced models; a full one reads 128 tokens, or what its positions allow
LIMIT_S = 300.0
MAX_PARAMETERS = 400_000_000  # of a model with real weights
MAX_TRAINED = 60_000_000  # of one that is trained
HERE = Path(__file__).parent
TABLE = HERE / "coverage.csv"
# Loaded once, before the processes are forked.
PRELOADED = (
    "llmsim_magic.capture.run",
    "tests.helpers.real_forward",
    "tests.helpers.real_training",
    "tests.helpers.reduced_configs",
    "tests.helpers.replay_comparison",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "torch._meta_registrations",
    "torch._decomp",
    "torch._refs",
)


def survey_full(model_type: str) -> dict[str, Any]:
    """Build the default configuration of a type on `meta` and trace it in both phases."""
    import transformers

    try:
        config = transformers.CONFIG_MAPPING[model_type]()
    except Exception as error:
        return {"prefill": f"no default configuration: {describe(error)}"}
    row: dict[str, Any] = {}
    for phase in ("prefill", "decode"):
        row[phase], report = traced(config, phase, "full")
        if report is None:
            return row
        row |= facts_of(report, phase)
        row[f"{phase}_replay"] = replay_of(config, report)
    return row


def replay_of(config: Any, report: Any) -> str:
    """Whether a trace with replayed layers equals the one in which every layer runs.

    Both come after the report's own, for some models remember tables from one pass to the next.
    """
    from llmsim_magic.capture.run import run
    from llmsim_magic.simulate.models.building import build_model
    from llmsim_magic.simulate.models.recipes import model_recipe
    from llmsim_magic.simulate.request import Build
    from tests.helpers.replay_comparison import differences

    if not report.trace.replays:
        return "no layers alike"
    weightless = build_model(model_recipe(config, Build()))
    full, replayed = (
        run(weightless, report.trace.workload, replay=replay) for replay in (False, True)
    )
    return next(differences(full, replayed), "equal")[:300]


def survey_reduced(model_type: str) -> dict[str, Any]:
    """Trace a small configuration of a type and hold every module against a real forward."""
    from llmsim_magic.records.trace.workload import Workload
    from tests.helpers.real_forward import real_and_meta_models
    from tests.helpers.reduced_configs import candidates

    prefill, decode = (Workload(phase, BATCH, CONTEXT) for phase in PHASES)
    errors = []
    try:
        for config, completed in candidates(model_type):
            try:
                real = real_and_meta_models(config, limit=MAX_PARAMETERS)
                seen = real.prefill(prefill)
            except Exception as error:
                errors.append(describe(error))
            else:
                row: dict[str, Any] = {"completed": completed}
                break
        else:
            return {"prefill": f"no real forward: {'; '.join(dict.fromkeys(errors))}"}
    except Exception as error:
        return {"prefill": f"no default configuration: {describe(error)}"}
    row |= held(real, seen, config, "prefill")
    try:
        step = real.decode(decode)
    except Exception as error:
        return row | {"decode": f"no real forward: {describe(error)}"}
    if step is None:
        status, _ = traced(config, "decode", "reduced")
        return row | {"decode": "a step that does not exist" if status == "yes" else "none"}
    return row | held(real, step, config, "decode")


def survey_train(model_type: str) -> dict[str, Any]:
    """Trace a training step of a small configuration, also with checkpointing."""
    row, asked = small_step(model_type)
    return row if asked is None else row | {"train_checkpointing": asked.checkpointed()}


def survey_step(model_type: str) -> dict[str, Any]:
    """Hold the trace of a training step of a small configuration against a real step."""
    row, asked = small_step(model_type)
    return row if asked is None else row | asked.held(MAX_TRAINED)


def small_step(model_type: str) -> tuple[dict[str, Any], Any]:
    """Whether a step of a small configuration traces, and by which loss; what was traced."""
    from tests.helpers.reduced_configs import candidates

    status = ""
    try:
        for config, _ in candidates(model_type):
            status, report = traced(config, "prefill", "reduced")
            if report is not None:
                row, asked = train_row(config)
                return {"prefill": "yes"} | row, asked
    except Exception as error:
        return {"prefill": f"no default configuration: {describe(error)}"}, None
    return {"prefill": status}, None


def train_row(config: Any) -> tuple[dict[str, Any], Any]:
    """Whether a step traces with the model's own loss, or else with one of its output."""
    import llmsim_magic as llmsim
    from tests.helpers.real_training import (
        SmallStep,
        mean_of_output,
        with_own_loss,
        without_randomness,
    )

    config = without_randomness(config)
    failed = ""
    for made in with_own_loss(config):
        asked = SmallStep(made, BATCH, CONTEXT)
        try:
            trace = asked.trace()
        except llmsim.LlmsimError as error:
            failed = failed or str(error)
        except Exception as error:
            return {"train": f"DEFECT {describe(error)}"}, None
        else:
            return {"train": "yes", "train_loss": f"own, of {trace.model.class_name}"}, asked
    asked = SmallStep(config, BATCH, CONTEXT, loss=mean_of_output)
    why = {"train_own": failed}
    try:
        trace = asked.trace()
    except llmsim.LlmsimError as error:
        return {"train": str(error)} | why, None
    except Exception as error:
        return {"train": f"DEFECT {describe(error)}"} | why, None
    loss = f"mean of the output of {trace.model.class_name}"
    return {"train": "yes", "train_loss": loss} | why, asked


def held(real: Any, seen: Any, config: Any, phase: str) -> dict[str, Any]:
    """What a trace and a real forward agree on, or the first thing that they do not."""
    from tests.helpers.real_forward import cache_bytes, comparable_flops, differences

    status, report = traced(config, phase, "reduced")
    if report is None:
        return {phase: status}
    unlike = differences(real.model, seen, report.modules)
    path, pair = next(iter(unlike.items()), ("", ""))
    flops = comparable_flops(report.kernels), seen.flops
    parameters = sum(parameter.numel() for parameter in real.model.parameters())
    cache = report.summary.loc["cache_bytes", "value"], cache_bytes(real.model, seen.output)
    return facts_of(report, phase) | {
        phase: f"{len(unlike)} modules differ, as {path}: {pair}"[:300] if unlike else "yes",
        f"{phase}_flops": "equal" if flops[0] == flops[1] else f"{flops[0]}, really {flops[1]}",
        f"{phase}_cache": "equal" if cache[0] == cache[1] else f"{cache[0]}, really {cache[1]}",
        "parameters": report.summary.loc["parameters", "value"] == parameters,
    }


def traced(config: Any, phase: str, size: str) -> tuple[str, Any]:
    """Whether it traces, or the line that says why not; and the report."""
    import llmsim_magic as llmsim

    asked: dict[str, Any] = {"batch": BATCH}
    if size == "reduced":
        asked |= {"context": CONTEXT, "dtype": "float32"}
    try:
        return "yes", llmsim.trace(config, phase=phase, **asked)
    except llmsim.LlmsimError as error:
        missing = phase == "decode" and "decode does not exist" in str(error)
        return "none" if missing else str(error), None
    except Exception as error:
        return f"DEFECT {describe(error)}", None


def facts_of(report: Any, phase: str) -> dict[str, Any]:
    """What the table says of a trace; the number of operators is that of the prefill."""
    found = {"class": report.trace.model.class_name, f"{phase}_notes": list(report.trace.notes)}
    return found | ({"operators": len(report.trace.operators)} if phase == "prefill" else {})


PHASES = ("prefill", "decode")
WARMED = ("train", "step")  # surveys that do not say how long a process takes
SURVEYS = {
    "full": survey_full,
    "reduced": survey_reduced,
    "train": survey_train,
    "step": survey_step,
}


@dataclass
class Running:
    """A type surveyed in a process of its own."""

    model_type: str
    process: Any
    answer: Any
    until: float


def rows_of(types: Sequence[str], size: str, workers: int) -> Iterator[dict[str, Any]]:
    """One row for each type, each made in a forked process within `LIMIT_S`."""
    waiting, running = list(types), list[Running]()
    while waiting or running:
        while waiting and len(running) < workers:
            running.append(start(waiting.pop(0), size))
        wait([each.answer for each in running], timeout=1.0)
        for each in list(running):
            late = time.monotonic() > each.until
            if late or each.answer.poll():
                running.remove(each)
                yield {"model_type": each.model_type, **finish(each, late=late)}


def start(model_type: str, size: str) -> Running:
    fork = multiprocessing.get_context("fork")
    reader, writer = fork.Pipe(duplex=False)

    def work() -> None:
        warnings.filterwarnings("ignore")
        started = time.perf_counter()
        row = SURVEYS[size](model_type)
        row["seconds"] = round(time.perf_counter() - started, 2)
        row["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        writer.send(row)

    process = fork.Process(target=work)
    process.start()
    writer.close()
    return Running(model_type, process, reader, time.monotonic() + LIMIT_S)


def finish(running: Running, *, late: bool) -> dict[str, Any]:
    try:
        row = {"prefill": f"over {LIMIT_S:.0f} s"} if late else running.answer.recv()
    except EOFError:
        row = {"prefill": "the process died"}
    running.process.kill()
    running.process.join()
    return row


def survey(size: str, types: Sequence[str], workers: int) -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for module in PRELOADED:
        importlib.import_module(module)
    if size in WARMED:
        for model_type in ("llama", "vit"):
            SURVEYS[size](model_type)
    done = {row["model_type"] for row in rows_in(size)}
    todo = [each for each in types or transformers.CONFIG_MAPPING if each not in done]
    with file_of(size).open("a") as out:
        for row in tqdm(rows_of(todo, size, workers), total=len(todo)):
            out.write(json.dumps(row) + "\n")
            out.flush()


def file_of(size: str) -> Path:
    return HERE / f"coverage-{size}.jsonl"


def rows_in(size: str) -> list[dict[str, Any]]:
    if not file_of(size).exists():
        return []
    return [json.loads(line) for line in file_of(size).read_text().splitlines()]


# Why a type has no row of its own in the counts below, by what its line says.
REASONS = {
    "no class for a part of a larger model": ("part of a larger model",),
    "its forward reads tensors of the model around it": ("only the model around it makes",),
    "a package that is not installed": ("library but it was not found", "No module named"),
    "the default configuration does not run as it stands (coverage.csv has the line of each)": (
        "",
    ),
}


def reason(row: dict[str, Any]) -> str:
    """Which of the reasons a line gives."""
    return next(
        reason for reason, words in REASONS.items() if any(word in row["prefill"] for word in words)
    )


def table() -> None:
    """Write the surveyed rows into the table, which keeps those of other types, and the counts."""
    rows = {row["model_type"]: row for row in _rows_of_table()}
    version = {"transformers": metadata.version("transformers")}
    for row in rows_in("full"):
        model_type = row["model_type"]
        rows[model_type] = rows.get(model_type, {}) | _full_columns(row) | version
    for row in rows_in("reduced"):
        model_type = row["model_type"]
        rows[model_type] = rows.get(model_type, {}) | _reduced_columns(row) | version
    for size, columns in (("train", _train_columns), ("step", _step_columns)):
        for row in rows_in(size):
            if row["prefill"].startswith(("yes", "over ")):
                model_type = row["model_type"]
                rows[model_type] = rows.get(model_type, {}) | columns(row)
    frame = pd.DataFrame(rows.values()).sort_values("model_type", ignore_index=True)
    frame["operators"] = pd.to_numeric(frame["operators"]).astype("Int64")
    frame = frame.fillna({name: "" for name in frame.columns if name != "operators"})
    frame.to_csv(TABLE, index=False)
    (HERE / "coverage.md").write_text(summary(frame))


def _rows_of_table() -> list[dict[str, Any]]:
    if not TABLE.exists():
        return []
    rows: list[dict[str, Any]] = pd.read_csv(TABLE, dtype=str, keep_default_na=False).to_dict(
        "records"
    )
    return rows


def _full_columns(row: dict[str, Any]) -> dict[str, Any]:
    notes = row.get("prefill_notes", [])
    return {
        "model_type": row["model_type"],
        "class": row.get("class", ""),
        "full_prefill": row["prefill"],
        "full_decode": row.get("decode", ""),
        "prefill_replay": row.get("prefill_replay", ""),
        "decode_replay": row.get("decode_replay", ""),
        "operators": row.get("operators", ""),
        "seconds": row.get("seconds", ""),
        "peak_mib": row.get("peak_mib", ""),
        "assumed": "; ".join(note for note in notes if "on the data" in note),
    }


def _reduced_columns(row: dict[str, Any]) -> dict[str, Any]:
    built = {"class": row["class"]} if "class" in row else {}
    return built | {
        "reduced_prefill": row["prefill"],
        "reduced_decode": row.get("decode", ""),
        "reduced_flops": row.get("prefill_flops", ""),
        "reduced_cache": row.get("decode_cache", ""),
        "reduced_completed": "yes" if row.get("completed") else "no",
    }


def _train_columns(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "model_type": row["model_type"],
        "train": row.get("train", row["prefill"]),
        "train_loss": row.get("train_loss", ""),
        "train_checkpointing": row.get("train_checkpointing", ""),
    }


def _step_columns(row: dict[str, Any]) -> dict[str, Any]:
    names = ("train_flops", "train_gradients", "train_saved", "checkpointing_flops")
    return {"model_type": row["model_type"]} | {name: row.get(name, "") for name in names}


def training(frame: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Rows of the table about training steps, and a line for each that does not trace."""
    tried = frame[frame["train"].ne("")]
    traced = tried[tried["train"].eq("yes")]
    supported = traced[~traced["train_checkpointing"].isin(["none", ""])]
    counts = [
        f"| a training step, made small | {len(tried)} tried of those with a prefill "
        f"| {len(traced)} |",
        f"| … by the model's own loss, not the mean of its output | {len(traced)} "
        f"| {traced['train_loss'].str.startswith('own').sum()} |",
        f"| … with checkpointing | {len(supported)} whose class supports it "
        f"| {supported['train_checkpointing'].eq('yes').sum()} |",
    ]
    for name, words in (
        ("train_flops", "FLOPs of forward and backward as torch's counter has them"),
        ("train_gradients", "the same parameters get a gradient"),
        ("train_saved", "bytes that autograd keeps, parameters aside"),
        ("checkpointing_flops", "FLOPs with checkpointing"),
    ):
        held = frame[name][~_starts(frame[name], "", "no real step")]
        counts.append(
            f"| … as in a real step on a CPU: {words} | {len(held)} compared "
            f"| {held.eq('equal').sum()} |"
        )
    lines = [
        f"* {row['model_type']}: {row[name]}"
        for name in ("train", "train_checkpointing")
        for _, row in tried.iterrows()
        if row[name] not in ("yes", "none", "")
    ]
    return counts, lines


def summary(frame: pd.DataFrame) -> str:
    """The counts, in Markdown."""
    real = frame[~_starts(frame["reduced_prefill"], "", *NO_REAL)]
    true = real[real["reduced_prefill"].eq("yes")]
    steps = real[~_starts(real["reduced_decode"], "", *NO_STEP)]
    with_flops, with_cache = (
        part[name][part[name].ne("")]
        for part, name in ((true, "reduced_flops"), (steps, "reduced_cache"))
    )
    traced = frame["full_prefill"].eq("yes")
    as_it_is = frame.index.isin(real.index[real["reduced_completed"].ne("yes")])
    whole = traced | as_it_is
    replays = [*frame["prefill_replay"], *frame["decode_replay"]]
    versions = ", ".join(
        f"{count} with {version}"
        for version, count in frame["transformers"].value_counts().sort_index().items()
    )
    counts, untrained = training(frame)
    lines = [
        "# Coverage",
        "",
        f"Every model type of transformers {metadata.version('transformers')} ({versions}), with "
        f"torch {metadata.version('torch').partition('+')[0]} and Python "
        f"{platform.python_version()}; `coverage.csv` has a row for each.",
        "",
        "| what | of | count |",
        "|---|---|---|",
        f"| model types | | {len(frame)} |",
        f"| default configurations, full size, on meta: prefill | {whole.sum()} that are a model "
        f"| {traced.sum()} |",
        f"| … and a decode step | those with a cache or state | "
        f"{frame['full_decode'].eq('yes').sum()} |",
        f"| … with layers replayed, record for record as with each run: passes | "
        f"{sum(map(_is_replayed, replays))} with layers that are alike "
        f"| {sum(replay == 'equal' for replay in replays)} |",
        f"| made small: every module as in a real forward, prefill | {len(real)} that really run "
        f"| {len(true)} |",
        f"| … decode step | {len(steps)} that really run | "
        f"{steps['reduced_decode'].eq('yes').sum()} |",
        f"| … FLOPs of a prefill as torch's counter has them | {len(with_flops)} compared "
        f"| {with_flops.eq('equal').sum()} |",
        f"| … bytes of the cache after a decode step | {len(with_cache)} compared "
        f"| {with_cache.eq('equal').sum()} |",
        *counts,
        "",
        "## Types whose default configuration does not trace, and why",
        "",
    ]
    missing = frame[~traced]
    reasons = collections.defaultdict(list)
    for _, row in missing.iterrows():
        reasons[reason({"prefill": row["full_prefill"]})].append(row["model_type"])
    lines += [f"* {why}: {', '.join(types)}" for why, types in sorted(reasons.items())]
    lines += ["", "## Really run, made small, and traced otherwise", ""]
    lines += [
        f"* {row['model_type']}: {row[f'reduced_{phase}']}"
        for _, row in real.iterrows()
        for phase in PHASES
        if not str(row[f"reduced_{phase}"] or "none").startswith((*NO_STEP, "yes"))
    ]
    lines += ["", "## Training steps that do not trace, or not with checkpointing", "", *untrained]
    return "\n".join(lines) + "\n"


def _starts(column: pd.Series, *words: str) -> pd.Series:
    """Whether each text is empty, if `""` is a word, or starts with one of the others."""
    starts = tuple(filter(None, words))
    return column.astype(str).map(lambda text: text.startswith(starts) or text in words)


def _is_replayed(outcome: object) -> bool:
    return isinstance(outcome, str) and outcome not in ("", "no layers alike")


NO_REAL = ("no real forward", "no default configuration", "over ", "the process died")
NO_STEP = (*NO_REAL, "none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=(*SURVEYS, "table"))
    parser.add_argument("--types", default="", help="a few types, with commas between them")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.what == "table":
        table()
    else:
        types = [each for each in arguments.types.split(",") if each]
        survey(arguments.what, types, arguments.workers)


if __name__ == "__main__":
    main()
