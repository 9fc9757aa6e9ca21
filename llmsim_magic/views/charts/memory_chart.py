"""The chart of memory: what fills a device, beside what the device has."""

from collections.abc import Iterable, Mapping

from llmsim_magic.analyses.memory.capacity import Fit
from llmsim_magic.analyses.memory.memory import Memory
from llmsim_magic.records.hardware.execution import RUNTIMES
from llmsim_magic.views import units
from llmsim_magic.views.charts.chart import Bar, BarChart, Piece

_PARTS = ("weights", "buffers", "cache", "replaced", "activations", "context")
_NAMES = {"replaced": "replaced cache", "context": "driver context"}
_UNFILLED = "reserved, not allocated"


def memory_chart(memories: Mapping[str, Memory]) -> BarChart:
    """A bar for each runtime: the parts of the memory of one device."""
    bars = (
        Bar(RUNTIMES[name], _pieces(memory), units.nbytes(memory.required))
        for name, memory in memories.items()
    )
    return BarChart("Memory of one device, with its driver's context", tuple(bars))


def fit_chart(fits: Iterable[Fit], workload: str = "") -> BarChart:
    """A bar for each device and runtime, with a mark at the memory that it can use.

    Args:
        fits: what each needs and has.
        workload: which one they are of, where there are several.
    """
    bars = tuple(
        Bar(
            f"{fit.device}, {RUNTIMES[fit.runtime]}",
            _pieces(fit.memory),
            f"{units.nbytes(fit.memory.required)} of {units.nbytes(fit.usable)}"
            + (f", {fit.refusal}" if fit.refusal else ""),
            limit=fit.usable,
            limit_text=f"usable: {units.nbytes(fit.usable)}",
        )
        for fit in fits
    )
    of = f" of {workload}" if workload else ""
    title = f"Memory needed{of}, with the driver's context (line: usable memory)"
    return BarChart(title, bars)


def _pieces(memory: Memory) -> tuple[Piece, ...]:
    """The parts that add up to what the device must have room for.

    Those of a training step are always the same, in the order and colours of its timeline.
    """
    sizes = {name: getattr(memory, name) for name in _PARTS}
    if memory.step is not None:
        sizes = memory.step.alive._asdict()
        sizes[_UNFILLED] = memory.required - memory.context - memory.allocated
        sizes["context"] = memory.context
    return tuple(
        Piece(_NAMES.get(name, name), size, units.nbytes(size))
        for name, size in sizes.items()
        if size or memory.step is not None
    )
