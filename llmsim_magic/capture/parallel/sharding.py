"""Shard a model for one rank, by the parallel plans that it has in transformers.

Parameters are cut as the plan says and hooks call the collectives; the model's own forward then
runs as on the first rank.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from llmsim_magic.capture.kernels.collectives import all_reduce
from llmsim_magic.capture.meta.isolation import isolated
from llmsim_magic.capture.models.meta_model import MetaModel
from llmsim_magic.capture.parallel.expert_parallel import BalancedRouting
from llmsim_magic.capture.parallel.gradients import (
    gathered,
    split,
    sum_gradient_of,
    sum_gradients,
)
from llmsim_magic.capture.parallel.pipeline import keep_stage
from llmsim_magic.capture.parallel.tensor_parallel_plan import (
    STYLES,
    Plan,
    check_divisible,
    cut_dimension,
    has_path,
    parallel_plan,
    parameter_at,
)
from llmsim_magic.records.trace.parallel import Parallel


@isolated()
def sharded(meta_model: MetaModel, parallel: Parallel) -> MetaModel:
    """Shard a model for the first rank of a pipeline stage, in place.

    Args:
        meta_model: A model that has not run yet; its module is modified.
        parallel: The sizes of tensor, pipeline and expert parallelism, and the stage.

    Returns:
        The model of that rank.

    Raises:
        InvalidValue: If the model has no plan, or the number of ranks does not divide its sizes;
            the message names the legal numbers.
    """
    if parallel.is_one:
        return meta_model
    module, name = meta_model.module, meta_model.info.name
    plan = parallel_plan(module, parallel, name)
    check_divisible(module, plan, parallel, name)
    keep_stage(module, parallel, name)
    plan = {path: style for path, style in plan.items() if has_path(module, path)}
    sizes = _cut_parameters(module, plan, parallel.width)
    notes = [f"one of {parallel.ranks} ranks: {parallel}, by the model's parallel plan"]
    if parallel.ep > 1:
        notes.append("tokens are assumed to be spread evenly over the experts of all ranks")
    info = replace(meta_model.info, parallel=parallel, plan=plan)
    register_collectives = partial(_register_hooks, plan=plan, sizes=sizes, ranks=parallel.width)
    return replace(
        meta_model,
        info=info,
        notes=(*meta_model.notes, *notes),
        register_collectives=register_collectives,
    )


def _cut_parameters(module: torch.nn.Module, plan: Plan, ranks: int) -> dict[str, int]:
    """Cut every parameter of the plan, tied ones once; return the full sizes by module."""
    cut: dict[tuple[int, int], torch.nn.Parameter] = {}
    kept: list[torch.Tensor] = []  # keeps the ids in `cut` unique
    sizes: dict[str, int] = {}
    for path, style in plan.items():
        parameter = parameter_at(module, path)
        plan_style = STYLES[style]
        dim = None if parameter is None else cut_dimension(plan_style, parameter)
        if parameter is None or dim is None:
            continue
        owner = module.get_submodule(path.rpartition(".")[0])
        kept.append(parameter)
        key = (id(parameter), dim % parameter.dim())
        if key not in cut:
            cut[key] = _shard(parameter, dim, ranks, 2 if plan_style.packed else 1)
        owner._parameters[path.rpartition(".")[2]] = cut[key]
        _update_sizes(owner, parameter, dim % parameter.dim(), cut[key], sizes, path)
    return sizes


def _shard(parameter: torch.Tensor, dim: int, ranks: int, pieces: int) -> torch.nn.Parameter:
    """The first rank's shard, cut as by `torch.chunk`, which makes the first the largest."""
    shape = list(parameter.shape)
    shape[dim] = pieces * -(-shape[dim] // (pieces * ranks))
    return torch.nn.Parameter(parameter.new_empty(shape), parameter.requires_grad)


_SIZE_ATTRIBUTES = {
    0: ("out_features", "num_embeddings", "num_experts"),
    1: ("in_features", "embedding_dim"),
}


def _update_sizes(
    owner: Any,
    parameter: torch.Tensor,
    dim: int,
    part: torch.Tensor,
    sizes: dict[str, int],
    path: str,
) -> None:
    """Set the size attributes of a module to those of its shard."""
    whole = parameter.shape[dim]
    if parameter.dim() > 1:
        sizes[path.rpartition(".")[0]] = whole
    for name in _SIZE_ATTRIBUTES.get(dim, ()):
        if parameter.dim() > 1 and getattr(owner, name, None) == whole:
            setattr(owner, name, part.shape[dim])
    if (getattr(owner, "padding_idx", None) or 0) >= part.shape[0]:
        owner.padding_idx = None  # the row is on another rank


def _register_hooks(module: torch.nn.Module, plan: Plan, sizes: dict[str, int], ranks: int) -> None:
    for path, name in plan.items():
        style = STYLES[name]
        if parameter_at(module, path) is not None:
            continue
        part = module.get_submodule(path)
        if style.sums_gradients == "parameters":
            for parameter in part.parameters(recurse=False):
                sum_gradient_of(parameter)
        if style.sums_gradients == "inputs":
            part.register_forward_pre_hook(_sum_input_gradients, prepend=True, with_kwargs=True)
        if not (style.on_input or style.on_output):
            continue
        if style.on_input == "route":
            experts = next(p.shape[0] for p in part.parameters(recurse=False) if p.dim() > 1)
            BalancedRouting(ranks, experts).hook(part)
            continue
        if style.on_input == "split":
            width = -(-sizes[path] // ranks)
            part.register_forward_pre_hook(partial(_split, ranks=ranks, width=width), prepend=True)
        part.register_forward_hook(_OUTPUT_HOOKS[style.on_output](ranks, sizes.get(path, 0)))


Hook = Callable[[torch.nn.Module, Any, Any], Any]


def _sum_input_gradients(module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
    names, values = tuple(kwargs), [sum_gradients(each) for each in (*args, *kwargs.values())]
    return tuple(values[: len(args)]), dict(zip(names, values[len(args) :], strict=True))


def _split(module: torch.nn.Module, args: Any, ranks: int, width: int) -> Any:
    """The first rank's part of the input's last dimension, as a view."""
    return (split(args[0], ranks, width), *args[1:])


def _all_reduce_hook(ranks: int, size: int) -> Hook:
    def reduce(module: torch.nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, torch.Tensor):
            return all_reduce(output)
        first, *others = output
        return (all_reduce(first), *others)

    return reduce


def _all_gather_hook(ranks: int, size: int) -> Hook:
    def gather(module: torch.nn.Module, args: Any, output: Any) -> Any:
        return gathered(output, ranks, size)

    return gather


_OUTPUT_HOOKS: dict[str, Callable[[int, int], Hook]] = {
    "reduce": _all_reduce_hook,
    "gather": _all_gather_hook,
}
