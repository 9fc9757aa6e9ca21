"""One of several processes that hold a model between them, as transformers itself spreads it.

Run as `python -m tests.helpers.rank_process FOLDER SIZES`, with the environment that
torch.distributed reads and the sizes of a `DistributedConfig` as JSON. Each prints the shape of
each parameter it holds, what its forward returned, and what it summed with the others.
"""

import json
import sys
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch.distributed.tensor import DTensor
from transformers.distributed import DistributedConfig

from tests.helpers.cache_names import cache_of


def sending(sent: list[list[Any]]) -> None:
    """Note the sums that ranks make; gathering goes through `torch.ops` and is not seen here."""
    original = dist.all_reduce

    def noted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append(["all_reduce", list(tensor.shape)])
        return original(tensor, *args, **kwargs)

    dist.all_reduce = noted


def main(folder: str, sizes: str) -> None:
    dist.init_process_group("gloo")
    sent: list[list[Any]] = []
    spread = DistributedConfig(**json.loads(sizes))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, distributed_config=spread)
    model.eval()
    held = {}
    for name, parameter in model.named_parameters():
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        held[name] = list(local.shape)
    sending(sent)
    with torch.no_grad():
        output = model(input_ids=torch.arange(14).reshape(2, 7) + 3, use_cache=True)
    logits = output.logits
    if isinstance(logits, DTensor):
        logits = logits.full_tensor()
    keys = [list(layer.keys.shape) for layer in cache_of(output).layers if layer.is_initialized]
    found = {"held": held, "logits": list(logits.shape), "keys": keys, "summed": sent}
    print("FOUND" + json.dumps(found), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
