"""The longest contexts of a model, and the workloads that they allow."""

from dataclasses import dataclass

from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.trace.workload import Workload


@dataclass(frozen=True, slots=True)
class ContextLimits:
    """The longest contexts of a model, in tokens; None without such a limit.

    Attributes:
        positions: the number of tokens that it has positions for.
        declared: the longest context that its config declares.
    """

    positions: int | None
    declared: int | None

    @property
    def is_possible(self) -> bool:
        """Whether each limit is one that a model may have."""
        return all(each is None or each > 0 for each in (self.positions, self.declared))

    @property
    def longest(self) -> int | None:
        """The longest context that the model supports."""
        known = [each for each in (self.positions, self.declared) if each is not None]
        return min(known, default=None)


def fit_context(longest: int | None, workload: Workload, name: str, *, shorten: bool) -> Workload:
    """Check a workload against the longest context of the model.

    Args:
        longest: the limit in tokens; None for no limit. A decode step needs one token of it.
        workload: the workload to check.
        name: the model's name, for the error message.
        shorten: reduce a context that is too long, instead of raising.

    Returns:
        The workload, with a shorter context where necessary.

    Raises:
        InvalidValue: the context is too long and `shorten` is False.
    """
    if longest is None:
        return workload
    limit = longest - (workload.phase == "decode")
    if workload.context <= limit:
        return workload
    if shorten:
        return Workload(workload.phase, workload.batch, limit)
    raise InvalidValue(
        f"{name}: context {workload.context} is too long: the position table has {longest} "
        f"entries, so at most {limit} in {workload.phase}"
    )
