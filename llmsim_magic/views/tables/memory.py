"""Tables of memory: what each device holds, exchanges and fits."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from llmsim_magic.analyses.allocations.memory_timeline import spans
from llmsim_magic.analyses.allocations.step_memory import StepMemory
from llmsim_magic.analyses.memory.capacity import Fit
from llmsim_magic.analyses.memory.memory import Memory
from llmsim_magic.analyses.parallel.collectives import collectives
from llmsim_magic.analyses.parallel.shards import Shard
from llmsim_magic.records.deferred_interrupt import defer_interrupt
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views.tables.columns import floats, integers, texts

_PARTS = {
    "weights": "parameters in their stored dtype, tied ones counted once",
    "buffers": "tensors that the model keeps besides its parameters",
    "cache": "keys and values, or recurrent states, kept for the next token after the pass",
    "activations": "peak of the tensors that the pass creates and holds at the same time",
    "context": "held by drivers and libraries, outside the allocator",
}
_STEP_PARTS = {
    "parameters": "parameters and buffers",
    "gradients": "gradients of parameters, from backward until the optimizer has stepped",
    "optimizer": "what the optimizer keeps from step to step",
    "saved": "what forward makes and backward needs, by autograd or checkpointing",
    "temporaries": "all other tensors, such as gradients of activations, and the batch",
}
_FIRST = ("device", "runtime", "launch", "devices", "fits", "refusal")  # columns of `ranked`
_TOTAL = "peak of allocated bytes; the context comes on top"
_ENGINE_TOTAL = "all that the engine needs, with the context"
_RESERVED = {
    "reserved_low": "at least what the caching allocator takes from the driver",
    "reserved_high": "at most what it takes; nvidia-smi shows this and the driver's context",
}


@defer_interrupt
def memory_table(memories: Mapping[str, Memory]) -> pd.DataFrame:
    """One row per runtime and part of the memory of a device.

    Args:
        memories: the memory under each runtime, by its name.

    Returns:
        A table with index `quantity`, which repeats for each runtime: the `runtime`, `bytes`,
        their `share` of the total, and what the part `means`. The context has a share where the
        total includes it. A training step has the parts alive at its `peak`, which they add up to,
        and the peak of the first step. Rows `reserved_low` and `reserved_high` are the band of what
        the caching allocator reserves. `views.notes.memory_notes` has the assumptions.
    """
    names: list[str] = []
    columns: dict[str, list[Any]] = {"runtime": [], "bytes": [], "share": [], "means": []}
    for runtime, memory in memories.items():
        for name, nbytes, is_part, meaning in _rows(memory):
            names.append(name)
            columns["runtime"].append(runtime)
            columns["bytes"].append(nbytes)
            columns["share"].append(nbytes / memory.total if is_part else None)
            columns["means"].append(meaning)
    return pd.DataFrame(
        {
            "runtime": texts(columns["runtime"]),
            "bytes": integers(columns["bytes"]),
            "share": floats(columns["share"]),
            "means": columns["means"],
        },
        index=pd.Index(names, name="quantity", dtype=object),
    )


_Row = tuple[str, int, bool, str]


def _rows(memory: Memory) -> Iterator[_Row]:
    """The name of each row, its bytes, whether they are part of the total, and the meaning."""
    yield from _pass_rows(memory) if memory.step is None else _step_rows(memory, memory.step)
    reserved = memory.reserved
    if reserved is not None:
        ends = (reserved.low, reserved.high)
        for (name, meaning), nbytes in zip(_RESERVED.items(), ends, strict=True):
            yield name, nbytes, False, meaning


def _step_rows(memory: Memory, step: StepMemory) -> Iterator[_Row]:
    for name, meaning in _STEP_PARTS.items():
        nbytes = getattr(step.alive, name)
        yield name, nbytes, True, meaning if nbytes else f"none at the peak: {meaning}"
    yield "peak", memory.total, True, f"most allocated in a steady step, in {step.place}"
    where = f"most allocated in the first step, in {step.first_place}"
    yield "first_step_peak", step.first_peak, False, where
    yield "context", memory.context, False, _PARTS["context"]


def _pass_rows(memory: Memory) -> Iterator[_Row]:
    for name, meaning in _PARTS.items():
        is_part = bool(memory.total) and (name != "context" or memory.counts_context)
        yield name, getattr(memory, name), is_part, meaning
    total = _ENGINE_TOTAL if memory.counts_context else _TOTAL
    yield "total", memory.total, bool(memory.total), total


@defer_interrupt
def timeline_table(trace: Trace) -> pd.DataFrame:
    """One row per pass and block of layers of a training step, or operator outside of layers.

    In execution order.

    Returns:
        A table of bytes of a steady step: `change_bytes`, by how much what is allocated grows over
        the row, of this `saved_change_bytes` and `gradients_change_bytes`; `peak_bytes`, the most
        in it, and the parts that this has.
    """
    rows = spans(trace)
    columns: dict[str, object] = {
        "pass": [row.stage for row in rows],
        "path": [row.path for row in rows],
        "layers": integers([row.layers or None for row in rows]),
        "peak_bytes": integers([row.peak.total for row in rows]),
        "change_bytes": integers([row.after.total - row.before.total for row in rows]),
    }
    for name in ("saved", "gradients"):
        changes = [getattr(row.after, name) - getattr(row.before, name) for row in rows]
        columns[f"{name}_change_bytes"] = integers(changes)
    for name in _STEP_PARTS:
        columns[f"{name}_bytes"] = integers([getattr(row.peak, name) for row in rows])
    return pd.DataFrame(columns)


@defer_interrupt
def ranks_table(memories: Mapping[str, Sequence[Memory]]) -> pd.DataFrame:
    """One row per runtime and pipeline stage, index `rank`; a column per part of memory, in bytes.

    Args:
        memories: the memory of a rank of each stage, by runtime.
    """
    rows = [(runtime, memory) for runtime, each in memories.items() for memory in each]
    columns: dict[str, object] = {"runtime": texts([runtime for runtime, _ in rows])}
    for name in (*_PARTS, "total"):
        columns[name] = integers([getattr(memory, name) for _, memory in rows])
    index = [f"stage {place}" for each in memories.values() for place in range(len(each))]
    return pd.DataFrame(columns, index=pd.Index(index, name="rank", dtype=object))


@defer_interrupt
def collectives_table(trace: Trace) -> pd.DataFrame:
    """One row per collective operation between devices, in execution order.

    Returns:
        A table whose `bytes` is the size of the full tensor that is reduced, gathered or sent,
        and whose `wire_bytes` is what each rank sends.
    """
    rows = collectives(trace)
    return pd.DataFrame(
        {
            "order": [row.order for row in rows],
            "path": [trace.paths[row.order] for row in rows],
            "collective": [row.kind for row in rows],
            "shape": [row.shape for row in rows],
            "dtype": [row.dtype for row in rows],
            "ranks": [row.ranks for row in rows],
            "bytes": integers([row.nbytes for row in rows]),
            "wire_bytes": integers([row.wire_bytes for row in rows]),
        }
    )


@defer_interrupt
def shards_table(shards: Iterable[Shard]) -> pd.DataFrame:
    """One row per parameter, index `name`: how it is split, its shape and bytes, and a rank's."""
    rows = list(shards)
    return pd.DataFrame(
        {
            "style": texts([shard.style for shard in rows]),
            "shape": [shard.full_shape for shard in rows],
            "shape_per_rank": [pd.NA if s.shape is None else s.shape for s in rows],
            "bytes": integers([shard.full_bytes for shard in rows]),
            "bytes_per_rank": integers([shard.nbytes for shard in rows]),
        },
        index=pd.Index([shard.name for shard in rows], name="name", dtype=object),
    )


