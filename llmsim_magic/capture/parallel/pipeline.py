"""Pipeline stages: which layers a stage holds, and what stands in for the rest of the model."""

from collections.abc import Mapping
from typing import Any

import torch

from llmsim_magic.capture.kernels.collectives import receive, send
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.trace.parallel import Parallel


class Receive(torch.nn.Module):
    """Stands for the embedding: what the stage before hands over, a vector for each token."""

    def __init__(self, embedding: torch.nn.Module) -> None:
        super().__init__()
        weight: Any = embedding.weight
        self._width, self._dtype = int(weight.shape[-1]), weight.dtype

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return receive(ids, self._width, self._dtype)


class Send(torch.nn.Module):
    """Stands for what follows the layers: hands their result to the next stage."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return send(hidden_states)


class Elsewhere(torch.nn.Module):
    """A part that another stage holds: hands on what it is given."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states


def keep_stage(model: Any, parallel: Parallel, name: str) -> None:
    """Leave of a model what its stage holds, by its own pipeline plan; the rest stands elsewhere.

    Layers are shared out evenly and the last stage takes the rest, as transformers does. Raises
    `InvalidValue` for a model without a plan, or more stages than layers.
    """
    if parallel.pp == 1:
        return
    parts = {path: _part(model, path) for path in getattr(model, "_pp_plan", None) or {}}
    stack = next((p for p, part in parts.items() if isinstance(part, torch.nn.ModuleList)), None)
    if stack is None:
        no_plan = f"possible: {type(model).__name__} carries no plan for stages"
        raise InvalidValue.must_be(f"{name}: pp", parallel.pp, no_plan)
    layers: Any = parts.pop(stack)
    if parallel.pp > len(layers):
        raise InvalidValue.must_be(
            f"{name}: pp", parallel.pp, f"from 1 to its {len(layers)} layers"
        )
    each = len(layers) // parallel.pp
    is_last = parallel.stage == parallel.pp - 1
    mine = range(parallel.stage * each, len(layers) if is_last else (parallel.stage + 1) * each)
    for place in range(len(layers)):
        if place not in mine:
            layers[place] = Elsewhere()
    _stand_in(model, parts, stack.rpartition(".")[0], is_first=not parallel.stage, is_last=is_last)


def _stand_in(
    model: Any,
    parts: Mapping[str, torch.nn.Module | None],
    home: str,
    *,
    is_first: bool,
    is_last: bool,
) -> None:
    """What comes before the layers stays on the first stage, what follows them on the last."""
    embedding = _embedding(model)
    for path, part in parts.items():
        if part is None:
            continue
        if part is embedding:
            if not is_first:
                _put(model, path, Receive(part))
        elif not is_last:
            _put(model, path, Send() if path.rpartition(".")[0] == home else Elsewhere())


def _embedding(model: Any) -> torch.nn.Module | None:
    try:
        found: torch.nn.Module | None = model.get_input_embeddings()
    except NotImplementedError:  # a tower that reads no tokens
        return None
    return found


def _part(model: torch.nn.Module, path: str) -> torch.nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _put(model: torch.nn.Module, path: str, part: torch.nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, part)
