"""The training step of one rank of data parallelism, by the stage of ZeRO."""

from dataclasses import replace

from msgspec.structs import replace as changed

from llmsim_magic.analyses.data_parallel.fully_sharded import FullyShardedStep
from llmsim_magic.analyses.data_parallel.optimizer_shards import OptimizerShards
from llmsim_magic.analyses.data_parallel.sharded_parameters import (
    Sharding,
    sharded_parameters,
)
from llmsim_magic.analyses.data_parallel.step_rewriter import StepRewriter, TensorMap
from llmsim_magic.analyses.data_parallel.whole_parameters import (
    all_gathered,
    all_reduced,
    reduce_scattered,
)
from llmsim_magic.records.trace.recorded import Record
from llmsim_magic.records.trace.trace import Parameter, Trace

_NOTES = {
    0: "gradients are summed over ranks in buckets of 25 MB, as DistributedDataParallel does by "
    "default; its buckets are buffers beside the gradients",
    1: "the optimizer's states are sharded; gradients are summed in buckets of 25 MB, as "
    "DistributedDataParallel does by default, and updated parameters gathered in place",
    2: "the optimizer's states and the gradients are sharded: gradients are reduced in buckets of "
    "25 MB as they become ready, and updated parameters gathered in place",
    3: "parameters, gradients and states are sharded as by FSDP2: fully_shard on each layer and on "
    "the model, resharded after forward, one layer prefetched in backward",
}
_OVERLAP = {
    0: "each sum runs while backward goes on, and the step waits for the last ones",
    1: "each sum runs while backward goes on, and the step waits for the last ones; the gather "
    "after the optimizer overlaps with nothing",
    2: "each reduction runs while backward goes on, and the step waits for the last ones; the "
    "gather after the optimizer overlaps with nothing",
    3: "a layer is gathered and reduced while others compute, and the step waits for the first "
    "gather and the last reduction",
}
_NODE = 8  # devices


def rank_of_step(trace: Trace, *, is_mixed: bool = False) -> Trace:
    """The step of the first rank, whose shards are the largest if sizes do not divide.

    Batch and context are those of each rank, so its kernels of forward and backward are those of
    one device.

    Args:
        trace: A training step of one device, without replays.
        is_mixed: Under stage 3, keep and reduce in float32 what the kernels compute in their dtype,
            as FSDP2's `MixedPrecisionPolicy` does.

    Returns:
        The step with its collectives; `trace` itself on one device.
    """
    training = trace.training
    if training is None or training.dp == 1:
        return trace
    sharding = Sharding(ranks=training.dp, stage=training.zero, is_mixed=is_mixed)
    record, held = _rewritten(trace, sharding)
    reduced = "float32" if is_mixed else "their own dtype"
    notes = [
        f"one of {training.dp} ranks, which train on different sequences, a batch of "
        f"{trace.workload.batch} each",
        f"{_NOTES[training.zero]}; gradients are reduced in {reduced}",
        f"{_OVERLAP[training.zero]}: the time of an exchange is what the step waits for it",
    ]
    if trace.ranks > _NODE:
        notes.append(_across_nodes(trace.ranks))
    return replace(
        trace,
        recorded=record,
        parameters=(*(sharding.held(each) for each in trace.parameters), *held),
        notes=(*trace.notes, *notes),
    )


def _across_nodes(ranks: int) -> str:
    return (
        f"exchanges among {ranks} devices are priced as if all were in one node, so their time is "
        "a lower bound"
    )


def _rewritten(trace: Trace, sharding: Sharding) -> tuple[Record, list[Parameter]]:
    """The record of a rank, and the buffers that it holds beside those of the model."""
    parameters, rewriter = sharded_parameters(trace), StepRewriter(trace.recorded)
    held: list[Parameter] = []
    if sharding.stage == 3:
        units = FullyShardedStep(trace, parameters, sharding, rewriter)
        units.rewrite()
        shards = OptimizerShards(parameters, sharding, rewriter, units.gradients.tensors)
        return rewriter.finish(_used_by(rewriter, shards, units)), held
    if sharding.stage == 2:
        gradients = reduce_scattered(parameters, sharding, rewriter)
    else:
        gradients, held = {}, all_reduced(parameters, sharding, rewriter)
    if not sharding.stage:
        return rewriter.finish(), held
    shards = OptimizerShards(parameters, sharding, rewriter, gradients)
    all_gathered(shards.shards(), sharding, rewriter)
    return rewriter.finish(_used_by(rewriter, shards)), held


def _used_by(
    rewriter: StepRewriter, shards: OptimizerShards, units: FullyShardedStep | None = None
) -> TensorMap:
    """The tensor that each kernel uses: a shard in the optimizer, a gathered parameter before."""
    parts, tensors = rewriter.parts, rewriter.record.tensors
    found: dict[tuple[int, int], int] = {}

    def mapped(place: int, index: int) -> int:
        if parts[place] == "optimizer":
            return shards.tensor(index)
        tensor = tensors[index]
        storage = None if units is None else units.gathered_at(place, tensor.storage)
        if storage is None:
            return index
        known = found.get((index, storage))
        if known is None:
            rewriter.tensors.append(changed(tensor, storage=storage))
            known = found[index, storage] = len(rewriter.tensors) - 1
        return known

    return mapped
