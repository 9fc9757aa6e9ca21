"""The tensor and expert parallel plan of a model, and the sizes that it divides.

A plan maps modules and parameters to styles, which are those of transformers.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from llmsim_magic.capture.modalities.signature import text_configs
from llmsim_magic.records.errors import InvalidValue, one_of, shorten
from llmsim_magic.records.trace.parallel import Parallel

_MAX_RANKS = 64  # the error message lists legal numbers up to this one
Plan = dict[str, str]  # the style of each module and parameter, by its path


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanStyle:
    """How a style cuts a parameter, and what it does with a module's input and output.

    Attributes:
        matrix: The dimension in which a parameter of two or more dimensions is cut; None if whole.
        vector: The dimension in which a parameter of one dimension is cut; None if whole.
        packed: The parameter holds two matrices, each of which is cut by itself.
        on_input: `split` or `route`, what happens to the module's input.
        on_output: `reduce`, `gather` or `route`, what happens to the module's output.
        sums_gradients: `inputs` or `parameters`, of which backward sums the gradients over ranks.
        uneven: Shards may differ in size, because the module's output is whole again.
    """

    matrix: int | None = None
    vector: int | None = None
    packed: bool = False
    on_input: str = ""
    on_output: str = ""
    sums_gradients: str = ""
    uneven: bool = False


_WHOLE = PlanStyle()
_COLUMNS = PlanStyle(matrix=-2, vector=-1, sums_gradients="inputs")
_GATHERED_COLUMNS = replace(_COLUMNS, on_output="gather", uneven=True)
STYLES: dict[str, PlanStyle] = {
    "colwise": _COLUMNS,
    "colwise_gather_output": _GATHERED_COLUMNS,
    "colwise_rep": _GATHERED_COLUMNS,
    "rowwise": PlanStyle(matrix=-1, on_output="reduce"),
    "rowwise_split_input": PlanStyle(matrix=-1, on_input="split", on_output="reduce", uneven=True),
    "rowwise_rep": PlanStyle(matrix=-1, on_input="split", on_output="reduce", uneven=True),
    "packed_colwise": PlanStyle(matrix=-2, vector=-1, packed=True),
    "packed_rowwise": PlanStyle(matrix=-1, packed=True),
    "embedding_rowwise": PlanStyle(matrix=0, on_output="reduce", uneven=True),
    "embedding_colwise": PlanStyle(matrix=1, on_output="gather", uneven=True),
    "moe_tp_experts": PlanStyle(on_output="reduce", sums_gradients="inputs"),
    "all_reduce": PlanStyle(on_output="reduce"),
    "grouped_gemm": PlanStyle(matrix=0, vector=0),
    "ep_dispatch_experts": PlanStyle(on_input="route", on_output="route"),
    "ep_router": _WHOLE,
    "local_params": _WHOLE,
    "mla_kv_a_proj": _WHOLE,
    "moe_identity_expert": _WHOLE,
    "replicate": _WHOLE,
    "replicated_with_grad_allreduce": PlanStyle(sums_gradients="parameters"),
}


_NOT_TRAINED = ("mla_kv_a_proj", "ep_dispatch_experts", "grouped_gemm", "moe_identity_expert")


def parallel_plan(module: Any, parallel: Parallel, name: str) -> Plan:
    """The styles of all modules and parameters that are sharded.

    Args:
        module: The model, with a `_tp_plan` or `_ep_plan`.
        parallel: The sizes of tensor and expert parallelism.
        name: The model's name, for error messages.

    Returns:
        The style by path. The expert parallel plan overrides the tensor parallel plan.

    Raises:
        InvalidValue: If the model has no such plan.
    """
    plan: Plan = {}
    if parallel.tp > 1:
        plan = _expanded(module, getattr(module, "_tp_plan", None) or {})
        splits = any(STYLES[style] != _WHOLE and _in_a_layer(path) for path, style in plan.items())
        if not splits and parallel.ep == 1:
            raise InvalidValue(
                f"{name}: tp {parallel.tp} is not possible, because {type(module).__name__} has no "
                "tensor parallel plan for its layers in transformers; tp must be 1"
            )
    if parallel.ep > 1:
        experts = _expanded(module, getattr(module, "_ep_plan", None) or {})
        if "grouped_gemm" not in experts.values():
            raise InvalidValue(
                f"{name}: ep {parallel.ep} is not possible, because {type(module).__name__} has no "
                "expert parallel plan in transformers; ep must be 1"
            )
        plan = {path: style for path, style in plan.items() if not _is_inside(path, experts)}
        # versions of transformers differ in the name of the style that sums over ranks
        routed = {"moe_tp_experts": "ep_dispatch_experts"}
        plan |= {path: routed.get(style, style) for path, style in experts.items()}
    return plan


def _expanded(module: torch.nn.Module, rules: Mapping[str, str]) -> Plan:
    """Match the rules, which have * for a layer's index, to each module and parameter."""
    found: Plan = {}
    for path, part in module.named_modules():
        if (style := rules.get(_pattern(path))) is not None:
            found[path] = _checked_style(style)
        for name, _ in part.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            style = rules.get(_pattern(full)) or rules.get(_pattern(path))
            if style is not None:
                found[full] = _checked_style(style)
    return found


