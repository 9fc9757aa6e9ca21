"""Make a model the part of it that one rank holds, by the plans that the model itself carries.

Its parameters are cut as their styles say and hooks call the collectives; then its own forward
runs as on the first rank. The styles are those of transformers' tensor and expert parallelism.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from llmsim_magic.capture.collectives import all_gather, all_reduce, side_by_side
from llmsim_magic.capture.experts import Balanced
from llmsim_magic.capture.inputs.ask import text_configs
from llmsim_magic.capture.stages import keep_stage
from llmsim_magic.capture.weightless import Weightless
from llmsim_magic.records.errors import InvalidValue, clip, one_of
from llmsim_magic.records.parallel import Parallel

_MOST = 64  # ranks, of which the legal numbers are named
Plan = dict[str, str]  # the style of each module and parameter, by its own name


@dataclass(frozen=True, slots=True)
class Style:
    """The dimension in which a parameter of one dimension is cut, or of more; None leaves it whole.

    `packed` parameters are two in one, each cut by itself. `given` and `made` are what happens to
    a module's input and output. Only what is whole again at once may be cut unevenly.
    """

    matrix: int | None = None
    vector: int | None = None
    packed: bool = False
    given: str = ""
    made: str = ""
    uneven: bool = False


_WHOLE = Style()
STYLES: dict[str, Style] = {
    "colwise": Style(-2, -1),
    "colwise_gather_output": Style(-2, -1, made="gather", uneven=True),
    "colwise_rep": Style(-2, -1, made="gather", uneven=True),
    "rowwise": Style(-1, made="reduce"),
    "rowwise_split_input": Style(-1, given="split", made="reduce", uneven=True),
    "rowwise_rep": Style(-1, given="split", made="reduce", uneven=True),
    "packed_colwise": Style(-2, -1, packed=True),
    "packed_rowwise": Style(-1, packed=True),
    "embedding_rowwise": Style(0, made="reduce", uneven=True),
    "embedding_colwise": Style(1, made="gather", uneven=True),
    "moe_tp_experts": Style(made="reduce"),
    "all_reduce": Style(made="reduce"),
    "grouped_gemm": Style(0, 0),
    "ep_dispatch_experts": Style(given="route", made="route"),
    "ep_router": _WHOLE,
    "local_params": _WHOLE,
    "mla_kv_a_proj": _WHOLE,
    "moe_identity_expert": _WHOLE,
    "replicate": _WHOLE,
    "replicated_with_grad_allreduce": _WHOLE,
}


def sharded(weightless: Weightless, parallel: Parallel) -> Weightless:
    """The part of a model, not yet run, that the first rank of a stage holds; it is cut in place.

    Raises `InvalidValue`, which names what is legal, where the model carries no plan or a number
    of ranks does not divide what its plan cuts.
    """
    if parallel.is_one:
        return weightless
    module, name = weightless.module, weightless.info.name
    plan = _plan(module, parallel, name)
    _check(module, plan, parallel, name)
    keep_stage(module, parallel, name)
    plan = {path: style for path, style in plan.items() if _has(module, path)}
    sizes = _cut_all(module, plan, parallel.width)
    notes = [f"one of {parallel.ranks} ranks: {parallel}, by the model's own plan"]
    if parallel.ep > 1:
        notes.append("tokens taken as spread evenly over the experts of all ranks")
    info = replace(weightless.info, parallel=parallel, plan=plan)
    spread = partial(_hook_all, plan=plan, sizes=sizes, ranks=parallel.width)
    return replace(weightless, info=info, notes=(*weightless.notes, *notes), spread=spread)


# plans


def _plan(module: Any, parallel: Parallel, name: str) -> Plan:
    """The style of every module and parameter that is spread: experts by their own plan."""
    plan: Plan = {}
    if parallel.tp > 1:
        plan = _expanded(module, getattr(module, "_tp_plan", None) or {})
        splits = any(STYLES[style] != _WHOLE and _in_a_layer(path) for path, style in plan.items())
        if not splits and parallel.ep == 1:
            raise InvalidValue(
                f"{name}: tp",
                parallel.tp,
                f"possible: {type(module).__name__} carries no plan that splits its layers",
            )
    if parallel.ep > 1:
        experts = _expanded(module, getattr(module, "_ep_plan", None) or {})
        if "grouped_gemm" not in experts.values():
            raise InvalidValue(
                f"{name}: ep",
                parallel.ep,
                f"possible: {type(module).__name__} carries no plan for experts",
            )
        plan = {path: style for path, style in plan.items() if not _lies_in(path, experts)}
        # The experts' sum over ranks, by whichever name a version of transformers has for it.
        routed = {"moe_tp_experts": "ep_dispatch_experts"}
        plan |= {path: routed.get(style, style) for path, style in experts.items()}
    return plan


def _expanded(module: torch.nn.Module, rules: Mapping[str, str]) -> Plan:
    """The rules, which write * for a layer's number, for each module and its parameters."""
    found: Plan = {}
    for path, part in module.named_modules():
        if (style := rules.get(_pattern(path))) is not None:
            found[path] = _known(style)
        for name, _ in part.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            style = rules.get(_pattern(full)) or rules.get(_pattern(path))
            if style is not None:
                found[full] = _known(style)
    return found


