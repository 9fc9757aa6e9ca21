"""The chart of devices: how fast a pass is on each, over the memory that each has."""

from typing import TYPE_CHECKING

from llmsim_magic.views import units
from llmsim_magic.views.charts.chart import Dot, Scatter

if TYPE_CHECKING:
    import pandas as pd

_NAMES = {"prefill": "prefill (TTFT)", "decode": "decode step (TPOT)", "train": "training step"}
_TITLES = {"train": "training step"}
_NAMED = 4  # the fastest devices have their names beside their dots


def device_scatter(sizing: "pd.DataFrame", phase: str) -> Scatter:
    """The fastest time of a pass on each device that holds the model.

    Args:
        sizing: the table of `size`, with columns `device, usable_bytes` and those of the phase.
        phase: `prefill`, `decode` or `train`.
    """
    is_known = sizing[f"{phase}_s"].notna() & sizing["usable_bytes"].notna()
    times = sizing[is_known].sort_values(f"{phase}_s")
    fastest = times.drop_duplicates("device")
    dots = []
    for rank, row in enumerate(fastest.to_dict("records")):
        seconds, usable = float(row[f"{phase}_s"]), int(row["usable_bytes"])
        where = f"{row['device']}, {row['runtime']}, {row['launch']}"
        tooltip = f"{where}: {units.seconds(seconds)}, {units.nbytes(usable)} usable"
        dots.append(Dot(usable, seconds, tooltip, row["device"] if rank < _NAMED else ""))
    return Scatter(
        f"Fastest {_TITLES.get(phase, phase)} on each device over its memory",
        "usable memory",
        _NAMES[phase],
        "B",
        "s",
        tuple(dots),
    )
