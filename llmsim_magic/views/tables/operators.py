"""Tables of operators: one row per operator, per kernel, and per edge between operators."""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

import pandas as pd

from llmsim_magic.analyses.cost.operator_costs import costs, recorded_costs
from llmsim_magic.analyses.cost.step_passes import forward_orders, parts, saved_bytes
from llmsim_magic.analyses.cost.traffic import kernel_bytes
from llmsim_magic.analyses.graph.dataflow import depends_on, edges, ranks
from llmsim_magic.analyses.graph.layers import layers
from llmsim_magic.analyses.kernels import elementwise_work
from llmsim_magic.records.deferred_interrupt import defer_interrupt
from llmsim_magic.records.trace.recorded import Pass
from llmsim_magic.records.trace.trace import Module, Scalar, Trace
from llmsim_magic.views.tables.columns import (
    BYTES_BY_SOURCE,
    FEATURE_COLUMNS,
    integer_attribute,
    integers,
    texts,
)
from llmsim_magic.views.tables.operator_columns import OperatorColumns, once_each

_OF_PASS: Mapping[Pass, str] = MappingProxyType(
    {"recompute": "recompute of ", "backward": "backward of ", "optimizer": "optimizer"}
)


@defer_interrupt
def ops_table(trace: Trace) -> pd.DataFrame:
    """One row per operator call in execution order.

    Identical layers share the same list objects for their shapes.

    Returns:
        A table with index `order`. `flops` counts a multiply-add as two; `bytes_read` and
        `bytes_written` are the least traffic; `depends_on` lists the `order` of the operators
        whose outputs this one reads. Of a training step, `pass` says what an operator is
        a part of, `saved_bytes` what autograd keeps for it, and `backward_of` the `order` of the
        operator whose gradients it computes.
    """
    index = pd.RangeIndex(len(trace.steps), name="order")
    return pd.DataFrame(operator_columns([trace]), index=index)


def operator_columns(traces: Sequence[Trace]) -> dict[str, object]:
    """The columns of `ops_table`, for the operators of one pass after the other."""
    each = OperatorColumns(traces)
    own, of_pass = each.of_recorded, each.of_pass
    rows = [list(zip(t.recorded.operators, recorded_costs(t), strict=True)) for t in traces]
    costs_of = [cost for pairs in rows for _, cost in pairs]
    columns: dict[str, object] = {
        "path": of_pass([trace.paths for trace in traces]).tolist(),
        "op": own(o.op for pairs in rows for o, _ in pairs).tolist(),
        "kind": own(o.kind for pairs in rows for o, _ in pairs).tolist(),
        "layer": each.integers_of_pass(layer_numbers(traces)),
        "input_shapes": own(each.shapes(lambda operator: operator.inputs)),
        "output_shapes": own(each.shapes(lambda operator: operator.outputs)),
        "dtype": own(texts(each.dtypes())).tolist(),
        "params": each.integers(cost.params for cost in costs_of),
        "weight_shapes": own([p.shape for p in cost.parameters] for cost in costs_of),
    }
    for name in ("flops", "elementwise_ops", "bytes_read", "bytes_written"):
        columns[name] = each.integers(getattr(cost, name) for cost in costs_of)
    columns["depends_on"] = of_pass(once_each(map(depends_on, traces), _lists))
    columns["source"] = own(texts(o.source for pairs in rows for o, _ in pairs)).tolist()
    if any(trace.training is not None for trace in traces):
        columns["pass"] = own(o.part for pairs in rows for o, _ in pairs).tolist()
        columns["saved_bytes"] = each.integers_of_pass(once_each(traces, saved_bytes))
        columns["backward_of"] = each.integers_of_pass(once_each(traces, forward_orders))
    features = once_each([trace.modules for trace in traces], _attributes)
    for name in FEATURE_COLUMNS:
        columns[name] = each.integers(
            integer_attribute(attributes[o.path], name) if o.kind == "module" else None
            for attributes, pairs in zip(features, rows, strict=True)
            for o, _ in pairs
        )
    skippable = (cost.causal_skippable_flops for cost in costs_of)
    columns["causal_skippable_flops"] = each.integers(skippable)
    for name in BYTES_BY_SOURCE:
        columns[name] = each.integers_of_pass(
            [[getattr(cost, name) for cost in costs(trace)] for trace in traces]
        )
    columns["arithmetic_intensity"] = each.floats(cost.arithmetic_intensity for cost in costs_of)
    return columns


def layer_numbers(traces: Sequence[Trace]) -> list[list[int | None]]:
    """The layer's index of each operator of each pass; None outside layers."""
    return once_each(
        map(layers, traces),
        lambda of_pass: [None if layer is None else layer.index for layer in of_pass],
    )


def _lists(items: Sequence[Sequence[int]]) -> list[list[int]]:
    return list(map(list, items))


