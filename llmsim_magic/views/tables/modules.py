"""Tables of modules: one row per module, and one row per layer."""

from collections.abc import Iterable

import pandas as pd

from llmsim_magic.analyses.cost.module_costs import CostSum, costs_by_layer, costs_by_module
from llmsim_magic.records.deferred_interrupt import defer_interrupt
from llmsim_magic.records.trace.trace import Parameter, Trace
from llmsim_magic.views.tables.columns import (
    FEATURE_COLUMNS,
    ancestors,
    cost_columns,
    integer_attribute,
    integers,
    texts,
)


@defer_interrupt
def modules_table(trace: Trace) -> pd.DataFrame:
    """One row per module, containers included.

    Returns:
        A table with index `path`; the model itself has the path "". `params` counts a shared
        parameter at its first owner only, so the column sums to the model's total;
        `params_total` counts the module with everything below it.
    """
    modules = trace.modules
    record = trace.recorded
    costs = costs_by_module(trace)
    children = _child_counts(module.path for module in modules)
    first_orders = _first_orders(trace)
    calls = [trace.calls.get(module.path) for module in modules]
    columns: dict[str, object] = {
        "type": [module.type for module in modules],
        "parent": texts(m.path.rpartition(".")[0] if m.path else None for m in modules),
        "depth": [m.path.count(".") + 1 if m.path else 0 for m in modules],
        "children": [children.get(module.path, 0) for module in modules],
        "calls": [call.number if call else 0 for call in calls],
        **_parameter_columns(trace),
        "input_shapes": [record.shapes(call.first.inputs) if call else [] for call in calls],
        "output_shapes": [record.shapes(call.first.outputs) if call else [] for call in calls],
        "flops": integers(
            costs[m.path].flops if m.path in costs else None if m.path in first_orders else 0
            for m in modules
        ),
        "order_first": integers(first_orders.get(module.path) for module in modules),
    }
    for feature in FEATURE_COLUMNS:
        columns[feature] = integers(integer_attribute(m.attributes, feature) for m in modules)
    columns |= cost_columns([costs.get(module.path, CostSum()) for module in modules])
    return pd.DataFrame(
        columns, index=pd.Index([m.path for m in modules], name="path", dtype=object)
    )


def _parameter_columns(trace: Trace) -> dict[str, object]:
    """Counts and shapes of each module's parameters."""
    owned: dict[str, list[Parameter]] = {}
    subtree_sizes: dict[str, dict[str, int]] = {}  # path → distinct parameter → elements
    for parameter in trace.parameters:
        if not parameter.is_buffer:
            owned.setdefault(parameter.owner, []).append(parameter)
            name = parameter.tied_to or parameter.name
            for path in ancestors(parameter.owner):
                subtree_sizes.setdefault(path, {})[name] = parameter.numel
    paths = [module.path for module in trace.modules]
    parameters = [owned.get(path, []) for path in paths]
    untied = [[p for p in of_module if p.tied_to is None] for of_module in parameters]
    return {
        "params": [sum(p.numel for p in of_module) for of_module in untied],
        "params_total": [sum(subtree_sizes.get(path, {}).values()) for path in paths],
        "trainable": [sum(p.numel for p in of_module if p.trainable) for of_module in untied],
        "tied_to": texts(
            next((p.tied_to for p in of_module if p.tied_to), None) for of_module in parameters
        ),
        "weight_shapes": [[p.shape for p in of_module] for of_module in parameters],
    }


def _child_counts(paths: Iterable[str]) -> dict[str, int]:
    """The number of direct children by parent path."""
    counts: dict[str, int] = {}
    for path in paths:
        if path:
            parent = path.rpartition(".")[0]
            counts[parent] = counts.get(parent, 0) + 1
    return counts


def _first_orders(trace: Trace) -> dict[str, int]:
    """The order of the first operator at or below each module path."""
    first_orders: dict[str, int] = {}
    for order, operator_path in enumerate(trace.paths):
        for path in ancestors(operator_path):
            first_orders.setdefault(path, order)
    return first_orders


@defer_interrupt
def layers_table(trace: Trace) -> pd.DataFrame:
    """One row per layer in execution order; a last row without a path sums all other operators.

    Returns:
        A table whose columns sum to the totals of the pass. `params` counts a shared parameter
        once.
    """
    costs = costs_by_layer(trace)
    layers = [layer for layer in costs if layer is not None]
    rows = [costs[layer] for layer in layers]
    params_below: dict[str, int] = {}
    for parameter in trace.parameters:
        if not parameter.is_buffer and parameter.tied_to is None:
            for path in ancestors(parameter.owner):
                params_below[path] = params_below.get(path, 0) + parameter.numel
    paths: list[str | None] = [layer.path for layer in layers]
    params = [params_below.get(layer.path, 0) for layer in layers]
    indices: list[int | None] = [layer.index for layer in layers]
    if None in costs:
        rows.append(costs[None])
        paths.append(None)
        indices.append(None)
        params.append(params_below.get("", 0) - sum(params))
    columns: dict[str, object] = {
        "path": texts(paths),
        "layer": integers(indices),
        "operators": [row.operators for row in rows],
        "params": params,
        "flops": integers([row.flops for row in rows]),
    }
    return pd.DataFrame(columns | cost_columns(rows))
