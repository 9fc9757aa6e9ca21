"""How a model says that it can be spread: its plans, their styles, and what they divide.

The styles are those of transformers' tensor and expert parallelism.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from llmsim_magic.capture.inputs.signature import text_configs
from llmsim_magic.records.errors import InvalidValue, one_of, shorten
from llmsim_magic.records.trace.parallel import Parallel

_MOST = 64  # ranks, of which the legal numbers are named
Plan = dict[str, str]  # the style of each module and parameter, by its own name


@dataclass(frozen=True, slots=True)
class PlanStyle:
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


_WHOLE = PlanStyle()
STYLES: dict[str, PlanStyle] = {
    "colwise": PlanStyle(-2, -1),
    "colwise_gather_output": PlanStyle(-2, -1, made="gather", uneven=True),
    "colwise_rep": PlanStyle(-2, -1, made="gather", uneven=True),
    "rowwise": PlanStyle(-1, made="reduce"),
    "rowwise_split_input": PlanStyle(-1, given="split", made="reduce", uneven=True),
    "rowwise_rep": PlanStyle(-1, given="split", made="reduce", uneven=True),
    "packed_colwise": PlanStyle(-2, -1, packed=True),
    "packed_rowwise": PlanStyle(-1, packed=True),
    "embedding_rowwise": PlanStyle(0, made="reduce", uneven=True),
    "embedding_colwise": PlanStyle(1, made="gather", uneven=True),
    "moe_tp_experts": PlanStyle(made="reduce"),
    "all_reduce": PlanStyle(made="reduce"),
    "grouped_gemm": PlanStyle(0, 0),
    "ep_dispatch_experts": PlanStyle(given="route", made="route"),
    "ep_router": _WHOLE,
    "local_params": _WHOLE,
    "mla_kv_a_proj": _WHOLE,
    "moe_identity_expert": _WHOLE,
    "replicate": _WHOLE,
    "replicated_with_grad_allreduce": _WHOLE,
}


def plan_of(module: Any, parallel: Parallel, name: str) -> Plan:
    """The style of every module and parameter that is spread: experts by their own plan."""
    plan: Plan = {}
    if parallel.tp > 1:
        plan = _expanded(module, getattr(module, "_tp_plan", None) or {})
        splits = any(STYLES[style] != _WHOLE and _in_a_layer(path) for path, style in plan.items())
        if not splits and parallel.ep == 1:
            raise InvalidValue.must_be(
                f"{name}: tp",
                parallel.tp,
                f"possible: {type(module).__name__} carries no plan that splits its layers",
            )
    if parallel.ep > 1:
        experts = _expanded(module, getattr(module, "_ep_plan", None) or {})
        if "grouped_gemm" not in experts.values():
            raise InvalidValue.must_be(
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
        raise InvalidValue.must_be("plan", style, f"a style known here: {one_of(STYLES)}")
    return style


def _in_a_layer(path: str) -> bool:
    return any(part.isdigit() for part in path.split("."))


def _lies_in(path: str, plan: Plan) -> bool:
    return any(path == other or path.startswith(f"{other}.") for other in plan)


def has(module: torch.nn.Module, path: str) -> bool:
    """Whether a module or parameter is still there: a stage holds some of the layers."""
    owner, _, name = path.rpartition(".")
    try:
        return hasattr(module.get_submodule(owner), name)
    except AttributeError:
        return False


def check(module: Any, plan: Plan, parallel: Parallel, name: str) -> None:
    """Raises `InvalidValue`, with the legal numbers, where so many ranks do not divide a model."""
    misfit = _misfit(module, plan, parallel.width)
    if misfit is None:
        return
    legal = [n for n in range(2, _MOST + 1) if _misfit(module, plan, n) is None]
    what = "tp" if parallel.tp > 1 else "ep"
    others = f"one of {', '.join(map(str, legal))}" if legal else "possible"
    raise InvalidValue.must_be(f"{name}: {what}", parallel.width, f"{others}: {misfit}")


def _misfit(module: Any, plan: Plan, ranks: int) -> str | None:
    """What so many ranks do not divide, in words."""
    heads = _heads(module.config) if hasattr(module, "config") else {}
    if any(_is_attention(module, path, style) for path, style in plan.items()):
        for what, number in heads.items():
            if number % ranks:
                return f"{number} {what} cannot be shared out evenly"
    for path, style in plan.items():
        how, parameter = STYLES[style], parameter_at(module, path)
        if parameter is None or (dim := dimension_of(how, parameter)) is None:
            continue
        size = parameter.shape[dim] // (2 if how.packed else 1)
        if size < ranks or (size % ranks and not how.uneven):
            return f"the {size} of {shorten(path)} cannot be shared out evenly"
    return None


def _heads(config: Any) -> dict[str, int]:
    """The heads that the config's text model has, where all layers have as many."""
    names = {"attention heads": "num_attention_heads", "key-value heads": "num_key_value_heads"}
    said = text_configs(config)[0].to_dict()
    found = {what: said.get(name) for what, name in names.items()}
    return {what: number for what, number in found.items() if isinstance(number, int)}


def _is_attention(module: torch.nn.Module, path: str, style: str) -> bool:
    """Whether a projection whose output stays cut belongs to a module that attends."""
    if style != "colwise" or parameter_at(module, path) is not None:
        return False
    owner = module.get_submodule(path.rpartition(".")[0])
    return hasattr(owner, "layer_idx") or hasattr(owner, "num_key_value_groups")


def parameter_at(module: torch.nn.Module, path: str) -> torch.Tensor | None:
    """The parameter of that name; None where the path is a module's."""
    owner, _, name = path.rpartition(".")
    return module.get_submodule(owner)._parameters.get(name)


def dimension_of(style: PlanStyle, parameter: torch.Tensor) -> int | None:
    """The dimension in which a style cuts a parameter; None where every rank holds it whole."""
    return style.vector if parameter.dim() == 1 else style.matrix
