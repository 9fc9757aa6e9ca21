"""The passes of a training step: what each operator is a part of, keeps and costs."""

from collections.abc import Iterator
from dataclasses import dataclass

from llmsim_magic.analyses.cost.operator_costs import costs
from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.records.trace.recorded import PASSES, WEIGHT_ROLES, Pass, Record
from llmsim_magic.records.trace.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class PassCost:
    """The sums over the operators of one pass of a step.

    `saved_bytes` are what autograd keeps of the pass for backward; None of what is recomputed,
    whose tensors a checkpoint keeps.
    """

    part: Pass
    operators: int
    flops: int
    elementwise_ops: int
    bytes_read: int
    bytes_written: int
    saved_bytes: int | None


def parts(trace: Trace) -> list[Pass]:
    """The pass of each operator: all of inference are `forward`."""
    return trace.expand_replays([operator.part for operator in trace.recorded.operators])


def forward_orders(trace: Trace) -> list[int | None]:
    """For each operator of backward the order of the one whose gradients it computes."""
    return [operator.backward_of for operator in _whole(trace).operators]


@memoize
def saved_bytes(trace: Trace) -> tuple[int | None, ...]:
    """The bytes that autograd keeps for each operator until backward.

    A storage counts whole, once, at the first operator that keeps it. Parameters and buffers do
    not count, since they exist anyway. None for an operator that is recomputed.
    """
    return tuple(_saved_bytes(_whole(trace)))


def _saved_bytes(record: Record) -> Iterator[int | None]:
    counted: set[int] = set()
    for operator in record.operators:
        if operator.part == "recompute":
            yield None
            continue
        storages = {record.tensors[index].storage for index in operator.saved} - counted
        counted |= storages
        kept = (record.storages[number] for number in storages)
        yield sum(each.nbytes for each in kept if each.role not in (*WEIGHT_ROLES, "buffer"))


@memoize
def pass_costs(trace: Trace) -> tuple[PassCost, ...]:
    """The sums of each pass that runs, in the order of `PASSES`."""
    found = []
    rows = list(zip(parts(trace), costs(trace), saved_bytes(trace), strict=True))
    for part in PASSES:
        each = [cost for own, cost, _ in rows if own == part]
        saved = [kept for own, _, kept in rows if own == part]
        if each:
            found.append(
                PassCost(
                    part=part,
                    operators=len(each),
                    flops=sum(cost.flops or 0 for cost in each),
                    elementwise_ops=sum(cost.elementwise_ops or 0 for cost in each),
                    bytes_read=sum(cost.bytes_read for cost in each),
                    bytes_written=sum(cost.bytes_written for cost in each),
                    saved_bytes=None if part == "recompute" else sum(kept or 0 for kept in saved),
                )
            )
    return tuple(found)


def _whole(trace: Trace) -> Record:
    """The record of every operator."""
    return trace.unrolled if trace.replays else trace.recorded
