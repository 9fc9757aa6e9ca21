"""A step of one rank of several under PyTorch's own FSDP2, whose storages are followed on the CPU.

Run as `python -m tests.helpers.sharded_step OPTIONS`, with a small config and options as JSON.
Prints the most bytes of each pass, those after it, and how often each collective ran.
"""

import json
import sys
import weakref
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

BLOCK = 512  # bytes to which the allocator of a GPU rounds


class Storages(TorchDispatchMode):
    """Notes every storage that an op reads or returns, and the most bytes that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, weakref.ref[Any]] = {}
        self.called: Counter[str] = Counter()
        self.peak = 0
        self.is_stepping = False

    def note(self, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            tensor = getattr(value, "_local_tensor", value)
            if tensor.dim() or not self.is_stepping:  # the optimizer counts steps, on the host
                storage = tensor.untyped_storage()
                self.alive[storage._cdata] = weakref.ref(storage)
        elif isinstance(value, dict):
            self.note(list(value.values()))
        elif isinstance(value, list | tuple):
            for each in value:
                self.note(each)

    def total(self) -> int:
        found = {key: reference() for key, reference in self.alive.items()}
        self.alive = {key: self.alive[key] for key, each in found.items() if each is not None}
        sizes = (each.nbytes() for each in found.values() if each is not None)
        return sum(-(-size // BLOCK) * BLOCK for size in sizes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.namespace == "c10d":
            self.called[func.name()] += 1
        self.note([output, args, kwargs or {}])
        self.peak = max(self.peak, self.total())
        return output


def main(options: str) -> None:
    given = json.loads(options)
    ranks, is_mixed = given["ranks"], given["is_mixed"]
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    config = transformers.LlamaConfig(**given["config"])
    model = transformers.LlamaForCausalLM(config)
    model = model.to(torch.float32 if is_mixed else torch.bfloat16)
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    policy = policy if is_mixed else MixedPrecisionPolicy()
    mesh = init_device_mesh("cpu", (ranks,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    if given["checkpointing"]:
        model.gradient_checkpointing_enable()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    ids = torch.zeros(given["batch"], given["context"], dtype=torch.int64)
    labels = ids.clone()
    found: dict[str, Any] = {}
    storages = Storages()
    for each in [*model.parameters(), *model.buffers(), ids, labels]:
        storages.note(each)

    def end(part: str) -> None:
        found[part] = [storages.peak, storages.total()]
        storages.peak = 0

    for _ in range(2):
        storages.called.clear()
        with storages:
            loss = model(input_ids=ids, labels=labels).loss
            end("forward")
            loss.backward()
            del loss
            end("backward")
            storages.is_stepping = True
            optimizer.step()
            storages.is_stepping = False
            end("optimizer")
            optimizer.zero_grad()
    print("FOUND" + json.dumps({"passes": found, "called": storages.called}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
