"""A graph as JSON for Model Explorer (github.com/google-ai-edge/model-explorer).

The structure is that of `GraphCollection` in its `graph_builder.py`: graphs of nodes, each with
`id`, `label`, `namespace`, `attrs`, `incomingEdges`, `inputsMetadata` and `outputsMetadata`; every
value is a string.
"""

from collections.abc import Iterable, Sequence

import msgspec

from llmsim_magic.analyses.graph.outline import OutlineEdge, boxes
from llmsim_magic.views.graph_viewer.contents import Contents, OperatorFacts

Json = dict[str, object]


def model_explorer_json(contents: Contents, title: str) -> bytes:
    """The graph as UTF-8 JSON, with every layer written out: Model Explorer folds it itself."""
    incoming: dict[int, list[Json]] = {}
    for edge in contents.outline.edges:
        incoming.setdefault(edge.target, []).append(_edge(contents, edge))
    nodes = [_input_node(contents, number) for number in range(len(contents.outline.inputs))]
    for number, given in enumerate(contents.outline.inputs):
        for reader in given.readers:
            operator = contents.recorded(reader)
            place = _place(contents, operator.inputs, (given.tensor,))
            incoming.setdefault(reader, []).append(_edge_json(f"given{number}", "0", place))
    nodes += [_node(contents.facts(order), incoming.get(order, [])) for order in contents.orders]
    namespaces = {node["namespace"] for node in nodes}
    modules = {_namespace(module.path): module for module in contents.trace.modules}
    graph = {
        "id": title,
        "nodes": nodes,
        "groupNodeAttributes": {
            namespace: {"path": module.path, "type": module.type}
            for namespace, module in modules.items()
            if namespace in namespaces
        },
    }
    name = contents.trace.model.name
    return msgspec.json.encode({"label": name, "graphs": [graph]})


def _node(facts: OperatorFacts, incoming: list[Json]) -> Json:
    box = facts.path.rpartition(".")[0] if facts.is_module else facts.path
    about = {
        "path": facts.path,
        "type": facts.op,
        "kind": facts.kind,
        "order": facts.order,
        "params": facts.params,
        "weights": ", ".join(facts.weights) or None,
        "flops": facts.flops,
        "bytes_read": facts.bytes_read,
        "bytes_written": facts.bytes_written,
        "memory_bytes": facts.memory,
        "time_s": facts.time_s,
        "source": facts.source,
    }
    return {
        "id": f"n{facts.order}",
        "label": facts.name,
        "namespace": _namespace(box),
        "attrs": _attributes(about),
        "incomingEdges": incoming,
        "inputsMetadata": _metadata(facts.inputs),
        "outputsMetadata": _metadata(facts.outputs),
    }


def _input_node(contents: Contents, number: int) -> Json:
    given = contents.outline.inputs[number]
    return {
        "id": f"given{number}",
        "label": given.name,
        "namespace": "",
        "attrs": [],
        "incomingEdges": [],
        "inputsMetadata": [],
        "outputsMetadata": _metadata([contents.tensor(given.tensor)]),
    }


def _edge(contents: Contents, edge: OutlineEdge) -> Json:
    outputs = contents.recorded(edge.source).outputs
    inputs = contents.recorded(edge.target).inputs
    return _edge_json(
        f"n{edge.source}",
        _place(contents, outputs, edge.tensors),
        _place(contents, inputs, edge.tensors),
    )


def _edge_json(source: str, output_place: str, input_place: str) -> Json:
    return {
        "sourceNodeId": source,
        "sourceNodeOutputId": output_place,
        "targetNodeInputId": input_place,
    }


def _place(contents: Contents, held: Sequence[int], tensors: Iterable[int]) -> str:
    """Which of the held tensors the first of these is, itself or as a view of it."""
    known = contents.trace.recorded.tensors
    for tensor in tensors:
        if tensor in held:
            return str(held.index(tensor))
        storages = [known[index].storage for index in held]
        if known[tensor].storage in storages:
            return str(storages.index(known[tensor].storage))
    return "0"


def _namespace(path: str) -> str:
    """`model/layers.0/self_attn`: the boxes around a node; a slash in a name becomes `_`."""
    names, outer = [], ""
    for box in boxes(path):
        names.append(box.removeprefix(f"{outer}." if outer else "").replace("/", "_"))
        outer = box
    return "/".join(names)


def _attributes(values: dict[str, object]) -> list[Json]:
    return [{"key": key, "value": str(v)} for key, v in values.items() if v is not None]


def _metadata(tensors: Iterable[str]) -> list[Json]:
    """The shape and dtype of each tensor; Model Explorer shows `tensor_shape` on its edges."""
    return [
        {"id": str(number), "attrs": [{"key": "tensor_shape", "value": tensor}]}
        for number, tensor in enumerate(tensors)
    ]
