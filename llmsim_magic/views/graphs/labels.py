"""The texts of a graph: labels, captions and tooltips of its nodes, boxes and edges."""

from llmsim_magic.analyses.cost.operator_costs import costs, totals
from llmsim_magic.analyses.graph.layers import index_spans
from llmsim_magic.analyses.graph.outline import Node, Outline, OutlineEdge
from llmsim_magic.analyses.kernels.operator_kinds import operator_kinds
from llmsim_magic.records.trace.recorded import Operator
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views import units
from llmsim_magic.views.explain import explain_container, explain_operator

_LARGE_GRAPH_NODES = 150


class Labels:
    """The texts of one outline; those of a large graph are shorter."""

    def __init__(self, trace: Trace, outlined: Outline) -> None:
        self.is_large = len(outlined.nodes) > _LARGE_GRAPH_NODES
        self._trace = trace
        self._outline = outlined
        self._record = trace.recorded
        self._costs = costs(trace)
        self._kinds = operator_kinds(trace)
        self._modules = {module.path: module for module in trace.modules}

    def label(self, node: Node) -> str:
        """`up_proj · Linear`, the shape of the first output, and the number of parameters."""
        if node.collapsed is not None:
            call = self._trace.calls.get(node.collapsed)
            head, outputs = f"▸ {self.title(node.collapsed)}", call.first.outputs if call else ()
        else:
            operator, name = self._operator(node), self.name(node)
            head = f"{name} · {operator.op}" if operator.kind == "module" else name
            outputs = self._results(operator)
        read = {p.name: p.numel for order in node.orders for p in self._costs[order].parameters}
        params = sum(read.values())
        each = " each" if self._is_repeated_layer(node) else ""
        suffix = f"{units.parameters(params)} params{each}" if params else ""
        is_known = bool(outputs) or node.collapsed is None or not suffix
        shapes = units.shapes(self._record.shapes(outputs)[:1]) if is_known else ""
        return f"{head}\n{' · '.join(filter(None, (shapes, suffix)))}"

    def _results(self, operator: Operator) -> tuple[int, ...]:
        """The outputs of an operator: those that later operators of backward read come first."""
        tensors, storages = self._record.tensors, self._record.storages
        roles = {index: storages[tensors[index].storage].role for index in operator.outputs}
        return tuple(sorted(operator.outputs, key=lambda index: roles[index] == "gradient"))

    def name(self, node: Node) -> str:
        """The last part of a module's path, or a function's name."""
        operator = self._operator(node)
        if node.collapsed is None and operator.kind == "function":
            return operator.op
        return _last_part(node.collapsed or self._trace.paths[node.order])

    def title(self, path: str) -> str:
        """`layers.0-2 ×3 · DeepseekV3DecoderLayer · mlp: DeepseekV3MLP`."""
        group, module = self._outline.groups.get(path), self._modules[path]
        name, count = _last_part(path), 1 if group is None else len(group.indices)
        if group is not None and count > 1:
            prefix = name.removesuffix(str(group.first.index))
            name = f"{prefix}{index_spans(group.indices)} ×{count}"
        difference = self._outline.distinguishing.get(path)
        return f"{name} · {module.type}" + (f"\n {difference} " if difference else "")

    def _is_repeated_layer(self, node: Node) -> bool:
        group = self._outline.groups.get(node.collapsed or "")
        return group is not None and len(group.indices) > 1

    def _operator(self, node: Node) -> Operator:
        return self._record.operators[self._trace.steps[node.order][0]]

    def flops(self, node: Node) -> int:
        """The FLOPs of a node, summed over the repeated layers it is drawn for."""
        group = self._outline.groups.get(self._outline.group_of(node.collapsed or node.box) or "")
        count = 1 if group is None else len(group.indices)
        return count * sum(self._costs[order].flops or 0 for order in node.orders)

    def kind(self, node: Node) -> str:
        """The kind of work that colours a node: attention if it has any, else most FLOPs."""
        flops = dict.fromkeys((self._kinds[order] for order in node.orders), 0)
        for order in node.orders:
            flops[self._kinds[order]] += self._costs[order].flops or 0
        return "attention" if "attention" in flops else max(flops, key=lambda kind: flops[kind])

    def tooltip(self, node: Node) -> str:
        """The explanation of a node; in a large graph, its orders and path."""
        if self.is_large:
            orders = f"#{node.orders[0]}" + (f" to #{node.orders[-1]}" if node.collapsed else "")
            return f"{orders} {node.collapsed or self._trace.paths[node.order]}"
        if node.collapsed is not None:
            prefix = "each of them: " if self._is_repeated_layer(node) else ""
            return prefix + explain_container(self._trace, node.collapsed, node.orders)
        return explain_operator(self._trace, node.order)

    def caption(self, title: str) -> str:
        """The model, the workload and the totals of the pass."""
        sums = totals(self._trace)
        skipped = sum(kind == "nothing" for kind in self._kinds)
        note = f"\n{skipped} calls that run no kernel are not drawn" if skipped else ""
        return (
            f"{title} · {self._trace.model.name} · {self._trace.workload}\n"
            f"{units.parameters(sums.parameters)} parameters · {units.si(sums.flops, 'FLOPs')} · "
            f"{sums.operators} operators{note}"
        )

    def edge_shapes(self, edge: OutlineEdge) -> list[str]:
        """The distinct shapes of an edge's tensors."""
        tensors = [self._record.tensors[index] for index in edge.tensors]
        return list(dict.fromkeys(units.shape(tensor.shape) for tensor in tensors))

    def edge_tooltip(self, edge: OutlineEdge) -> str:
        """`#3 → #5: [1, 128, 1024] bfloat16 · residual`."""
        dtypes = dict.fromkeys(self._record.tensors[index].dtype for index in edge.tensors)
        text = f"{', '.join(self.edge_shapes(edge))} {', '.join(dtypes)}"
        if edge.kind != "tensor":
            text += f" · {edge.kind}"
        return text if self.is_large else f"#{edge.source} → #{edge.target}: {text}"


def _last_part(path: str) -> str:
    """The last part of a path; an index keeps the name of its list: `layers.0`."""
    head, _, last = path.rpartition(".")
    return f"{head.rpartition('.')[2]}.{last}" if last.isdigit() and head else last
