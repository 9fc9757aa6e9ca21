"""Mixtures of experts: how many experts, and how many parameters, one token uses."""

import math
from dataclasses import dataclass

from llmsim_magic.analyses.cost.routers import routed_experts
from llmsim_magic.analyses.graph.layers import layer_of, list_paths
from llmsim_magic.analyses.kernels.elementwise_work import short_name
from llmsim_magic.analyses.kernels.memoize import memoize_invariant
from llmsim_magic.records.trace.trace import Module, Trace


@dataclass(frozen=True, slots=True)
class Routing:
    """The number of experts, and the mean number of experts per token.

    `runs_all` says that the pass multiplies every token by every expert, whatever is chosen.
    """

    experts_per_token: float
    experts: int
    runs_all: bool = False


@memoize_invariant
def active_parameters(trace: Trace) -> int:
    """Parameters that one token uses: all except those of experts it is not routed to.

    Routing is assumed to be balanced, so an expert counts by its share of the tokens.
    """
    shares: dict[str, float] = {}
    for _, found in _routings(trace):
        shares.update(found)
    return round(
        sum(
            parameter.numel * shares.get(trace.recorded_path(parameter.name), 1.0)
            for parameter in trace.parameters
            if parameter.tied_to is None and not parameter.is_buffer
        )
    )


@memoize_invariant
def expert_routings(trace: Trace) -> tuple[Routing, ...]:
    """The distinct routings of the model; empty for a dense model."""
    return tuple(dict.fromkeys(routing for routing, _ in _routings(trace)))


@memoize_invariant
def routed_layers(trace: Trace) -> int:
    """The number of layers that route tokens to experts."""
    of_experts = {name for _, shares in _routings(trace) for name in shares}
    stacks = list_paths(trace)
    found = {
        layer_of(parameter.name, stacks)
        for parameter in trace.parameters
        if trace.recorded_path(parameter.name) in of_experts
    }
    return len(found)


@memoize_invariant
def _routings(trace: Trace) -> tuple[tuple[Routing, dict[str, float]], ...]:
    """Each routing with the share of tokens that uses each parameter of its experts, by name."""
    counted = (*_stacked_experts(trace), *_module_experts(trace))
    names = {name for _, shares in counted for name in shares}
    return (*counted, *_chosen_experts(trace, names))


def _chosen_experts(trace: Trace, counted: set[str]) -> list[tuple[Routing, dict[str, float]]]:
    """Experts whose number of rows does not show the choice that their router makes."""
    found = []
    for routed in routed_experts(trace):
        if counted.isdisjoint(routed.parameters):
            share = routed.experts_per_token / routed.experts
            routing = Routing(routed.experts_per_token, routed.experts, routed.runs_all)
            found.append((routing, dict.fromkeys(routed.parameters, share)))
    return found


def _stacked_experts(trace: Trace) -> list[tuple[Routing, dict[str, float]]]:
    """Experts stacked in one parameter `[experts, …]` that a grouped matmul reads.

    The matmul has `tokens · experts_per_token` rows. Other parameters of the module with one row
    per expert, such as biases, belong to the experts too.
    """
    record = trace.recorded
    found = []
    seen: set[str] = set()
    for kernel in record.kernels:
        if short_name(kernel.name) != "_grouped_mm":
            continue
        rows, weights = (record.tensors[index] for index in kernel.inputs[:2])
        name = record.storages[weights.storage].name or ""
        owner = name.rpartition(".")[0]
        if not name and kernel.operator is not None:  # weights with adapters added, or gradients
            owner = record.operators[kernel.operator].path
        tokens = _rows(trace, owner) if owner else 0
        if not tokens or owner in seen:
            continue
        seen.add(owner)
        experts = weights.shape[0]
        experts_per_token = rows.shape[0] / tokens
        per_expert = [p for p in trace.parameters if p.owner == owner and p.shape[:1] == (experts,)]
        share = min(experts_per_token / experts, 1.0)
        found.append((Routing(experts_per_token, experts), {p.name: share for p in per_expert}))
    return found


def _module_experts(trace: Trace) -> list[tuple[Routing, dict[str, float]]]:
    """Experts as sibling modules of one class, each called with some rows of the parent's input."""
    modules = {module.path: module for module in trace.modules}
    containers = {module.path.rpartition(".")[0] for module in trace.modules if module.path}
    groups: dict[tuple[str, str], list[Module]] = {}
    for module in trace.modules:
        if module.path in containers and trace.recorded_path(module.path) == module.path:
            groups.setdefault((module.path.rpartition(".")[0], module.type), []).append(module)
    shares: dict[str, float] = {}
    routings = []
    for (parent, _), group in groups.items():
        router = modules[parent]
        while router.is_list and router.path:
            router = modules[router.path.rpartition(".")[0]]
        tokens = _rows(trace, router.path)
        read = {module.path: _routed_rows(trace, router.path, module.path) for module in group}
        if len(group) < 2 or not tokens or None in read.values():
            continue
        rows = {path: number or 0 for path, number in read.items()}
        if 0 < min(filter(None, rows.values()), default=0) < tokens:
            routings.append(Routing(sum(rows.values()) / tokens, len(group)))
            shares |= {path: min(number / tokens, 1.0) for path, number in rows.items()}
    within = {p.name: share for p in trace.parameters if (share := _share_of(p.owner, shares)) < 1}
    return [(routing, within) for routing in routings]


def _share_of(owner: str, shares: dict[str, float]) -> float:
    """The share of tokens of the expert that contains a module; 1 outside experts."""
    while owner:
        if owner in shares:
            return shares[owner]
        owner = owner.rpartition(".")[0]
    return 1.0


def _rows(trace: Trace, path: str) -> int:
    """Rows of the first input of a module's first call; 0 without such an input."""
    calls = trace.recorded.calls_by_path.get(path)
    if calls is None or not calls.inputs:
        return 0
    return math.prod(trace.recorded.tensors[calls.inputs[0]].shape[:-1])


def _routed_rows(trace: Trace, parent: str, path: str) -> int | None:
    """Rows of its parent's input that a module reads; None if the module is not an expert."""
    calls = trace.recorded.calls_by_path
    if path not in calls:
        return 0
    if parent not in calls or not calls[path].inputs or not calls[parent].inputs:
        return None
    own, parent_input = (trace.recorded.tensors[calls[each].inputs[0]] for each in (path, parent))
    routed = (
        len(own.shape) == 2
        and len(parent_input.shape) > 1
        and own.shape[-1] == parent_input.shape[-1]
    )
    return own.shape[0] if routed and "float" in own.dtype else None