def _pattern(path: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".*", path)


def _checked_style(style: str) -> str:
    if style not in STYLES:
        raise InvalidValue(
            f"the model's parallel plan has the style {shorten(style)}, which is not supported; "
            f"it must be {one_of(STYLES)}"
        )
    return style


def _in_a_layer(path: str) -> bool:
    return any(part.isdigit() for part in path.split("."))


def _is_inside(path: str, plan: Plan) -> bool:
    return any(path == other or path.startswith(f"{other}.") for other in plan)


def check_trainable(plan: Plan, name: str) -> None:
    """Check that backward is known for every style of a plan.

    Raises:
        InvalidValue: It is not.
    """
    for path, style in plan.items():
        if style in _NOT_TRAINED:
            raise InvalidValue(
                f"{name}: tp and ep must be 1 with phase train, because what its plan has for "
                f"{shorten(path)}, {style}, is not simulated in backward; use dp and zero"
            )


def has_path(module: torch.nn.Module, path: str) -> bool:
    """Whether a module or parameter exists; other pipeline stages hold the rest."""
    owner, _, name = path.rpartition(".")
    try:
        return hasattr(module.get_submodule(owner), name)
    except AttributeError:
        return False


def check_divisible(module: Any, plan: Plan, parallel: Parallel, name: str) -> None:
    """Check that the number of ranks divides all sizes that the plan cuts.

    Raises:
        InvalidValue: If it does not; the message lists the legal numbers.
    """
    misfit = _misfit(module, plan, parallel.width)
    if misfit is None:
        return
    legal = [n for n in range(2, _MAX_RANKS + 1) if _misfit(module, plan, n) is None]
    what = "tp" if parallel.tp > 1 else "ep"
    allowed = one_of(map(str, [1, *legal])) if legal else "1"
    raise InvalidValue(
        f"{name}: {what} must be {allowed}, not {parallel.width}, "
        f"which does not evenly divide {misfit}"
    )


def _misfit(module: Any, plan: Plan, ranks: int) -> str | None:
    """The first size that the number of ranks does not divide, in words; None if all fit."""
    heads = _heads(module.config) if hasattr(module, "config") else {}
    if any(_is_attention(module, path, style) for path, style in plan.items()):
        for what, number in heads.items():
            if number % ranks:
                return f"the {number} {what}"
    for path, style in plan.items():
        plan_style, parameter = STYLES[style], parameter_at(module, path)
        if parameter is None or (dim := cut_dimension(plan_style, parameter)) is None:
            continue
        size = parameter.shape[dim] // (2 if plan_style.packed else 1)
        if size < ranks or (size % ranks and not plan_style.uneven):
            return f"the size {size} of {shorten(path)}"
    return None


def _heads(config: Any) -> dict[str, int]:
    """The numbers of heads in the text config, if all layers have the same."""
    names = {"attention heads": "num_attention_heads", "key-value heads": "num_key_value_heads"}
    values = text_configs(config)[0].to_dict()
    found = {what: values.get(name) for what, name in names.items()}
    return {what: number for what, number in found.items() if isinstance(number, int)}


def _is_attention(module: torch.nn.Module, path: str, style: str) -> bool:
    """Whether a path is a projection of an attention module whose output stays sharded."""
    if style != "colwise" or parameter_at(module, path) is not None:
        return False
    owner = module.get_submodule(path.rpartition(".")[0])
    return hasattr(owner, "layer_idx") or hasattr(owner, "num_key_value_groups")


def parameter_at(module: torch.nn.Module, path: str) -> torch.Tensor | None:
    """The parameter at a path; None if it is the path of a module."""
    owner, _, name = path.rpartition(".")
    return module.get_submodule(owner)._parameters.get(name)


def cut_dimension(style: PlanStyle, parameter: torch.Tensor) -> int | None:
    """The dimension in which a style cuts a parameter; None if every rank holds all of it."""
    return style.vector if parameter.dim() == 1 else style.matrix
