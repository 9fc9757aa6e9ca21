"""The work of an engine's kernels in place of the model's, for tables with times of the engine."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from llmsim_magic.analyses.time.pass_time import PassTime
from llmsim_magic.views.tables.columns import BYTES_BY_SOURCE, floats, integers

# What is counted of the model's own kernels alone.
_OWN_KERNELS = (
    "elementwise_ops",
    "causal_skippable_flops",
    "bytes_read",
    "bytes_written",
    *BYTES_BY_SOURCE,
)


def with_engine_costs(
    table: pd.DataFrame, orders: Sequence[Sequence[int]], time: PassTime
) -> pd.DataFrame:
    """The table with the FLOPs and bytes that the times beside them are of.

    Under transformers, these are those of the table. An engine runs other kernels, such as one that
    writes new keys in place: then `flops` and the new column `bytes` are of its kernels, and
    columns that only the model's own kernels have are NA.

    Args:
        table: FLOPs and bytes of the model's kernels; a row for each group of operators.
        orders: the operators of each row.
        time: the time of the pass.
    """
    if time.execution.runtime == "transformers":
        return table
    flops = [math.fsum(time.operators[order].flops for order in each) for each in orders]
    moved = [math.fsum(time.operators[order].bytes for order in each) for each in orders]
    columns: dict[str, Any] = {
        "flops": integers([round(each) for each in flops]),
        "bytes": integers([round(each) for each in moved]),
    }
    shares = {"flops_share": flops, "bytes_share": moved}
    for name, each in shares.items():
        total = math.fsum(each)
        if name in table:
            columns[name] = floats([value / total if total else None for value in each])
    if "arithmetic_intensity" in table:
        pairs = zip(flops, moved, strict=True)
        columns["arithmetic_intensity"] = floats([f / b if b else None for f, b in pairs])
    missing = [name for name in _OWN_KERNELS if name in table]
    columns |= {name: integers([None] * len(table)) for name in missing}
    return table.assign(**columns)
