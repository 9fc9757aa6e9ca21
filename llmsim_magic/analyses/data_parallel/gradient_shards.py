"""Gradients that are summed over all ranks, and of which each rank keeps its shards."""

from collections.abc import Sequence

from msgspec.structs import replace

from llmsim_magic.analyses.data_parallel.sharded_parameters import Sharded, Sharding
from llmsim_magic.analyses.data_parallel.step_rewriter import NewOperator, StepRewriter, data_kernel
from llmsim_magic.analyses.kernels.elementwise_work import short_name
from llmsim_magic.records.trace.recorded import Kernel, Tensor

REDUCE_SCATTER = "c10d._reduce_scatter_base_.default"
CHUNK_CAT = "aten._chunk_cat.out"
_ADD = "aten.add_.Tensor"


class GradientShards:
    """Reduces gradients of several parameters at a time, as `foreach_reduce` of FSDP2 does.

    They are copied to one buffer, padded to equal shards, and freed. The sum's shards lie one after
    another in one storage. With accumulation they are added to those of earlier micro-batches.

    Attributes:
        tensors: The shard of each gradient, by the storage of the whole one.

    Args:
        parameters: Those of the step.
        sharding: Devices and dtypes.
        rewriter: The changes to the record.
    """

    def __init__(
        self, parameters: Sequence[Sharded], sharding: Sharding, rewriter: StepRewriter
    ) -> None:
        self._sharding = sharding
        self._rewriter = rewriter
        self.tensors: dict[int, int] = {}
        gradients = {each.gradient for each in parameters if each.gradient is not None}
        self._freed = rewriter.keep(gradients)
        self._summands = self._take_sums(gradients)

    def reduce(
        self, parameters: Sequence[Sharded], path: str, place: int
    ) -> tuple[NewOperator, int]:
        """Insert the reduction of the gradients of parameters.

        Args:
            parameters: Trained ones of the same dtype.
            path: The module that they are of.
            place: The kernel of the record before which they are reduced.

        Returns:
            The operator, and the storage of its buffer, which is not freed yet.
        """
        sharding, rewriter = self._sharding, self._rewriter
        like = parameters[0].like
        dtype, itemsize = sharding.kept(like.dtype, like.itemsize)
        like = replace(like, dtype=dtype, itemsize=itemsize)
        gradients = [each.gradient for each in parameters if each.gradient is not None]
        reduced = [self._summands.get(each, each) for each in gradients]
        wholes = [
            rewriter.new_tensor(storage, each.shape, each.like)
            for storage, each in zip(reduced, parameters, strict=True)
        ]
        elements = sum(each.shard_elements(sharding) for each in parameters)
        buffer = rewriter.new_buffer(elements * sharding.ranks, like)
        storage = rewriter.new_storage(elements * itemsize, "gradient", path or None)
        shards = self._shards_in(storage, parameters, like)
        self.tensors |= zip(gradients, shards, strict=True)
        self._free_as_wholes(storage, gradients)
        added: list[Kernel] = []
        output = rewriter.new_tensor(storage, (elements,), like)
        if self._summands:
            output = rewriter.new_buffer(elements, like)
            summed = rewriter.tensors[output].storage
            parts = self._shards_in(summed, parameters, like)
            added = [
                replace(data_kernel(_ADD, pair, pair[:1]), pointwise=True)
                for pair in zip(shards, parts, strict=True)
            ]
            added[-1] = replace(added[-1], frees=(summed,))
        ranks = sharding.ranks
        kernels = [
            data_kernel(CHUNK_CAT, wholes, (buffer,), frees=reduced[:-1]),
            data_kernel(REDUCE_SCATTER, (buffer,), (output,), ranks=ranks),
            *added,
        ]
        new = rewriter.insert(place, path, "reduce_scatter", "backward", kernels)
        new.free_after(reduced[-1:])  # the variable of a loop refers to it until then
        return new, rewriter.tensors[buffer].storage

    def _shards_in(self, storage: int, parameters: Sequence[Sharded], like: Tensor) -> list[int]:
        found, offset = [], 0
        for each in parameters:
            shape = self._sharding.shard(each.shape)
            found.append(self._rewriter.new_tensor(storage, shape, like, offset))
            offset += each.shard_elements(self._sharding)
        return found

    def _free_as_wholes(self, storage: int, gradients: Sequence[int]) -> None:
        """Free the shards where the last of the whole gradients was freed."""
        places = [self._freed[each] for each in gradients if each in self._freed]
        if places:
            self._rewriter.free_after(max(places), [storage])

    def _take_sums(self, gradients: set[int]) -> dict[int, int]:
        """Leave out the kernels that add a micro-batch's gradients to those of earlier ones.

        Returns:
            The storages of the micro-batch's gradients by those of the sums.
        """
        rewriter, found = self._rewriter, {}
        tensors = rewriter.record.tensors
        for place, (kernel, part) in enumerate(
            zip(rewriter.record.kernels, rewriter.parts, strict=True)
        ):
            if part == "optimizer":
                continue
            storages = [tensors[index].storage for index in kernel.inputs[:2]]
            total = storages[0] if storages else None
            if total in found and kernel.is_view:
                rewriter.drop_kernel(place)
            elif total in gradients and short_name(kernel.name) == "add_":
                found[total] = storages[1]
                rewriter.drop_kernel(place)
                rewriter.storages[total] = replace(rewriter.storages[total], nbytes=0)
        rewriter.keep(found.values())
        return found
