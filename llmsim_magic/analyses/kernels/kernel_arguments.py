"""Which of its arguments a kernel reads."""

from llmsim_magic.analyses.kernels.elementwise_work import short_name
from llmsim_magic.records.trace.recorded import Kernel

_OVERWRITES = frozenset({"copy_", "fill_", "zero_"})
_OVERWRITTEN_LISTS = frozenset({"_foreach_copy_", "_foreach_zero_"})
# Arguments of which a derivative uses only the shape, by position.
_SHAPE_ONLY: dict[str, tuple[int, ...]] = {
    "nll_loss_backward": (1,),
    "nll_loss2d_backward": (1,),
    "max_pool2d_with_indices_backward": (1,),
    "max_pool3d_with_indices_backward": (1,),
    "avg_pool2d_backward": (1,),
    "avg_pool3d_backward": (1,),
    "_adaptive_avg_pool2d_backward": (1,),
    "_adaptive_avg_pool3d_backward": (1,),
}
_USES_ONLY_SHAPE = frozenset(
    """
    zeros_like ones_like full_like rand_like randn_like randint_like new_zeros new_ones new_full
    """.split()  # noqa: SIM905 - a list of names reads best as words
)


def read_arguments(kernel: Kernel) -> list[int]:
    """The positions in `kernel.inputs` whose values the kernel reads.

    `copy_` and `out=` overwrite their target without reading it. `zeros_like`, similar kernels and
    some derivatives use only the shape of an argument.
    """
    name = short_name(kernel.name)
    if name in _USES_ONLY_SHAPE:
        return []
    if name in _OVERWRITES:
        return list(range(1, len(kernel.inputs)))
    if name in _OVERWRITTEN_LISTS:
        return list(range(len(kernel.writes), len(kernel.inputs)))
    positions = range(len(kernel.inputs))
    if name in _SHAPE_ONLY:
        return [position for position in positions if position not in _SHAPE_ONLY[name]]
    if kernel.name.endswith("out"):
        return [position for position in positions if kernel.inputs[position] not in kernel.writes]
    return list(positions)
