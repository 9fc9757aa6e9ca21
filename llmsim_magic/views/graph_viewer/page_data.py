"""The data of an interactive graph: every operator once per kind of layer, and all edges."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from llmsim_magic.analyses.graph.layers import Layer
from llmsim_magic.analyses.graph.outline import Outline, boxes
from llmsim_magic.records.trace.selection import Selection
from llmsim_magic.records.trace.trace import Module
from llmsim_magic.views.graph_viewer.contents import Contents, OperatorFacts

_MAX_OPEN_NODES = 400  # of a graph whose separate layers are drawn open at first

Json = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstView:
    """What an interactive graph shows first.

    Attributes:
        selection: the layers that are drawn separately.
        outlined: the nodes of the static picture, which the page begins with.
        ranks: the rank of each operator; if given, nodes are numbered and edges carry shapes.
    """

    selection: Selection
    outlined: Outline
    ranks: Sequence[int] | None


def page_data(contents: Contents, first: FirstView, title: str) -> str:
    """JSON for `drawing.js`.

    Repeated layers hold the facts of their first layer; `groups` has the orders of the others.
    Edges are `[source, target, kind, index of the text of their tensors]`.
    """
    facts = [
        contents.facts(order) for order in contents.orders if contents.counterparts[order] == order
    ]
    texts: dict[str, int] = {}
    edges = []
    for edge in contents.outline.edges:
        text = ", ".join(dict.fromkeys(map(contents.tensor, edge.tensors)))
        number = texts.setdefault(text, len(texts))
        edges.append([edge.source, edge.target, edge.kind, number])
    given = [
        {
            "name": each.name,
            "tensor": contents.tensor(each.tensor),
            "isCache": _is_cache(contents, each.tensor),
            "readers": each.readers,
        }
        for each in contents.outline.inputs
    ]
    groups = [
        {
            "stack": group.first.stack,
            "indices": group.indices,
            "members": contents.members(group),
            "feature": contents.features().get(group.first.path, ""),
        }
        for group in contents.groups
    ]
    trace = contents.trace
    modules = [m for m in trace.modules if not contents.is_in_repeated_layer(m.path)]
    drawn = {box for each in facts for box in boxes(each.path)}
    data: Json = {
        "title": title,
        "caption": f"{trace.model.name} · {trace.workload}",
        "model": trace.model.class_name,
        "nodes": [_node(each) for each in facts],
        "edges": edges,
        "tensors": list(texts),
        "inputs": given,
        "groups": groups,
        "modules": {
            module.path: _module(contents, module) for module in modules if module.path in drawn
        },
        "lists": [module.path for module in modules if module.is_list],
        "separate": _separate(contents, first),
        "closed": [node.collapsed for node in first.outlined.nodes if node.collapsed is not None],
        "areLayersOpen": len(first.outlined.nodes) <= _MAX_OPEN_NODES,
        "ranks": first.ranks,
    }
    return msgspec.json.encode(data).decode()


def _node(facts: OperatorFacts) -> Json:
    values = {
        "flops": facts.flops,
        "bytes": facts.bytes_read + facts.bytes_written,
        "read": facts.bytes_read,
        "written": facts.bytes_written,
        "memory": facts.memory,
        "params": facts.params,
        "time": facts.time_s,
    }
    return {
        "order": facts.order,
        "path": facts.path,
        "op": facts.op,
        "isModule": facts.is_module,
        "kind": facts.kind,
        "inputs": facts.inputs,
        "outputs": facts.outputs,
        "weights": facts.weights,
        "source": facts.source,
        "bottleneck": facts.bottleneck,
        "values": values,
    }


def _module(contents: Contents, module: Module) -> Json:
    """The class of a module, and the tensors of its first call."""
    calls = contents.trace.calls.get(module.path)
    inputs, outputs = (calls.first.inputs, calls.first.outputs) if calls else ((), ())
    return {
        "type": module.type,
        "inputs": list(map(contents.tensor, inputs)),
        "outputs": list(map(contents.tensor, outputs)),
    }


def _separate(contents: Contents, first: FirstView) -> list[str]:
    """The paths of the layers that are drawn one by one from the start."""
    asked = first.selection.layers
    return [
        Layer(group.first.stack, index).path
        for group in contents.groups
        for index in group.indices
        if len(group.indices) > 1 and (asked == "all" or index in asked)
    ]


def _is_cache(contents: Contents, tensor: int) -> bool:
    record = contents.trace.recorded
    return record.storages[record.tensors[tensor].storage].role == "cache"
