"""Passes of models with random weights on a device, as a plain call of the model runs them."""

import gc
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from llmsim_magic.capture.configs.resolve import find_config, load_config
from llmsim_magic.capture.inputs.cache_in_output import cache_in_output
from llmsim_magic.capture.kernels.tensors import dtype_name, held_tensors
from llmsim_magic.capture.measure.timers import Run, in_graph, timings
from llmsim_magic.capture.modalities.signature import HuggingFaceModel
from llmsim_magic.capture.models.model_class import model_constructor
from llmsim_magic.records.trace.workload import IsCancelled, Workload

_BUDGET_S = 0.5  # for each launch of a pass


@dataclass(frozen=True, slots=True)
class ModelPass:
    """A measured pass of a model of the catalogue: its launch, `eager` or `graph`, and seconds."""

    model: str
    dtype: str
    workload: Workload
    launch: str
    seconds: float


def model_passes(
    names: Sequence[str],
    workloads: Sequence[Workload],
    device: torch.device,
    dtype: torch.dtype,
    stopped: IsCancelled,
) -> Iterator[ModelPass]:
    """Each workload of each model, started by the host and in a CUDA graph.

    Raises:
        KeyboardInterrupt: `stopped()` is true.
    """
    for name in names:
        model = build(name, device, dtype)
        for workload in workloads:
            if stopped():
                raise KeyboardInterrupt
            run, _ = repeatable_pass(model, workload, device)
            found = timings(run, device, budget_s=_BUDGET_S)
            yield ModelPass(name, dtype_name(dtype), workload, "eager", found.median)
            if device.type == "cuda":
                found = timings(in_graph(run, device), device, budget_s=_BUDGET_S)
                yield ModelPass(name, dtype_name(dtype), workload, "graph", found.median)
            del run
            gc.collect()


def build(name: str, device: torch.device, dtype: torch.dtype) -> HuggingFaceModel:
    """A model of the catalogue with random weights, as transformers initialises them.

    Raises:
        LlmsimError: No config is known by that name, or this transformers lacks its class.
    """
    config = load_config(find_config(name)).config
    constructor = model_constructor(config, name, base=False, has_remote_code=False)
    with torch.device(device):
        model: HuggingFaceModel = constructor.build(config, dtype=dtype).eval()
    return model


def repeatable_pass(
    model: HuggingFaceModel, workload: Workload, device: torch.device
) -> tuple[Run, int]:
    """A pass that can be repeated, and the bytes of the keys, values and states that it reads.

    A decode step starts from the same cache each time, which therefore stays allocated.
    """
    if workload.phase == "prefill":
        prompt = _tokens(model, workload.batch, workload.context, device)
        return lambda: model(prompt), 0
    keywords: dict[str, int | bool] = {"use_cache": True}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        keywords["logits_to_keep"] = 1
    prompt = _tokens(model, workload.batch, workload.context, device)
    caches = cache_in_output(model, model(prompt, **keywords))
    layers = [layer for cache in caches.values() for layer in cache.layers]
    saved = [dict(vars(layer)) for layer in layers]
    token = _tokens(model, workload.batch, 1, device)

    def step() -> object:
        for layer, state in zip(layers, saved, strict=True):
            vars(layer).update(state)
        return model(token, **caches)

    held = {tensor.data_ptr(): tensor for _, tensor in held_tensors("cache", saved)}
    return step, sum(each.nbytes for each in held.values() if each.is_floating_point())


def _tokens(model: HuggingFaceModel, batch: int, length: int, device: torch.device) -> torch.Tensor:
    vocabulary = model.config.get_text_config().vocab_size
    return torch.randint(0, vocabulary, (batch, length), device=device)
