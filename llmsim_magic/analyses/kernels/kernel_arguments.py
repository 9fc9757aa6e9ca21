"""Which of its arguments a kernel reads."""

from llmsim_magic.analyses.kernels.elementwise_work import short_name
from llmsim_magic.records.trace.recorded import Kernel

_OVERWRITES = frozenset({"copy_", "fill_", "zero_"})
_USES_ONLY_SHAPE = frozenset(
    """
    zeros_like ones_like full_like rand_like randn_like randint_like new_zeros new_ones new_full
    """.split()  # noqa: SIM905 - a list of names reads best as words
)


def read_arguments(kernel: Kernel) -> list[int]:
    """The positions in `kernel.inputs` whose values the kernel reads.

    `copy_` and `out=` overwrite their target without reading it. `zeros_like` and similar kernels
    use only the shape of their argument.
    """
    name = short_name(kernel.name)
    if name in _USES_ONLY_SHAPE:
        return []
    if name in _OVERWRITES:
        return list(range(1, len(kernel.inputs)))
    positions = range(len(kernel.inputs))
    if kernel.name.endswith("out"):
        return [position for position in positions if kernel.inputs[position] not in kernel.writes]
    return list(positions)
