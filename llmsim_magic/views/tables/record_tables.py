"""The record as pandas DataFrames: raw numbers, documented columns, NA where there is nothing."""

from collections.abc import Mapping, Sequence

import pandas as pd

from llmsim_magic.analyses.cost.mixture_of_experts import expert_routings
from llmsim_magic.analyses.cost.module_costs import CostSum, costs_by_layer, costs_by_module
from llmsim_magic.analyses.cost.operator_costs import costs, operator_types, recorded_costs, totals
from llmsim_magic.analyses.cost.traffic import kernel_bytes
from llmsim_magic.analyses.formulas.symbolic import OperatorFormulas
from llmsim_magic.analyses.graph.dataflow import depends_on, edges, ranks
from llmsim_magic.analyses.graph.layers import layers
from llmsim_magic.analyses.kernels import elementwise_work
from llmsim_magic.records.deferred_interrupt import defer_interrupt
from llmsim_magic.records.trace.trace import Parameter, Trace
from llmsim_magic.records.trace.workload import Workload
from llmsim_magic.views import units
from llmsim_magic.views.tables.columns import (
    SPLIT,
    ancestors,
    cost_columns,
    integers,
    numbers,
    size,
    texts,
)
from llmsim_magic.views.tables.formulas import shapes_of_phases

_FEATURES = ("in_features", "out_features", "num_embeddings", "embedding_dim")


@defer_interrupt
def ops_table(trace: Trace) -> pd.DataFrame:
    """One row per operator call, index `order`.

    FLOPs count a multiply-add as two; bytes are the least traffic; `depends_on` lists orders.
    Layers that are alike share the lists of their shapes.
    """
    record, each = trace.recorded, trace.expand_replays
    found = recorded_costs(trace)
    attributes = {module.path: module.attributes for module in trace.modules}
    columns: dict[str, object] = {
        "path": list(trace.paths),
        "op": each([o.op for o in record.operators]),
        "kind": each([o.kind for o in record.operators]),
        "layer": integers([None if layer is None else layer.index for layer in layers(trace)]),
        "input_shapes": each([record.shapes(o.inputs) for o in record.operators]),
        "output_shapes": each([record.shapes(o.outputs) for o in record.operators]),
        "dtype": each(
            texts(
                record.tensors[touched[0]].dtype if (touched := o.outputs or o.inputs) else None
                for o in record.operators
            )
        ),
        "params": integers(each([cost.params for cost in found])),
        "weight_shapes": each([[p.shape for p in cost.parameters] for cost in found]),
        "flops": integers(each([cost.flops for cost in found])),
        "elementwise_ops": integers(each([cost.elementwise_ops for cost in found])),
        "bytes_read": integers(each([cost.bytes_read for cost in found])),
        "bytes_written": integers(each([cost.bytes_written for cost in found])),
        "depends_on": list(map(list, depends_on(trace))),
        "source": each(texts(o.source for o in record.operators)),
    }
    for feature in _FEATURES:
        sizes = [
            size(attributes[o.path], feature) if o.kind == "module" else None
            for o in record.operators
        ]
        columns[feature] = integers(each(sizes))
    skippable = [cost.causal_skippable_flops for cost in found]
    columns["causal_skippable_flops"] = integers(each(skippable))
    for name in SPLIT:
        columns[name] = integers([getattr(cost, name) for cost in costs(trace)])
    columns["arithmetic_intensity"] = numbers(each([cost.arithmetic_intensity for cost in found]))
    return pd.DataFrame(columns, index=pd.RangeIndex(len(trace.steps), name="order"))


