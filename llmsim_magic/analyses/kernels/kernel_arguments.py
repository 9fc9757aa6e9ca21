"""Which arguments of a kernel it reads: not all that it is handed."""

from llmsim_magic.analyses.kernels.elementwise_work import short_name
from llmsim_magic.records.trace.recorded import Kernel

_OVERWRITES = frozenset({"copy_", "fill_", "zero_"})
_TAKES_ONLY_THE_SHAPE = frozenset(
    """
    zeros_like ones_like full_like rand_like randn_like randint_like new_zeros new_ones new_full
    """.split()  # noqa: SIM905 - a vocabulary reads best as words
)


def read_arguments(kernel: Kernel) -> list[int]:
    """The places in `kernel.inputs` whose values matter.

    A copy into a tensor, or an `out=`, does not read what it overwrites; a tensor made in the
    likeness of another reads nothing of it.
    """
    name = short_name(kernel.name)
    if name in _TAKES_ONLY_THE_SHAPE:
        return []
    if name in _OVERWRITES:
        return list(range(1, len(kernel.inputs)))
    places = range(len(kernel.inputs))
    if kernel.name.endswith("out"):
        return [place for place in places if kernel.inputs[place] not in kernel.writes]
    return list(places)
