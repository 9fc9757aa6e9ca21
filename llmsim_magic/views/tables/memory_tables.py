"""Memory, exchanges between devices, and what fits where, as DataFrames."""

from collections.abc import Iterable, Mapping

import pandas as pd

from llmsim_magic.analyses.memory.capacity import Fit
from llmsim_magic.analyses.memory.memory import Memory
from llmsim_magic.analyses.parallel.collectives import collectives
from llmsim_magic.analyses.parallel.shards import Shard
from llmsim_magic.records.deferred_interrupt import defer_interrupt
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views import units
from llmsim_magic.views.tables.columns import integers, texts

_MEANINGS = {
    "weights": "parameters as they are stored, tied ones once",
    "buffers": "tables that the model keeps beside its parameters",
    "cache": "kept from one token to the next: keys and values, or states, after the pass",
    "activations": "the most that the pass makes and holds at once",
    "runtime": "allowance for drivers and libraries",
    "total": "on each device",
}


@defer_interrupt
def memory_table(memory: Memory) -> pd.DataFrame:
    """One row per part of what a device holds: bytes, their share, and what they are.

    Rows `assumed.N` say what was taken to be. Index `quantity`.
    """
    total = memory.total
    names = list(_MEANINGS)
    numbers: list[int | None] = [getattr(memory, name) for name in names]
    shares = [number / total if total and number is not None else None for number in numbers]
    means = [f"{units.nbytes(getattr(memory, name))}: {_MEANINGS[name]}" for name in names]
    for place, assumption in enumerate(memory.assumptions):
        names.append(f"assumed.{place}")
        numbers.append(None)
        shares.append(None)
        means.append(assumption)
    return pd.DataFrame(
        {
            "bytes": integers(numbers),
            "share": pd.array([pd.NA if s is None else s for s in shares], dtype="Float64"),
            "means": means,
        },
        index=pd.Index(names, name="quantity"),
    )


@defer_interrupt
def ranks_table(memories: Mapping[str, Memory]) -> pd.DataFrame:
    """One row per stage or rank, by its name, a column for each part of its memory in bytes."""
    columns = {
        name: integers([getattr(memory, name) for memory in memories.values()])
        for name in _MEANINGS
    }
    return pd.DataFrame(columns, index=pd.Index(list(memories), name="rank"))


@defer_interrupt
def collectives_table(trace: Trace) -> pd.DataFrame:
    """One row per exchange between devices, in the order of the pass.

    `bytes` is the whole that is summed, gathered or handed on; `wire_bytes` leave each rank.
    """
    found = collectives(trace)
    return pd.DataFrame(
        {
            "order": [each.order for each in found],
            "path": [trace.paths[each.order] for each in found],
            "collective": [each.kind for each in found],
            "shape": [each.shape for each in found],
            "dtype": [each.dtype for each in found],
            "ranks": [each.ranks for each in found],
            "bytes": integers([each.nbytes for each in found]),
            "wire_bytes": integers([each.wire_bytes for each in found]),
        }
    )


@defer_interrupt
def shards_table(shards: Iterable[Shard]) -> pd.DataFrame:
    """One row per parameter: how it is split, its whole shape and bytes, and those of the rank."""
    each = list(shards)
    return pd.DataFrame(
        {
            "style": texts([shard.style for shard in each]),
            "shape": [shard.full_shape for shard in each],
            "shape_per_rank": [pd.NA if s.shape is None else s.shape for s in each],
            "bytes": integers([shard.full_bytes for shard in each]),
            "bytes_per_rank": integers([shard.nbytes for shard in each]),
        },
        index=pd.Index([shard.name for shard in each], name="name", dtype=object),
    )


@defer_interrupt
def sizing_table(fits: Iterable[Fit | None]) -> pd.DataFrame:
    """One row per device of known memory: whether it fits, what binds, what would make it fit.

    Bytes are those of each rank. `makes_it_fit` lists changes of which any will do, such as `tp 4`;
    the columns after it hold those that do alone, NA where they are not needed or do not help.
    """
    each = [found for found in fits if found is not None]
    columns: dict[str, object] = {
        "device": [found.device for found in each],
        "devices": [found.setup.parallel.ranks for found in each],
        "fits": [found.fits for found in each],
        "usable_bytes": integers([found.usable for found in each]),
        "total_bytes": integers([found.memory.total for found in each]),
    }
    for name in ("weights", "cache", "activations", "runtime"):
        columns[f"{name}_bytes"] = integers([getattr(found.memory, name) for found in each])
    columns["binds"] = texts([found.binds for found in each])
    columns["makes_it_fit"] = texts([", ".join(map(str, f.remedies)) or None for f in each])
    remedies = [dict(r.changes[0] for r in f.remedies if len(r.changes) == 1) for f in each]
    for what in ("tp", "batch", "context"):
        columns[f"fits_with_{what}"] = integers([_number(one.get(what)) for one in remedies])
    columns["fits_with_weight_dtype"] = texts(
        [str(one["weight_dtype"]) if "weight_dtype" in one else None for one in remedies]
    )
    return pd.DataFrame(columns)


def _number(value: int | str | None) -> int | None:
    return value if isinstance(value, int) else None
