"""The optimizer of a rank: its kernels work on the shards of parameters, gradients and states."""

from collections.abc import Mapping
from math import prod

from msgspec.structs import replace

from llmsim_magic.analyses.data_parallel.sharded_parameters import Sharded, Sharding
from llmsim_magic.analyses.data_parallel.step_rewriter import StepRewriter
from llmsim_magic.records.trace.recorded import Kernel, Tensor


class OptimizerShards:
    """The shard of each tensor that the optimizer uses.

    A tensor with as many rows as its parameter is cut by rows, one of as many elements likewise;
    others, such as a scale of the whole parameter, every rank has whole. What a kernel makes
    belongs to the parameter whose tensor stands at the same place of the list that it reads.

    Args:
        parameters: Those of the step.
        sharding: Devices and dtypes.
        rewriter: The changes to the record.
        gradients: Tensors of sharded gradients, by the storage of the whole one; those that it
            lacks are parts of the whole gradient.
    """

    def __init__(
        self,
        parameters: tuple[Sharded, ...],
        sharding: Sharding,
        rewriter: StepRewriter,
        gradients: Mapping[int, int],
    ) -> None:
        self._sharding = sharding
        self._rewriter = rewriter
        self._gradients = gradients
        self._owners: dict[int, Sharded] = {}  # the parameter that each storage belongs to
        self._found: dict[int, int] = {}
        self._whole: set[int] = set()  # storages that keep their size
        by_name = {each.name: each for each in parameters if each.is_trained}
        for number, storage in enumerate(rewriter.record.storages):
            owner = by_name.get(storage.name or "")
            if storage.role == "optimizer" and storage.name is not None:
                owner = by_name.get(storage.name.rpartition(".")[0])
            if owner is not None and storage.role in ("parameter", "gradient", "optimizer"):
                self._owners[number] = owner
                if storage.role != "optimizer":
                    self._whole.add(number)
        for place, part in enumerate(rewriter.parts):
            if part == "optimizer":
                self._follow(rewriter.record.kernels[place])
                self._share_flops(place)
        self._cut_storages()

    def tensor(self, index: int) -> int:
        """The tensor that a rank's optimizer uses instead of one of the record."""
        known = self._found.get(index)
        if known is None:
            known = self._found[index] = self._cut(index)
        return known

    def shards(self) -> list[tuple[int, int]]:
        """The shard and the whole of each parameter that is updated."""
        rewriter, found = self._rewriter, []
        for storage, owner in self._owners.items():
            if rewriter.record.storages[storage].role == "parameter":
                whole = rewriter.new_tensor(storage, owner.shape, owner.like)
                shape = self._sharding.shard(owner.shape)
                found.append((rewriter.new_tensor(storage, shape, owner.like), whole))
        return found

    def _follow(self, kernel: Kernel) -> None:
        """Note to which parameters the outputs of a kernel belong."""
        tensors = self._rewriter.record.tensors
        count = len(kernel.outputs)
        for place, index in enumerate(kernel.outputs):
            storage = tensors[index].storage
            if storage in self._owners:
                continue
            read = kernel.inputs[place::count] if count > 1 else kernel.inputs
            owners = (self._owners.get(tensors[each].storage) for each in read)
            owner = next(filter(None, owners), None)
            if owner is not None:
                self._owners[storage] = owner

    def _share_flops(self, place: int) -> None:
        """Count a rank's share of the products of matrices, which the ranks have in turns."""
        kernel = self._rewriter.kernels[place]
        if kernel.flops:
            flops = kernel.flops // self._sharding.ranks
            self._rewriter.kernels[place] = replace(kernel, flops=flops)

    def _cut_storages(self) -> None:
        """Give the storages of states and temporaries the size of their shards."""
        rewriter = self._rewriter
        largest: dict[int, Tensor] = {}
        for tensor in rewriter.record.tensors:
            if tensor.storage in self._owners and tensor.storage not in self._whole:
                known = largest.get(tensor.storage)
                if known is None or tensor.nbytes > known.nbytes:
                    largest[tensor.storage] = tensor
        for number, tensor in largest.items():
            shape = self._shape(tensor.shape, self._owners[number].shape)
            _, itemsize = self._sharding.kept(tensor.dtype, tensor.itemsize)
            storage = rewriter.storages[number]
            rewriter.storages[number] = replace(storage, nbytes=prod(shape) * itemsize)

    def _cut(self, index: int) -> int:
        rewriter, tensor = self._rewriter, self._rewriter.record.tensors[index]
        owner = self._owners.get(tensor.storage)
        if owner is None:
            return index
        shape = self._shape(tensor.shape, owner.shape)
        dtype, itemsize = self._sharding.kept(tensor.dtype, tensor.itemsize)
        like, storage, offset = replace(tensor, dtype=dtype, itemsize=itemsize), tensor.storage, 0
        if storage in self._gradients:
            placed = rewriter.tensors[self._gradients[storage]]
            storage, offset = placed.storage, placed.offset
        return rewriter.new_tensor(storage, shape, like, offset)

    def _shape(self, shape: tuple[int, ...], whole: tuple[int, ...]) -> tuple[int, ...]:
        if not shape or not whole:
            return shape
        rows, shard = whole[0], self._sharding.shard(whole)
        for place, size in enumerate(shape):
            if size == rows:
                return (*shape[:place], shard[0], *shape[place + 1 :])
        return (prod(shard),) if prod(shape) == prod(whole) else shape
