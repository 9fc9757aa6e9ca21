"""What a drawing says of its nodes, boxes and lines, and which kind of work a node is."""

from llmsim_magic.analyses.cost.operator_costs import costs, totals
from llmsim_magic.analyses.graph.layers import index_spans
from llmsim_magic.analyses.graph.outline import Node, Outline, OutlineEdge
from llmsim_magic.analyses.kernels.operator_kinds import operator_kinds
from llmsim_magic.records.trace.recorded import Operator
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views import units
from llmsim_magic.views.explain import explain_container, explain_operator

_MANY_NODES = 150  # a larger drawing says less of each


class Labels:
    """The words of one outline; `is_large` ones are few."""

    def __init__(self, trace: Trace, outlined: Outline) -> None:
        self.is_large = len(outlined.nodes) > _MANY_NODES
        self._trace = trace
        self._outline = outlined
        self._record = trace.recorded
        self._costs = costs(trace)
        self._kinds = operator_kinds(trace)
        self._modules = {module.path: module for module in trace.modules}

    def label(self, node: Node) -> str:
        """`up_proj · Linear`, what it gives, and its parameters."""
        if node.collapsed is not None:
            called = self._trace.calls.get(node.collapsed)
            head, given = f"▸ {self.title(node.collapsed)}", called.first.outputs if called else ()
        else:
            operator, name = self._operator(node), self.name(node)
            head = f"{name} · {operator.op}" if operator.kind == "module" else name
            given = operator.outputs
        params = sum(self._costs[order].params for order in node.orders)
        each = " each" if self._stands_for_layers(node) else ""
        words = f" · {units.parameters(params)} params{each}" if params else ""
        return f"{head}\n{units.shapes(self._record.shapes(given)[:1])}{words}"

    def name(self, node: Node) -> str:
        """The last word of a module's path, or what a function is called."""
        operator = self._operator(node)
        if node.collapsed is None and operator.kind == "function":
            return operator.op
        return _name(node.collapsed or self._trace.paths[node.order])

    def title(self, path: str) -> str:
        """`layers.0-2 ×3 · DeepseekV3DecoderLayer · mlp: DeepseekV3MLP`."""
        group, module = self._outline.groups.get(path), self._modules[path]
        name, number = _name(path), 1 if group is None else len(group.indices)
        if group is not None and number > 1:
            stem = name.removesuffix(str(group.first.index))
            name = f"{stem}{index_spans(group.indices)} ×{number}"
        told = self._outline.distinguishing.get(path)
        return f"{name} · {module.type}" + (f"\n {told} " if told else "")

    def _stands_for_layers(self, node: Node) -> bool:
        group = self._outline.groups.get(node.collapsed or "")
        return group is not None and len(group.indices) > 1

    def _operator(self, node: Node) -> Operator:
        return self._record.operators[self._trace.steps[node.order][0]]

    def flops(self, node: Node) -> int:
        """Of all the layers that a node stands for."""
        group = self._outline.groups.get(self._outline.group_of(node.collapsed or node.box) or "")
        times = 1 if group is None else len(group.indices)
        return times * sum(self._costs[order].flops or 0 for order in node.orders)

    def kind(self, node: Node) -> str:
        """The kind of work that tells most of a node: attention, or where its FLOPs are."""
        flops = dict.fromkeys((self._kinds[order] for order in node.orders), 0)
        for order in node.orders:
            flops[self._kinds[order]] += self._costs[order].flops or 0
        return "attention" if "attention" in flops else max(flops, key=lambda kind: flops[kind])

    def tip(self, node: Node) -> str:
        if self.is_large:
            orders = f"#{node.orders[0]}" + (f" to #{node.orders[-1]}" if node.collapsed else "")
            return f"{orders} {node.collapsed or self._trace.paths[node.order]}"
        if node.collapsed is not None:
            each = "each of them: " if self._stands_for_layers(node) else ""
            return each + explain_container(self._trace, node.collapsed, node.orders)
        return explain_operator(self._trace, node.order)

    def caption(self, title: str) -> str:
        sums = totals(self._trace)
        passed = sum(kind == "nothing" for kind in self._kinds)
        aside = f"\n{passed} calls that run no kernel are not drawn" if passed else ""
        return (
            f"{title} · {self._trace.model.name} · {self._trace.workload}\n"
            f"{units.parameters(sums.parameters)} parameters · {units.scaled(sums.flops)} FLOPs · "
            f"{sums.operators} operators{aside}"
        )

    def carried(self, line: OutlineEdge) -> tuple[list[str], str]:
        """The shapes that a line carries, and all that is to be said of it."""
        tensors = [self._record.tensors[index] for index in line.tensors]
        shapes = list(dict.fromkeys(units.shape(tensor.shape) for tensor in tensors))
        dtypes = dict.fromkeys(tensor.dtype for tensor in tensors)
        said = f"{', '.join(shapes)} {', '.join(dtypes)}"
        if line.kind != "tensor":
            said += f" · {line.kind}"
        return shapes, said if self.is_large else f"#{line.source} → #{line.target}: {said}"


def _name(path: str) -> str:
    """The last word of a path; an element of a list keeps the list's: `layers.0`."""
    head, _, last = path.rpartition(".")
    return f"{head.rpartition('.')[2]}.{last}" if last.isdigit() and head else last