@defer_interrupt
def capacity_table(fits: Iterable[Fit | None]) -> pd.DataFrame:
    """One row per fit on a device under a runtime, and which change makes it fit.

    `fits` is of memory alone; `refusal` says that a device does not compute in the dtype.

    Args:
        fits: the answers; None for a device of unknown memory, which gets no row.

    Returns:
        A table of bytes per rank. `binds` names the part of the memory that exceeds the device.
        `makes_it_fit` lists alternative changes, such as `tp 4`; the columns `fits_with_…` hold
        those that suffice without another change, NA if none is needed or none helps.
    """
    rows = [fit for fit in fits if fit is not None]
    columns: dict[str, object] = {
        "device": [fit.device for fit in rows],
        "runtime": texts([fit.runtime for fit in rows]),
        "devices": [fit.setup.devices for fit in rows],
        "fits": pd.array([fit.fits for fit in rows], dtype="boolean"),
        "usable_bytes": integers([fit.usable for fit in rows]),
        "total_bytes": integers([fit.memory.required for fit in rows]),
    }
    for name in ("weights", "cache", "activations", "context"):
        columns[f"{name}_bytes"] = integers([getattr(fit.memory, name) for fit in rows])
    columns["binds"] = texts([fit.binds for fit in rows])
    columns["refusal"] = texts([fit.refusal for fit in rows])
    columns["makes_it_fit"] = texts([", ".join(map(str, fit.remedies)) or None for fit in rows])
    single_changes = [
        dict(remedy.changes[0] for remedy in fit.remedies if len(remedy.changes) == 1)
        for fit in rows
    ]
    for option in ("tp", "batch", "context"):
        values = [changes.get(option) for changes in single_changes]
        columns[f"fits_with_{option}"] = integers(
            [value if isinstance(value, int) else None for value in values]
        )
    columns["fits_with_weight_dtype"] = texts(
        [
            str(changes["weight_dtype"]) if "weight_dtype" in changes else None
            for changes in single_changes
        ]
    )
    return pd.DataFrame(columns)


def with_unknown_memory(
    capacities: pd.DataFrame, unknown: Sequence[tuple[str, str, int, int, str | None]]
) -> pd.DataFrame:
    """The `capacity_table` with a row for each device whose memory is unknown, as a CPU's.

    Args:
        capacities: the table of the other devices.
        unknown: name of the device, runtime, number of devices, bytes that each needs, and why it
            does not run the model, if so.

    Returns:
        A table in which `fits` and `usable_bytes` of these rows are NA.
    """
    columns = zip(*unknown, strict=True) if unknown else ((),) * 5
    names, runtimes, devices, needed, refusals = columns
    added = pd.DataFrame(
        {
            "device": list(names),
            "runtime": texts(runtimes),
            "devices": list(devices),
            "total_bytes": integers(needed),
            "refusal": texts(refusals),
        }
    )
    table = pd.concat([capacities, added], ignore_index=True) if unknown else capacities
    return table[list(capacities)]


def ranked(sizing: pd.DataFrame, phases: Sequence[str]) -> pd.DataFrame:
    """The table of `size` with what fits first, the fastest first, and with its times first.

    Devices that do not compute in the dtype are last.
    """
    columns = [f"{phase}_s" for phase in reversed(phases)]
    order = [True, False, *(True for _ in columns), True]
    rows = sizing.assign(refused=sizing["refusal"].notna()).sort_values(
        ["refused", "fits", *columns, "total_bytes"], ascending=order, kind="stable"
    )
    rows = rows.drop(columns="refused")
    times = [name for name in rows if str(name).startswith(tuple(f"{each}_" for each in phases))]
    first = [*(name for name in _FIRST if name in rows), *times]
    return rows[[*first, *(name for name in rows if name not in first)]]
