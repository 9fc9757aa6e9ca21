"""Make a model the part of it that one rank holds, by the plans that the model itself carries.

Its parameters are cut as their styles say and hooks call the collectives; then its own forward
runs as on the first rank.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from llmsim_magic.capture.kernels.collectives import all_gather, all_reduce, side_by_side
from llmsim_magic.capture.meta.isolation import isolated
from llmsim_magic.capture.models.meta_model import MetaModel
from llmsim_magic.capture.parallel.expert_parallel import BalancedRouting
from llmsim_magic.capture.parallel.pipeline import keep_stage
from llmsim_magic.capture.parallel.tensor_parallel_plan import (
    STYLES,
    Plan,
    check,
    dimension_of,
    has,
    parameter_at,
    plan_of,
)
from llmsim_magic.records.trace.parallel import Parallel


@isolated()
def sharded(weightless: MetaModel, parallel: Parallel) -> MetaModel:
    """The part of a model, not yet run, that the first rank of a stage holds; it is cut in place.

    Raises `InvalidValue`, which names what is legal, where the model carries no plan or a number
    of ranks does not divide what its plan cuts.
    """
    if parallel.is_one:
        return weightless
    module, name = weightless.module, weightless.info.name
    plan = plan_of(module, parallel, name)
    check(module, plan, parallel, name)
    keep_stage(module, parallel, name)
    plan = {path: style for path, style in plan.items() if has(module, path)}
    sizes = _cut_all(module, plan, parallel.width)
    notes = [f"one of {parallel.ranks} ranks: {parallel}, by the model's own plan"]
    if parallel.ep > 1:
        notes.append("tokens taken as spread evenly over the experts of all ranks")
    info = replace(weightless.info, parallel=parallel, plan=plan)
    register_collectives = partial(_hook_all, plan=plan, sizes=sizes, ranks=parallel.width)
    return replace(
        weightless,
        info=info,
        notes=(*weightless.notes, *notes),
        register_collectives=register_collectives,
    )


def _cut_all(module: torch.nn.Module, plan: Plan, ranks: int) -> dict[str, int]:
    """Cut every parameter of the plan; what was one, tied, stays one. Returns whole sizes."""
    cut: dict[tuple[int, int], torch.nn.Parameter] = {}
    kept: list[torch.Tensor] = []  # so that no two are ever taken for one
    sizes: dict[str, int] = {}
    for path, style in plan.items():
        parameter = parameter_at(module, path)
        how = STYLES[style]
        dim = None if parameter is None else dimension_of(how, parameter)
        if parameter is None or dim is None:
            continue
        owner = module.get_submodule(path.rpartition(".")[0])
        kept.append(parameter)
        key = (id(parameter), dim % parameter.dim())
        if key not in cut:
            cut[key] = _part(parameter, dim, ranks, 2 if how.packed else 1)
        owner._parameters[path.rpartition(".")[2]] = cut[key]
        _tell(owner, parameter, dim % parameter.dim(), cut[key], sizes, path)
    return sizes


def _part(parameter: torch.Tensor, dim: int, ranks: int, pieces: int) -> torch.nn.Parameter:
    """The first rank's part, as `torch.chunk` cuts: the largest where it cannot be even."""
    shape = list(parameter.shape)
    shape[dim] = pieces * -(-shape[dim] // (pieces * ranks))
    return torch.nn.Parameter(parameter.new_empty(shape), parameter.requires_grad)


_SIZES = {
    0: ("out_features", "num_embeddings", "num_experts"),
    1: ("in_features", "embedding_dim"),
}


def _tell(
    owner: Any,
    parameter: torch.Tensor,
    dim: int,
    part: torch.Tensor,
    sizes: dict[str, int],
    path: str,
) -> None:
    """Let a module's own sizes be those of its part."""
    whole = parameter.shape[dim]
    if parameter.dim() > 1:
        sizes[path.rpartition(".")[0]] = whole
    for name in _SIZES.get(dim, ()):
        if parameter.dim() > 1 and getattr(owner, name, None) == whole:
            setattr(owner, name, part.shape[dim])
    if (getattr(owner, "padding_idx", None) or 0) >= part.shape[0]:
        owner.padding_idx = None  # another rank's row


def _hook_all(module: torch.nn.Module, plan: Plan, sizes: dict[str, int], ranks: int) -> None:
    for path, name in plan.items():
        style = STYLES[name]
        if parameter_at(module, path) is not None or not (style.given or style.made):
            continue
        part = module.get_submodule(path)
        if style.given == "route":
            experts = next(p.shape[0] for p in part.parameters(recurse=False) if p.dim() > 1)
            BalancedRouting(ranks, experts).hook(part)
            continue
        if style.given == "split":
            width = -(-sizes[path] // ranks)
            part.register_forward_pre_hook(partial(_split, width=width), prepend=True)
        part.register_forward_hook(_MADE[style.made](ranks, sizes.get(path, 0)))


Hook = Callable[[torch.nn.Module, Any, Any], Any]


def _split(module: torch.nn.Module, args: Any, width: int) -> Any:
    """A rank's part of the last dimension of what it is given: a view."""
    return (args[0][..., :width], *args[1:])


def _reducing(ranks: int, size: int) -> Hook:
    def reduce(module: torch.nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, torch.Tensor):
            return all_reduce(output)
        first, *others = output
        return (all_reduce(first), *others)

    return reduce


def _gathering(ranks: int, size: int) -> Hook:
    def gather(module: torch.nn.Module, args: Any, output: Any) -> Any:
        return side_by_side(all_gather(output, ranks, size), size)

    return gather


_MADE: dict[str, Callable[[int, int], Hook]] = {"reduce": _reducing, "gather": _gathering}