@defer_interrupt
def modules_table(trace: Trace) -> pd.DataFrame:
    """One row per module, containers included, index `path`; the model itself is the path ''."""
    own: dict[str, list[Parameter]] = {}
    below: dict[str, dict[str, int]] = {}
    for parameter in trace.parameters:
        if not parameter.is_buffer:
            own.setdefault(parameter.owner, []).append(parameter)
            for path in ancestors(parameter.owner):
                below.setdefault(path, {})[parameter.tied_to or parameter.name] = parameter.numel
    first: dict[str, int] = {}
    for order, operator in enumerate(trace.paths):
        for path in ancestors(operator):
            first.setdefault(path, order)
    spent = costs_by_module(trace)
    children: dict[str, int] = {}
    for module in trace.modules:
        if module.path:
            parent = module.path.rpartition(".")[0]
            children[parent] = children.get(parent, 0) + 1
    modules = trace.modules
    calls = [trace.calls.get(module.path) for module in modules]
    record = trace.recorded
    mine = [own.get(module.path, []) for module in modules]
    counted = [[p for p in parameters if p.tied_to is None] for parameters in mine]
    columns: dict[str, object] = {
        "type": [module.type for module in modules],
        "parent": texts(m.path.rpartition(".")[0] if m.path else None for m in modules),
        "depth": [m.path.count(".") + 1 if m.path else 0 for m in modules],
        "children": [children.get(module.path, 0) for module in modules],
        "calls": [called.number if called else 0 for called in calls],
        "params": [sum(p.numel for p in parameters) for parameters in counted],
        "params_total": [sum(below.get(module.path, {}).values()) for module in modules],
        "trainable": [sum(p.numel for p in ps if p.trainable) for ps in counted],
        "tied_to": texts(
            next((p.tied_to for p in parameters if p.tied_to), None) for parameters in mine
        ),
        "weight_shapes": [[p.shape for p in parameters] for parameters in mine],
        "input_shapes": [record.shapes(called.first.inputs) if called else [] for called in calls],
        "output_shapes": [
            record.shapes(called.first.outputs) if called else [] for called in calls
        ],
        "flops": integers(
            spent[m.path].flops if m.path in spent else None if m.path in first else 0
            for m in modules
        ),
        "order_first": integers(first.get(module.path) for module in modules),
    }
    for feature in _FEATURES:
        columns[feature] = integers(size(module.attributes, feature) for module in modules)
    columns |= cost_columns([spent.get(module.path, CostSum()) for module in modules])
    return pd.DataFrame(
        columns, index=pd.Index([m.path for m in modules], name="path", dtype=object)
    )


@defer_interrupt
def layers_table(trace: Trace) -> pd.DataFrame:
    """One row per layer in the order they run; the last one, without a path, is all outside them.

    The columns sum to the totals of the pass. `params` counts what lies in a layer, shared once.
    """
    found = costs_by_layer(trace)
    each = [layer for layer in found if layer is not None]
    spent = [found[layer] for layer in each]
    inside: dict[str, int] = {}
    for parameter in trace.parameters:
        if not parameter.is_buffer and parameter.tied_to is None:
            for path in ancestors(parameter.owner):
                inside[path] = inside.get(path, 0) + parameter.numel
    paths: list[str | None] = [layer.path for layer in each]
    params = [inside.get(layer.path, 0) for layer in each]
    indices: list[int | None] = [layer.index for layer in each]
    if None in found:
        spent.append(found[None])
        paths.append(None)
        indices.append(None)
        params.append(inside.get("", 0) - sum(params))
    columns: dict[str, object] = {
        "path": texts(paths),
        "layer": integers(indices),
        "operators": [one.operators for one in spent],
        "params": params,
        "flops": integers([one.flops for one in spent]),
    }
    return pd.DataFrame(columns | cost_columns(spent))


@defer_interrupt
def edges_table(trace: Trace) -> pd.DataFrame:
    """One row per tensor that flows from one operator to another; both are orders of `ops`."""
    found = edges(trace)
    tensors = trace.recorded.tensors
    called = _called(trace)
    return pd.DataFrame(
        {
            "source": [edge.source for edge in found],
            "target": [edge.target for edge in found],
            "shape": [tensors[edge.tensor].shape for edge in found],
            "dtype": [tensors[edge.tensor].dtype for edge in found],
            "through": texts(edge.through for edge in found),
            "source_operator": [called[edge.source] for edge in found],
            "target_operator": [called[edge.target] for edge in found],
        }
    )


@defer_interrupt
def kernels_table(trace: Trace) -> pd.DataFrame:
    """One row per ATen op in the order they ran; a view outside any operator has no `op_order`."""
    record = trace.unrolled
    kernels = record.kernels
    moved = [kernel_bytes(record, kernel) for kernel in kernels]
    return pd.DataFrame(
        {
            "order": range(len(kernels)),
            "op_order": integers(kernel.operator for kernel in kernels),
            "kernel": [kernel.name for kernel in kernels],
            "input_shapes": [record.shapes(kernel.inputs) for kernel in kernels],
            "output_shapes": [record.shapes(kernel.outputs) for kernel in kernels],
            "dtype": texts(
                record.tensors[touched[0]].dtype if (touched := k.outputs or k.inputs) else None
                for k in kernels
            ),
            "flops": integers(
                0
                if k.flops is None and elementwise_work.elementwise_ops(record, k) is not None
                else k.flops
                for k in kernels
            ),
            "bytes_read": [read for read, _ in moved],
            "bytes_written": [written for _, written in moved],
            "is_view": [kernel.is_view for kernel in kernels],
        }
    )