def _pattern(path: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".*", path)


def _known(style: str) -> str:
    if style not in STYLES:
        raise InvalidValue("plan", style, f"a style known here: {one_of(STYLES)}")
    return style


def _in_a_layer(path: str) -> bool:
    return any(part.isdigit() for part in path.split("."))


def _lies_in(path: str, plan: Plan) -> bool:
    return any(path == other or path.startswith(f"{other}.") for other in plan)


def _has(module: torch.nn.Module, path: str) -> bool:
    """Whether a module or parameter is still there: a stage holds some of the layers."""
    owner, _, name = path.rpartition(".")
    try:
        return hasattr(module.get_submodule(owner), name)
    except AttributeError:
        return False


# what divides


def _check(module: Any, plan: Plan, parallel: Parallel, name: str) -> None:
    misfit = _misfit(module, plan, parallel.width)
    if misfit is None:
        return
    legal = [n for n in range(2, _MOST + 1) if _misfit(module, plan, n) is None]
    what = "tp" if parallel.tp > 1 else "ep"
    others = f"one of {', '.join(map(str, legal))}" if legal else "possible"
    raise InvalidValue(f"{name}: {what}", parallel.width, f"{others}: {misfit}")


def _misfit(module: Any, plan: Plan, ranks: int) -> str | None:
    """What so many ranks do not divide, in words."""
    heads = _heads(module.config) if hasattr(module, "config") else {}
    if any(_is_attention(module, path, style) for path, style in plan.items()):
        for what, number in heads.items():
            if number % ranks:
                return f"{number} {what} cannot be shared out evenly"
    for path, style in plan.items():
        how, parameter = STYLES[style], _parameter(module, path)
        if parameter is None or (dim := _dimension(how, parameter)) is None:
            continue
        size = parameter.shape[dim] // (2 if how.packed else 1)
        if size < ranks or (size % ranks and not how.uneven):
            return f"the {size} of {clip(path)} cannot be shared out evenly"
    return None


def _heads(config: Any) -> dict[str, int]:
    """The heads that the config's text model has, where all layers have as many."""
    names = {"attention heads": "num_attention_heads", "key-value heads": "num_key_value_heads"}
    said = text_configs(config)[0].to_dict()
    found = {what: said.get(name) for what, name in names.items()}
    return {what: number for what, number in found.items() if isinstance(number, int)}


def _is_attention(module: torch.nn.Module, path: str, style: str) -> bool:
    """Whether a projection whose output stays cut belongs to a module that attends."""
    if style != "colwise" or _parameter(module, path) is not None:
        return False
    owner = module.get_submodule(path.rpartition(".")[0])
    return hasattr(owner, "layer_idx") or hasattr(owner, "num_key_value_groups")


# cutting


def _parameter(module: torch.nn.Module, path: str) -> torch.Tensor | None:
    owner, _, name = path.rpartition(".")
    return module.get_submodule(owner)._parameters.get(name)


def _dimension(style: Style, parameter: torch.Tensor) -> int | None:
    return style.vector if parameter.dim() == 1 else style.matrix


def _cut_all(module: torch.nn.Module, plan: Plan, ranks: int) -> dict[str, int]:
    """Cut every parameter of the plan; what was one, tied, stays one. Returns whole sizes."""
    cut: dict[tuple[int, int], torch.nn.Parameter] = {}
    kept: list[torch.Tensor] = []  # so that no two are ever taken for one
    sizes: dict[str, int] = {}
    for path, style in plan.items():
        parameter = _parameter(module, path)
        how = STYLES[style]
        dim = None if parameter is None else _dimension(how, parameter)
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


# what happens to inputs and outputs


def _hook_all(module: torch.nn.Module, plan: Plan, sizes: dict[str, int], ranks: int) -> None:
    for path, name in plan.items():
        style = STYLES[name]
        if _parameter(module, path) is not None or not (style.given or style.made):
            continue
        part = module.get_submodule(path)
        if style.given == "route":
            experts = next(p.shape[0] for p in part.parameters(recurse=False) if p.dim() > 1)
            Balanced(ranks, experts).hook(part)
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
