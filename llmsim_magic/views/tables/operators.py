"""Tables of operators: one row per operator, per kernel, and per edge between operators."""

from collections.abc import Collection

import pandas as pd

from llmsim_magic.analyses.cost.operator_costs import costs, recorded_costs
from llmsim_magic.analyses.cost.traffic import kernel_bytes
from llmsim_magic.analyses.graph.dataflow import depends_on, edges, ranks
from llmsim_magic.analyses.graph.layers import layers
from llmsim_magic.analyses.kernels import elementwise_work
from llmsim_magic.records.deferred_interrupt import defer_interrupt
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views.tables.columns import (
    BYTES_BY_SOURCE,
    FEATURE_COLUMNS,
    floats,
    integer_attribute,
    integers,
    texts,
)


@defer_interrupt
def ops_table(trace: Trace) -> pd.DataFrame:
    """One row per operator call in execution order.

    Identical layers share the same list objects for their shapes.

    Returns:
        A table with index `order`. `flops` counts a multiply-add as two; `bytes_read` and
        `bytes_written` are the least traffic; `depends_on` lists the `order` of the operators
        whose outputs this one reads.
    """
    record, each = trace.recorded, trace.expand_replays
    operator_costs = recorded_costs(trace)
    columns: dict[str, object] = {
        "path": list(trace.paths),
        "op": each([o.op for o in record.operators]),
        "kind": each([o.kind for o in record.operators]),
        "layer": integers([None if layer is None else layer.index for layer in layers(trace)]),
        "input_shapes": each([record.shapes(o.inputs) for o in record.operators]),
        "output_shapes": each([record.shapes(o.outputs) for o in record.operators]),
        "dtype": each(
            texts(
                record.tensors[tensors[0]].dtype if (tensors := o.outputs or o.inputs) else None
                for o in record.operators
            )
        ),
        "params": integers(each([cost.params for cost in operator_costs])),
        "weight_shapes": each([[p.shape for p in cost.parameters] for cost in operator_costs]),
        "flops": integers(each([cost.flops for cost in operator_costs])),
        "elementwise_ops": integers(each([cost.elementwise_ops for cost in operator_costs])),
        "bytes_read": integers(each([cost.bytes_read for cost in operator_costs])),
        "bytes_written": integers(each([cost.bytes_written for cost in operator_costs])),
        "depends_on": list(map(list, depends_on(trace))),
        "source": each(texts(o.source for o in record.operators)),
        **_feature_columns(trace),
    }
    skippable_flops = [cost.causal_skippable_flops for cost in operator_costs]
    columns["causal_skippable_flops"] = integers(each(skippable_flops))
    for name in BYTES_BY_SOURCE:
        columns[name] = integers([getattr(cost, name) for cost in costs(trace)])
    intensities = [cost.arithmetic_intensity for cost in operator_costs]
    columns["arithmetic_intensity"] = floats(each(intensities))
    return pd.DataFrame(columns, index=pd.RangeIndex(len(trace.steps), name="order"))


def _feature_columns(trace: Trace) -> dict[str, object]:
    """`in_features` and similar attributes of each operator's module; NA for functions."""
    attributes = {module.path: module.attributes for module in trace.modules}
    columns: dict[str, object] = {}
    for feature in FEATURE_COLUMNS:
        values = [
            integer_attribute(attributes[o.path], feature) if o.kind == "module" else None
            for o in trace.recorded.operators
        ]
        columns[feature] = integers(trace.expand_replays(values))
    return columns


@defer_interrupt
def kernels_table(trace: Trace) -> pd.DataFrame:
    """One row per kernel (ATen op) in execution order.

    Returns:
        A table whose `op_order` is the operator that ran the kernel; NA for a view that is
        created outside any operator.
    """
    record = trace.unrolled
    kernels = record.kernels
    traffic = [kernel_bytes(record, kernel) for kernel in kernels]
    return pd.DataFrame(
        {
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
    )


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
    return pd.DataFrame(
        {
            "path": list(trace.paths),
            "op": [operator.op for operator in operators],
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
    """`model.norm` for a module's operator, `model.layers.0:add` for a function."""
    operators = trace.expand_replays(trace.recorded.operators)
    return [
        path if operator.kind == "module" else f"{path}:{operator.op}"
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
