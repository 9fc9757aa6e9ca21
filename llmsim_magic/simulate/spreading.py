"""The passes of a model that is spread over devices: one for each stage."""

from dataclasses import replace
from typing import Any

from llmsim_magic.records.trace import Trace
from llmsim_magic.records.workload import Workload
from llmsim_magic.simulate.loading import recipe_of, traced
from llmsim_magic.simulate.request import Build


def stages(model: Any, build: Build, workload: Workload, *, replay: bool = True) -> list[Trace]:
    """What the first rank of each stage does, by `build.parallel`; the others of it do the same.

    Raises `InvalidValue` for a model without a plan, or sizes that do not divide it.
    """
    found = []
    for stage in range(build.parallel.pp):
        part = replace(build, parallel=replace(build.parallel, stage=stage))
        found.append(traced(recipe_of(model, part), workload, replay))
    return found
