"""Tables of memory: what each device holds, exchanges and fits."""

from collections.abc import Iterable, Mapping

import pandas as pd

from llmsim_magic.analyses.memory.capacity import Fit
from llmsim_magic.analyses.memory.memory import Memory
from llmsim_magic.analyses.parallel.collectives import collectives
from llmsim_magic.analyses.parallel.shards import Shard
from llmsim_magic.records.deferred_interrupt import defer_interrupt
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views import units
from llmsim_magic.views.tables.columns import floats, integers, texts

_PARTS = {
    "weights": "parameters in their stored dtype, tied ones counted once",
    "buffers": "tensors that the model keeps besides its parameters",
    "cache": "keys and values, or recurrent states, kept for the next token after the pass",
    "activations": "peak of the tensors that the pass creates and holds at the same time",
    "context": "held by drivers and libraries, outside the allocator",
    "total": "peak of allocated bytes; the whole budget under an engine, with the context",
}


@defer_interrupt
def memory_table(memory: Memory) -> pd.DataFrame:
    """One row per part of the memory of a device.

    Returns:
        A table with index `quantity`: `bytes`, their `share` of the total, and what the part
        `means`. Rows `assumed.N` state the assumptions and have no bytes.
    """
    names = list(_PARTS)
    sizes: list[int | None] = [getattr(memory, name) for name in names]
    total = memory.total
    shares = [size / total if total and size is not None else None for size in sizes]
    meanings = [f"{units.nbytes(getattr(memory, name))}: {_PARTS[name]}" for name in names]
    for place, assumption in enumerate(memory.assumptions):
        names.append(f"assumed.{place}")
        sizes.append(None)
        shares.append(None)
        meanings.append(assumption)
    return pd.DataFrame(
        {"bytes": integers(sizes), "share": floats(shares), "means": meanings},
        index=pd.Index(names, name="quantity"),
    )


@defer_interrupt
def ranks_table(memories: Mapping[str, Memory]) -> pd.DataFrame:
    """One row per stage or rank, index `rank`; one column per part of its memory, in bytes."""
    columns = {
        name: integers([getattr(memory, name) for memory in memories.values()]) for name in _PARTS
    }
    return pd.DataFrame(columns, index=pd.Index(list(memories), name="rank"))


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
    """One row per device of known memory: whether the model fits, and which change makes it fit.

    Args:
        fits: the answer for each device; None for a device of unknown memory, which gets no row.

    Returns:
        A table of bytes per rank. `binds` names the part of the memory that exceeds the device.
        `makes_it_fit` lists alternative changes, such as `tp 4`; the columns `fits_with_…` hold
        those that suffice without another change, NA if none is needed or none helps.
    """
    rows = [fit for fit in fits if fit is not None]
    columns: dict[str, object] = {
        "device": [fit.device for fit in rows],
        "devices": [fit.setup.parallel.ranks for fit in rows],
        "fits": [fit.fits for fit in rows],
        "usable_bytes": integers([fit.usable for fit in rows]),
        "total_bytes": integers([fit.memory.required for fit in rows]),
    }
    for name in ("weights", "cache", "activations", "context"):
        columns[f"{name}_bytes"] = integers([getattr(fit.memory, name) for fit in rows])
    columns["binds"] = texts([fit.binds for fit in rows])
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
