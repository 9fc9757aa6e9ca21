"""The step of a rank under data parallelism with whole parameters: ZeRO stages 0, 1 and 2.

Stage 0 is PyTorch's `DistributedDataParallel` with its defaults, whose reducer
(`torch/csrc/distributed/c10d/reducer.cpp`) copies gradients to buckets of its own, sums these over
all ranks while backward goes on, and copies the sums back when backward has ended. Stage 1 adds the
optimizer's shards, stage 2 keeps the part of each bucket alone that the rank's optimizer needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from msgspec.structs import replace

from llmsim_magic.analyses.data_parallel.fully_sharded import ALL_GATHER
from llmsim_magic.analyses.data_parallel.gradient_shards import GradientShards
from llmsim_magic.analyses.data_parallel.sharded_parameters import Sharded, Sharding
from llmsim_magic.analyses.data_parallel.step_rewriter import StepRewriter, data_kernel
from llmsim_magic.records.trace.trace import Parameter

_ALL_REDUCE = "c10d.allreduce_.default"
COPIES = ("copy_in", "copy_out")  # the operators that copy gradients to buckets, and sums back
_COPY = "aten.copy_.default"
_SCALE = "aten.mul.out"
_FIRST_BUCKET = 2**20  # bytes from which the bucket of the first gradients is complete
_BUCKET = 25 * 2**20  # and those of others


@dataclass(frozen=True, slots=True)
class Bucket:
    """Gradients that are reduced together, once the kernel before `place` has run."""

    parameters: tuple[Sharded, ...]
    place: int


def buckets(parameters: Sequence[Sharded], rewriter: StepRewriter) -> list[Bucket]:
    """The buckets of a step after the first, which are by the order in which gradients are ready.

    A bucket has gradients of one dtype, and is complete as soon as it has its bytes or more.
    """
    ready = _ready(parameters, rewriter)
    found: list[Bucket] = []
    filling: dict[str, list[Sharded]] = {}
    limits: dict[str, int] = {}
    in_order = sorted((each for each in parameters if each.is_trained), key=lambda p: ready[p.name])
    for each in in_order:
        dtype = each.like.dtype
        bucket = filling.setdefault(dtype, [])
        bucket.append(each)
        if gradient_bytes(bucket) >= limits.get(dtype, _FIRST_BUCKET):
            found.append(Bucket(tuple(filling.pop(dtype)), ready[each.name]))
            limits[dtype] = _BUCKET
    rest = [Bucket(tuple(each), ready[each[-1].name]) for each in filling.values()]
    return [*found, *rest]


def gradient_bytes(parameters: Sequence[Sharded]) -> int:
    """Bytes of the gradients of parameters."""
    return sum(prod(each.shape) * each.like.itemsize for each in parameters)


def _ready(parameters: Sequence[Sharded], rewriter: StepRewriter) -> dict[str, int]:
    """The index after the last kernel of backward that uses each gradient."""
    names = {each.gradient: each.name for each in parameters if each.gradient is not None}
    found: dict[str, int] = {}
    record = rewriter.record
    for place, (kernel, part) in enumerate(zip(record.kernels, rewriter.parts, strict=True)):
        if part == "optimizer":
            continue
        for index in kernel.outputs:
            name = names.get(record.tensors[index].storage)
            if name is not None:
                found[name] = place + 1
    return found


def all_reduced(
    parameters: Sequence[Sharded], sharding: Sharding, rewriter: StepRewriter
) -> list[Parameter]:
    """Insert the sums of gradients over all ranks, and the buckets' way there and back.

    Returns:
        The buckets, as buffers that exist from before the first step.
    """
    found, copies = [], []
    for number, bucket in enumerate(buckets(parameters, rewriter)):
        like = bucket.parameters[0].like
        elements = sum(prod(each.shape) for each in bucket.parameters)
        name = f"bucket.{number}"
        storage = rewriter.new_storage(elements * like.itemsize, "buffer", name)
        whole = rewriter.new_tensor(storage, (elements,), like)
        kernels, offset = [], 0
        for each in bucket.parameters:
            view = rewriter.new_tensor(storage, each.shape, like, offset)
            offset += prod(each.shape)
            gradient = _gradient(each, rewriter)
            kernels.append(replace(data_kernel(_SCALE, (gradient,), (view,)), pointwise=True))
            copies.append(data_kernel(_COPY, (gradient, view), (gradient,)))
        rewriter.insert(bucket.place, "", COPIES[0], "backward", kernels)
        summed = data_kernel(_ALL_REDUCE, (whole,), (whole,), ranks=sharding.ranks)
        rewriter.insert(bucket.place, "", "all_reduce", "backward", [summed])
        found.append(
            Parameter(
                name=name,
                owner="",
                shape=(elements,),
                dtype=like.dtype,
                itemsize=like.itemsize,
                trainable=False,
                is_buffer=True,
                tied_to=None,
            )
        )
    end = rewriter.end_of("forward", "recompute", "backward")
    rewriter.insert(end, "", COPIES[1], "backward", copies)
    return found


def reduce_scattered(
    parameters: Sequence[Sharded], sharding: Sharding, rewriter: StepRewriter
) -> dict[int, int]:
    """Insert the sums of gradients over all ranks, of which each rank keeps its shards.

    Returns:
        The tensors of the shards by the gradients' storages.
    """
    in_buckets = buckets(parameters, rewriter)
    shards = GradientShards(parameters, sharding, rewriter)
    for bucket in in_buckets:
        reduction, buffer = shards.reduce(bucket.parameters, "", bucket.place)
        reduction.free_after([buffer])
    return shards.tensors


def all_gathered(
    shards: Sequence[tuple[int, int]], sharding: Sharding, rewriter: StepRewriter
) -> None:
    """Insert the exchange of updated parameters, in place: they lie in one buffer of each dtype.

    Args:
        shards: The shard and the whole of each parameter.
        sharding: Devices.
        rewriter: The changes to the record.
    """
    end = len(rewriter.record.kernels)
    by_dtype: dict[str, list[tuple[int, int]]] = {}
    for shard, whole in shards:
        by_dtype.setdefault(rewriter.tensors[shard].dtype, []).append((shard, whole))
    kernels = [
        data_kernel(
            ALL_GATHER,
            [shard for shard, _ in each],
            [whole for _, whole in each],
            ranks=sharding.ranks,
        )
        for each in by_dtype.values()
    ]
    if not kernels:
        return
    freed = rewriter.keep(
        number for number, storage in enumerate(rewriter.storages) if storage.role == "gradient"
    )
    new = rewriter.insert(end, "", "all_gather", "optimizer", kernels)
    new.free_after(each for each, place in freed.items() if place == end - 1)
    for each, place in freed.items():
        if place != end - 1:
            rewriter.free_after(place, [each])


def _gradient(parameter: Sharded, rewriter: StepRewriter) -> int:
    assert parameter.gradient is not None  # noqa: S101 - buckets have trained parameters alone
    return rewriter.new_tensor(parameter.gradient, parameter.shape, parameter.like)
