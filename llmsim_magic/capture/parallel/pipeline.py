"""Pipeline parallelism: keep one stage of a model and replace everything else."""

from collections.abc import Mapping
from typing import Any

import torch

from llmsim_magic.capture.kernels.collectives import receive, send
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.trace.parallel import Parallel


class Receive(torch.nn.Module):
    """Replaces the embedding: receives the hidden states of the previous stage."""

    def __init__(self, embedding: torch.nn.Module) -> None:
        super().__init__()
        weight: Any = embedding.weight
        self._width, self._dtype = int(weight.shape[-1]), weight.dtype

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return receive(ids, self._width, self._dtype)


class Send(torch.nn.Module):
    """Replaces the modules after the layers: sends the hidden states to the next stage."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return send(hidden_states)


class OtherStage(torch.nn.Module):
    """Replaces a module of another stage: returns its input unchanged."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states


def keep_stage(model: Any, parallel: Parallel, name: str) -> None:
    """Replace everything in a model but one pipeline stage, in place.

    Each stage has the same number of layers and the last stage also takes the remainder, as in
    transformers.

    Args:
        model: The whole model, with a `_pp_plan`.
        parallel: The number of stages and the stage to keep.
        name: The model's name, for error messages.

    Raises:
        InvalidValue: If the model has no pipeline plan, or fewer layers than stages.
    """
    if parallel.pp == 1:
        return
    modules = {path: _submodule(model, path) for path in getattr(model, "_pp_plan", None) or {}}
    lists = (path for path, each in modules.items() if isinstance(each, torch.nn.ModuleList))
    layers_path = next(lists, None)
    if layers_path is None:
        raise InvalidValue(
            f"{name}: pp {parallel.pp} is not possible, because {type(model).__name__} has no "
            "pipeline parallel plan in transformers; pp must be 1"
        )
    layers: Any = modules.pop(layers_path)
    if parallel.pp > len(layers):
        raise InvalidValue.must_be(
            f"{name}: pp", parallel.pp, f"from 1 to its {len(layers)} layers"
        )
    per_stage = len(layers) // parallel.pp
    first, is_last = parallel.stage * per_stage, parallel.stage == parallel.pp - 1
    kept = range(first, len(layers) if is_last else first + per_stage)
    for index in range(len(layers)):
        if index not in kept:
            layers[index] = OtherStage()
    owner = layers_path.rpartition(".")[0]
    _replace_rest(model, modules, owner, is_first=not parallel.stage, is_last=is_last)


def _replace_rest(
    model: Any,
    modules: Mapping[str, torch.nn.Module | None],
    owner: str,
    *,
    is_first: bool,
    is_last: bool,
) -> None:
    """Keep the embedding on the first stage only, and the modules after the layers on the last."""
    embedding = _embedding(model)
    for path, module in modules.items():
        if module is None:
            continue
        if module is embedding:
            if not is_first:
                _replace(model, path, Receive(module))
        elif not is_last:
            _replace(model, path, Send() if path.rpartition(".")[0] == owner else OtherStage())


def _embedding(model: Any) -> torch.nn.Module | None:
    try:
        found: torch.nn.Module | None = model.get_input_embeddings()
    except NotImplementedError:  # a model without token embeddings
        return None
    return found


def _submodule(model: torch.nn.Module, path: str) -> torch.nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _replace(model: torch.nn.Module, path: str, module: torch.nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, module)