@defer_interrupt
def summary_table(trace: Trace) -> pd.DataFrame:
    """One row per quantity: `value`, its `unit`, and what it `means`."""
    sums = totals(trace)
    missing = elementwise_work.kernels_without_formula(trace)
    model = trace.model
    rows: list[tuple[str, object, str, str]] = [
        ("model", model.name, "", f"config from: {model.origin}"),
        ("class", model.class_name, "", f"head: {model.head}"),
        ("attention", model.attention or pd.NA, "", _attention(model.attention)),
        ("dtype", model.dtype, "", "of the parameters"),
        ("phase", trace.workload.phase, "", str(trace.workload)),
        ("batch", trace.workload.batch, "sequences", ""),
        ("context", trace.workload.context or pd.NA, "tokens", "read, or in the cache"),
        ("operators", sums.operators, "calls", "leaf modules and functions, in execution order"),
        ("modules", len(trace.modules), "modules", "containers included"),
        ("kernels", sums.kernels, "ATen ops", "views included"),
        ("parameters", sums.parameters, "parameters", "shared ones counted once"),
        ("parameters_active", sums.active, "parameters", _routing(trace)),
        ("parameters_trainable", sums.trainable, "parameters", "with requires_grad"),
        ("parameter_bytes", sums.parameter_bytes, "bytes", units.nbytes(sums.parameter_bytes)),
        ("buffer_bytes", sums.buffer_bytes, "bytes", units.nbytes(sums.buffer_bytes)),
        ("cache_bytes", sums.cache_bytes, "bytes", _cache(trace)),
        ("flops", sums.flops, "FLOPs", "matmul, convolution and attention; a multiply-add is two"),
        (
            "causal_skippable_flops",
            sums.causal_skippable_flops,
            "FLOPs",
            "of those, above the causal diagonal: a kernel may skip them",
        ),
        ("elementwise_ops", sums.elementwise_ops, "operations", "elementwise and reductions"),
        ("bytes_read", sums.bytes_read, "bytes", "least traffic, summed over operators"),
        ("bytes_written", sums.bytes_written, "bytes", "least traffic, summed over operators"),
        ("bytes_weights", sums.bytes_weights, "bytes", "of both: parameters and buffers"),
        ("bytes_activations", sums.bytes_activations, "bytes", "of both: between operators"),
        ("bytes_cache", sums.bytes_cache, "bytes", "of both: the cache or state"),
        (
            "arithmetic_intensity",
            pd.NA if sums.arithmetic_intensity is None else sums.arithmetic_intensity,
            "FLOPs/byte",
            "FLOPs for each byte moved",
        ),
        ("kernels_not_counted", sum(missing.values()), "ATen ops", _missing(missing)),
    ]
    types = operator_types(trace)
    rows.append(("operator_types", len(types), "types", "distinct types of operators"))
    rows += [(f"operators.{name}", number, "calls", "") for name, number in types.items()]
    rows += [(f"note.{place}", note, "", "") for place, note in enumerate(trace.notes)]
    names, values, unit, meaning = zip(*rows, strict=True)
    return pd.DataFrame(
        {"value": pd.Series(values, dtype=object).array, "unit": unit, "means": meaning},
        index=pd.Index(names, name="quantity"),
    )


def _routing(trace: Trace) -> str:
    """What a token meets of the experts, and the assumption behind it."""
    kinds = [
        f"{kind.experts_per_token:g} of {kind.experts} experts" for kind in expert_routings(trace)
    ]
    if not kinds:
        return "met by each token: all of them"
    return f"met by each token: {' or '.join(kinds)}, routing taken as balanced"


@defer_interrupt
def topological_table(trace: Trace) -> pd.DataFrame:
    """Operators in execution order, each with those that it really waits for.

    `rank` is the length of the longest chain before it: operators of one rank could run at once.
    """
    operators = trace.expand_replays(trace.recorded.operators)
    called = _called(trace)
    waits = depends_on(trace)
    return pd.DataFrame(
        {
            "path": list(trace.paths),
            "op": [operator.op for operator in operators],
            "rank": list(ranks(trace)),
            "waits_for": [list(sources) for sources in waits],
            "waits_for_operators": [", ".join(called[s] for s in sources) for sources in waits],
            "output_shapes": [trace.recorded.shapes(o.outputs) for o in operators],
        },
        index=pd.RangeIndex(len(operators), name="order"),
    )


