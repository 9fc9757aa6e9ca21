"""Columns of training steps: the time of each pass of a step, and the share of the peak it reaches.

Tables without a training step do not have them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llmsim_magic.analyses.time.pass_time import PassTime
from llmsim_magic.analyses.torch_time.step_time import seconds_by_part, utilization
from llmsim_magic.records.trace.recorded import PASSES, Pass
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views.tables.columns import floats


def pass_columns(trace: Trace, time: PassTime, groups: Iterable[Sequence[int]]) -> dict[str, Any]:
    """Columns with the seconds of each pass of a step; none for a pass of inference.

    Args:
        trace: the pass.
        time: its time.
        groups: for each row the orders of its operators.
    """
    if trace.training is None:
        return {}
    return _columns([seconds_by_part(trace, time, orders) for orders in groups])


def step_columns(passes: Sequence[tuple[Trace, PassTime]]) -> dict[str, Any]:
    """Columns with the seconds of each pass of a step, and the MFU; none without a step.

    Args:
        passes: passes with their times, one for each row. One of inference has NA.
    """
    if not any(trace.training for trace, _ in passes):
        return {}
    rows = [seconds_by_part(trace, time) if trace.training else {} for trace, time in passes]
    return _columns(rows) | {"mfu": floats([utilization(trace, time) for trace, time in passes])}


def _columns(rows: Sequence[Mapping[Pass, float]]) -> dict[str, Any]:
    return {f"{part}_s": floats([row.get(part) for row in rows]) for part in PASSES}