def _attributes(modules: Sequence[Module]) -> dict[str, dict[str, Scalar]]:
    """The attributes of each module, by path."""
    return {module.path: module.attributes for module in modules}


@defer_interrupt
def kernels_table(trace: Trace) -> pd.DataFrame:
    """One row per kernel (ATen op) in execution order.

    Returns:
        A table whose `op_order` is the operator that ran the kernel; NA for a view that is
        created outside any operator. Of a training step, `pass` is that of the operator.
    """
    record = trace.unrolled
    kernels = record.kernels
    traffic = [kernel_bytes(record, kernel) for kernel in kernels]
    columns: dict[str, object] = {
        "order": range(len(kernels)),
        "op_order": integers(kernel.operator for kernel in kernels),
        "kernel": [kernel.name for kernel in kernels],
        "input_shapes": [record.shapes(kernel.inputs) for kernel in kernels],
        "output_shapes": [record.shapes(kernel.outputs) for kernel in kernels],
        "dtype": texts(
            record.tensors[tensors[0]].dtype if (tensors := k.outputs or k.inputs) else None
            for k in kernels
        ),
        "flops": integers(
            0
            if k.flops is None and elementwise_work.elementwise_ops(record, k) is not None
            else k.flops
            for k in kernels
        ),
        "bytes_read": [read for read, _ in traffic],
        "bytes_written": [written for _, written in traffic],
        "is_view": [kernel.is_view for kernel in kernels],
    }
    if trace.training is not None:
        of_operator = parts(trace)
        columns["pass"] = texts(
            None if kernel.operator is None else of_operator[kernel.operator] for kernel in kernels
        )
    return pd.DataFrame(columns)


@defer_interrupt
def edges_table(trace: Trace) -> pd.DataFrame:
    """One row per tensor that one operator writes and another reads.

    Returns:
        A table whose `source` and `target` are orders of `ops_table`.
    """
    dataflow = edges(trace)
    tensors = trace.recorded.tensors
    names = _operator_names(trace)
    return pd.DataFrame(
        {
            "source": [edge.source for edge in dataflow],
            "target": [edge.target for edge in dataflow],
            "shape": [tensors[edge.tensor].shape for edge in dataflow],
            "dtype": [tensors[edge.tensor].dtype for edge in dataflow],
            "through": texts(edge.through for edge in dataflow),
            "source_operator": [names[edge.source] for edge in dataflow],
            "target_operator": [names[edge.target] for edge in dataflow],
        }
    )


@defer_interrupt
def topological_table(trace: Trace) -> pd.DataFrame:
    """One row per operator in execution order, with the operators it depends on.

    Returns:
        A table with index `order`. `rank` is the length of the longest dependency chain that
        ends at the operator: operators of equal rank could run in parallel.
    """
    operators = trace.expand_replays(trace.recorded.operators)
    names = _operator_names(trace)
    dependencies = depends_on(trace)
    of_step = {"pass": parts(trace)} if trace.training is not None else {}
    return pd.DataFrame(
        {
            "path": list(trace.paths),
            "op": [operator.op for operator in operators],
            **of_step,
            "rank": list(ranks(trace)),
            "waits_for": [list(sources) for sources in dependencies],
            "waits_for_operators": [
                ", ".join(names[source] for source in sources) for sources in dependencies
            ],
            "output_shapes": [trace.recorded.shapes(o.outputs) for o in operators],
        },
        index=pd.RangeIndex(len(operators), name="order"),
    )


def _operator_names(trace: Trace) -> list[str]:
    """`model.norm` for a module's operator, `model.layers.0:add` for a function.

    Those of a training step's other passes say so: `backward of model.norm`.
    """
    operators = trace.expand_replays(trace.recorded.operators)
    return [
        _OF_PASS.get(operator.part, "")
        + (path if operator.kind == "module" else f"{path}:{operator.op}")
        for path, operator in zip(trace.paths, operators, strict=True)
    ]


def layer_indices(ops: pd.DataFrame) -> list[int]:
    """The sorted indices of the layers that occur in an `ops_table`."""
    return sorted(int(layer) for layer in ops["layer"].dropna().unique())


def filter_operators(
    ops: pd.DataFrame,
    *,
    path: str = "",
    layers: Collection[int | None] | None = None,
    kind: str | None = None,
) -> pd.DataFrame:
    """The rows of an `ops_table` that meet all conditions.

    Args:
        ops: a table from `ops_table`.
        path: keep operators whose path contains this text.
        layers: keep operators in these layers; None among them means outside every layer.
        kind: keep operators of this kind, `module` or `function`.
    """
    is_kept = ops["path"].str.contains(path, regex=False)
    if layers is not None:
        is_kept &= ops["layer"].isin([layer for layer in layers if layer is not None]) | (
            ops["layer"].isna() & (None in layers)
        )
    if kind is not None:
        is_kept &= ops["kind"] == kind
    return ops[is_kept]