@defer_interrupt
def totals_table(
    traces: Sequence[Trace], failures: Sequence[tuple[Workload, str]] = ()
) -> pd.DataFrame:
    """One row per workload: operators, work, traffic and cache of the whole pass.

    `error` says why a workload could not be traced; its other cells are NA.
    """
    each = [totals(trace) for trace in traces]
    workloads = [trace.workload for trace in traces] + [workload for workload, _ in failures]
    columns: dict[str, object] = {
        name: [getattr(workload, name) for workload in workloads]
        for name in ("phase", "batch", "context")
    }
    unknown = [None] * len(failures)
    for name in (
        "operators",
        "flops",
        "elementwise_ops",
        "bytes_read",
        "bytes_written",
        "cache_bytes",
    ):
        columns[name] = integers([*(getattr(sums, name) for sums in each), *unknown])
    columns["error"] = texts([*(None for _ in traces), *(reason for _, reason in failures)])
    return pd.DataFrame(columns)


@defer_interrupt
def long_table(traces: Sequence[Trace]) -> pd.DataFrame:
    """The operators of several workloads below each other: `phase, batch, context`, then `ops`."""
    parts = []
    for trace in traces:
        table = ops_table(trace).reset_index()
        for place, name in enumerate(("phase", "batch", "context")):
            table.insert(place, name, [getattr(trace.workload, name)] * len(table))
        parts.append(table)
    columns = [name for name in parts[0].columns if name != "order"]
    return pd.concat(parts, ignore_index=True)[[*columns, "order"]]


@defer_interrupt
def shapes_table(
    traces: Sequence[Trace], formulas: Mapping[str, Sequence[OperatorFormulas]]
) -> pd.DataFrame:
    """One row per operator, one column per workload: input shapes → output shapes.

    The same operator in two workloads is the same call of the same path; NA where a workload does
    not run it. `symbolic` has the shapes of each phase as formulas of the batch B and the context,
    S tokens read or C in the cache; NA where none holds everywhere. `changes` says whether the
    shapes depend on the workload.
    """
    cells: dict[tuple[str, str, int], dict[str, str]] = {}
    for trace in traces:
        label = workload_label(trace.workload)
        seen: dict[tuple[str, str], int] = {}
        record = trace.recorded
        written = trace.expand_replays(
            [
                " → ".join(units.shapes(record.shapes(each)) for each in (o.inputs, o.outputs))
                for o in record.operators
            ]
        )
        operators = trace.expand_replays(record.operators)
        for path, operator, text in zip(trace.paths, operators, written, strict=True):
            call = seen[path, operator.op] = seen.get((path, operator.op), -1) + 1
            cells.setdefault((path, operator.op, call), {})[label] = text
    labels = [workload_label(trace.workload) for trace in traces]
    table = pd.DataFrame(list(cells), columns=["path", "op", "call"])
    for label in labels:
        table[label] = pd.Series(texts(row.get(label) for row in cells.values()))
    symbolic = shapes_of_phases(formulas)
    table["symbolic"] = pd.Series(texts(symbolic.get(key) for key in cells), dtype=object)
    table["changes"] = [len({row.get(label) for label in labels}) > 1 for row in cells.values()]
    return table


def workload_label(workload: Workload) -> str:
    """`decode 16×128`: batch 16, context 128."""
    if workload.phase == "forward":
        return "forward"
    return f"{workload.phase} {workload.batch}×{workload.context}"


def _called(trace: Trace) -> list[str]:
    """Operators as a person would call them: a module by its path, a function by its name."""
    operators = trace.expand_replays(trace.recorded.operators)
    return [
        path if operator.kind == "module" else f"{path}:{operator.op}"
        for path, operator in zip(trace.paths, operators, strict=True)
    ]


def _attention(attention: str | None) -> str:
    if attention == "eager":
        return "the score matrix is written out"
    return "one fused operator, as on a GPU" if attention else "the module names none"


def _cache(trace: Trace) -> str:
    if not trace.cache:
        return "the model keeps no cache"
    held = units.nbytes(totals(trace).cache_bytes)
    return f"{held} in {len(trace.cache)} tensors, after this pass"


def _missing(missing: dict[str, int]) -> str:
    if not missing:
        return "every kernel's arithmetic is counted"
    return "no formula: " + ", ".join(f"{name} ×{number}" for name, number in missing.items())
