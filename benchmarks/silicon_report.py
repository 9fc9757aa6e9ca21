"""Measured passes beside what is predicted of them, with the band."""

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import llmsim_magic as llmsim
from benchmarks.silicon_rows import Row, predicted_peak
from llmsim_magic.catalog import accelerators
from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.simulate.report import Report
from llmsim_magic.simulate.request import LOCAL

RUNTIME = "transformers"


@dataclass(frozen=True, slots=True)
class Predicted:
    """The time of one pass in seconds, and the band that nine of ten measurements should lie in."""

    runtime: str
    launch: str
    seconds: float
    low: float
    high: float


Predict = Callable[[Row], Sequence[Predicted]]


def hardware_of(device: str) -> str | None:
    """The catalogue's name of a CUDA device, `local` for another one of this machine, or None."""
    known = accelerators.of_driver(device)
    if known is not None:
        return known.name
    import torch

    is_here = torch.cuda.is_available() and torch.cuda.get_device_name() == device
    return LOCAL if is_here else None


@lru_cache(maxsize=1)
def _traced(model: str, phase: str, batch: int, context: int, hardware: str | None) -> Report:
    return llmsim.trace(
        model,
        phase=phase,
        batch=batch,
        context=context,
        dtype="bfloat16",
        hardware=() if hardware is None else hardware,
        runtime=RUNTIME,
    )


def _report(row: Row) -> Report:
    sizes = (row["phase"], row["batch"], row["context"])
    return _traced(row["model"], *sizes, hardware_of(row["device"]))


def predict(row: Row) -> tuple[Predicted, ...]:
    """The times of a measured pass, one for each runtime and launch; none for an unknown device.

    Raises:
        LlmsimError: the model cannot be traced, or the device lacks its arithmetic.
    """
    if hardware_of(row["device"]) is None:
        return ()
    table = _report(row).latency
    table = table[(table["phase"] == row["phase"]) & (table["context"] == row["context"])]
    return tuple(
        Predicted(
            runtime=each.runtime,
            launch=each.launch,
            seconds=each.time_s,
            low=each.time_low_s,
            high=each.time_high_s,
        )
        for each in table.itertuples()
    )


def predict_memory(row: Row) -> int:
    """Bytes that a measured pass adds at its peak: its activations and the cache that it returns.

    Raises:
        LlmsimError: the model cannot be traced.
    """
    return predicted_peak(_report(row).trace)


def report(
    rows: Iterable[Row],
    predict: Predict = predict,
    predict_memory: Callable[[Row], int] = predict_memory,
) -> Iterator[str]:
    """The lines of a report in Markdown: times with their band, memory, and what is missing."""
    times: list[TimeScore] = []
    memories: list[MemoryScore] = []
    missing: dict[str, None] = {}
    for row in rows:
        if row["kind"] != "infer":
            continue
        if "error" in row:
            missing[f"{_name(row)} was not measured: {row['error']}"] = None
            continue
        if "graph_error" in row:
            missing[f"{_name(row)} is not in a CUDA graph: {row['graph_error']}"] = None
        try:
            found = [score for guess in predict(row) if (score := time_score(row, guess))]
            memories += memory_scores(row, predict_memory)
        except LlmsimError as error:
            missing[f"{_name(row)} is not predicted: {error}"] = None
            continue
        if not found:
            missing[f"{row['device']}: no time is predicted, only memory"] = None
        times += found
    yield from _time_table(times)
    yield from _memory_table(memories)
    yield from _summary(times, memories)
    yield from missing


@dataclass(frozen=True, slots=True)
class TimeScore:
    """A measured time, in seconds, beside its prediction."""

    row: Row
    guess: Predicted
    measured: float

    @property
    def error(self) -> float:
        return self.guess.seconds / self.measured - 1

    @property
    def is_inside(self) -> bool:
        return self.guess.low <= self.measured <= self.guess.high


@dataclass(frozen=True, slots=True)
class MemoryScore:
    """Measured bytes beside their prediction."""

    row: Row
    measured: int
    predicted: int

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def time_score(row: Row, guess: Predicted) -> TimeScore | None:
    """A prediction beside the time of its launch; None if that was not measured."""
    seconds = row.get(f"{guess.launch}_s")
    return None if seconds is None else TimeScore(row, guess, seconds)


def memory_scores(row: Row, predict_memory: Callable[[Row], int]) -> list[MemoryScore]:
    """The peak of a pass beside its prediction; empty if it was not measured."""
    if not row.get("peak_above"):
        return []
    return [MemoryScore(row, row["peak_above"], predict_memory(row))]


def _name(row: Row) -> str:
    if "phase" not in row:
        return str(row["model"])
    return f"{row['model']}, {row['phase']}, {row['batch']} × {row['context']}"


def _time_table(scores: Sequence[TimeScore]) -> Iterator[str]:
    columns = ("model", "phase", "batch × context", "runtime, launch", "measured", "predicted")
    yield _line((*columns, "band", "error", "inside"))
    yield "|---|---|--:|---|--:|--:|--:|--:|---|"
    for each in scores:
        row, guess = each.row, each.guess
        cells = (
            *(row["model"], row["phase"], f"{row['batch']} × {row['context']}"),
            f"{guess.runtime}, {guess.launch}",
            *(f"{each.measured * 1e3:.2f} ms", f"{guess.seconds * 1e3:.2f} ms"),
            f"{guess.low * 1e3:.2f} to {guess.high * 1e3:.2f} ms",
            *(f"{each.error:+.0%}", "yes" if each.is_inside else "no"),
        )
        yield _line(cells)
    yield ""


def _memory_table(scores: Sequence[MemoryScore]) -> Iterator[str]:
    yield "| model | phase | batch × context | measured peak | predicted | error |"
    yield "|---|---|--:|--:|--:|--:|"
    for each in scores:
        row = each.row
        cells = (
            *(row["model"], row["phase"], f"{row['batch']} × {row['context']}"),
            *(f"{each.measured / 2**20:.1f} MiB", f"{each.predicted / 2**20:.1f} MiB"),
            f"{each.error:+.2%}",
        )
        yield _line(cells)
    yield ""


def _summary(times: Sequence[TimeScore], memories: Sequence[MemoryScore]) -> Iterator[str]:
    """The median and the worst error of each class, and how many lie inside their band."""
    yield "| class | rows | median error | worst error | inside the band |"
    yield "|---|--:|--:|--:|--:|"
    classes: dict[str, list[TimeScore]] = {}
    for each in times:
        name = f"{each.guess.runtime}, {each.guess.launch}, {each.row['phase']}"
        classes.setdefault(name, []).append(each)
    for name, some in classes.items():
        inside = sum(each.is_inside for each in some) / len(some)
        yield _line((name, *_errors(some, "{:.0%}"), f"{inside:.0%}"))
    if memories:
        yield _line(("memory", *_errors(memories, "{:.2%}"), ""))
    yield ""


def _errors(scores: Sequence[TimeScore] | Sequence[MemoryScore], form: str) -> tuple[str, ...]:
    errors = [abs(each.error) for each in scores]
    figures = (statistics.median(errors), max(errors))
    return str(len(errors)), *(form.format(each) for each in figures)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
