"""Compares a trace with replayed layers to one in which every layer ran."""

from collections.abc import Iterator
from itertools import zip_longest

from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views.tables import modules, operators, summary

PARTS = ("operators", "kernels", "tensors", "storages", "calls", "results")
TABLES = (
    operators.ops_table,
    modules.modules_table,
    operators.edges_table,
    operators.topological_table,
    summary.summary_table,
)


def differences(full: Trace, replayed: Trace) -> Iterator[str]:
    """The first record that differs of each kind, and the first cell of each table."""
    for name in PARTS:
        ours, theirs = getattr(replayed.unrolled, name), getattr(full.unrolled, name)
        if ours != theirs:
            pairs = zip_longest(ours, theirs)
            place, pair = next((n, pair) for n, pair in enumerate(pairs) if pair[0] != pair[1])
            yield f"{name}: {place}: replayed {pair[0]}, really {pair[1]}"
    for name in ("cache", "notes", "modules", "parameters"):
        if getattr(full, name) != getattr(replayed, name):
            yield name
    for table in TABLES:
        ours, theirs = table(replayed), table(full)
        if not ours.equals(theirs):
            unlike = [name for name in theirs if not ours[name].equals(theirs[name])]
            yield f"{table.__name__}: {len(ours)} rows for {len(theirs)}, columns {unlike}"
