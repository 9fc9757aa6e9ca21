"""The data of the interactive graph, and the files that other viewers open."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import llmsim_magic as llmsim
from llmsim_magic.analyses.allocations.tensor_lifetimes import alive_by_operator, peak_activations
from llmsim_magic.simulate.report import Report
from tests.helpers import small_models


@pytest.fixture(scope="module")
def report() -> Report:
    return llmsim.trace(small_models.qwen3(), context=small_models.CONTEXT)


@pytest.fixture(scope="module")
def data(report: Report) -> dict[str, Any]:
    return json.loads(report.dependency_graph().data)


@pytest.fixture(scope="module")
def exported(report: Report, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = report.dependency_graph().save(tmp_path_factory.mktemp("json") / "graph.json")
    return json.loads(file.read_text("utf-8"))


def test_costs_of_all_layers_are_those_of_the_table(report: Report, data: dict[str, Any]) -> None:
    count = {node["order"]: 1 for node in data["nodes"]}
    for group in data["groups"]:
        for order in group["members"][0]:
            count[order] = len(group["members"])
    for name, column in (("flops", "flops"), ("read", "bytes_read"), ("written", "bytes_written")):
        total = sum(count[node["order"]] * node["values"][name] for node in data["nodes"])
        assert total == report.ops[column].sum()


def test_edges_and_members_name_operators(data: dict[str, Any], report: Report) -> None:
    orders = {node["order"] for node in data["nodes"]}
    orders |= {order for group in data["groups"] for row in group["members"] for order in row}
    edges = report.edges
    table = set(zip(edges["source"], edges["target"], strict=True))
    drawn = {(source, target) for source, target, _, _ in data["edges"]}
    assert drawn == {(a, b) for a, b in table if a in orders and b in orders}
    assert all(number < len(data["tensors"]) for *_, number in data["edges"])


def test_layers_of_a_group_do_the_same_work(data: dict[str, Any], report: Report) -> None:
    (group,) = data["groups"]
    first, *others = [report.ops.loc[row] for row in group["members"]]
    for other in others:
        for column in ("op", "flops", "bytes_read", "input_shapes"):
            assert other[column].tolist() == first[column].tolist()


def test_layers_that_are_asked_for_begin_separate(report: Report) -> None:
    graph = report.dependency_graph(layers=(1,))
    assert json.loads(graph.data)["separate"] == ["model.layers.1"]
    assert json.loads(report.dependency_graph(layers="all").data)["separate"] == [
        f"model.layers.{index}" for index in range(len(report.layers) - 1)
    ]


def test_the_data_of_a_hostile_name_stays_in_its_attribute(report: Report) -> None:
    page = report.dependency_graph().picture()
    attribute = re.search(r"data-graph='([^']*)'", page)
    assert attribute is not None
    assert "<" not in attribute[1]


def test_memory_in_use_peaks_at_the_peak(report: Report) -> None:
    alive, peak = alive_by_operator(report.trace), peak_activations(report.trace)
    assert max(alive) == peak.nbytes
    assert peak.operator is not None
    assert alive[peak.operator] == peak.nbytes


def test_times_are_those_of_the_table() -> None:
    report = llmsim.trace(small_models.qwen3(), context=small_models.CONTEXT, hardware="H100")
    times = report.times[report.times["launch"] == report.times["launch"].iloc[0]]["time_s"]
    for node in json.loads(report.dependency_graph().data)["nodes"]:
        assert node["values"]["time"] == pytest.approx(times.iloc[node["order"]])
    assert all(
        node["values"]["time"] is None
        for node in json.loads(report.dependency_graph(level="kernel").data)["nodes"]
    )


# The fields of graph_builder.py of Model Explorer: those without a default must be there.
FIELDS = {
    "id": str,
    "label": str,
    "namespace": str,
    "attrs": list,
    "incomingEdges": list,
    "inputsMetadata": list,
    "outputsMetadata": list,
}


def test_the_json_is_as_model_explorer_documents_it(exported: dict[str, Any]) -> None:
    assert set(exported) == {"label", "graphs"}
    (graph,) = exported["graphs"]
    assert set(graph) == {"id", "nodes", "groupNodeAttributes"}
    ids = [node["id"] for node in graph["nodes"]]
    assert len(ids) == len(set(ids))
    for node in graph["nodes"]:
        assert {name: type(value) for name, value in node.items()} == FIELDS
        for pair in node["attrs"]:
            assert {name: type(value) for name, value in pair.items()} == {"key": str, "value": str}
        for each in (*node["inputsMetadata"], *node["outputsMetadata"]):
            assert set(each) == {"id", "attrs"}
            assert each["id"].isdigit()
        for edge in node["incomingEdges"]:
            assert set(edge) == {"sourceNodeId", "sourceNodeOutputId", "targetNodeInputId"}
            assert edge["sourceNodeId"] in ids
    for attributes in graph["groupNodeAttributes"].values():
        assert all(isinstance(value, str) for value in attributes.values())


def test_the_json_has_every_operator_and_edge(exported: dict[str, Any], report: Report) -> None:
    nodes = {node["id"]: node for node in exported["graphs"][0]["nodes"]}
    ends = {
        (int(edge["sourceNodeId"][1:]), int(name[1:]))
        for name, node in nodes.items()
        for edge in node["incomingEdges"]
        if not edge["sourceNodeId"].startswith("given")
    }
    drawn = {int(name[1:]) for name in nodes if re.fullmatch(r"n\d+", name)}
    table = zip(report.edges["source"], report.edges["target"], strict=True)
    assert ends == {(a, b) for a, b in table if a in drawn and b in drawn}
    last = max(path for path in report.ops["path"] if path.endswith("q_proj"))
    (q_proj,) = (n for n in nodes.values() if {"key": "path", "value": last} in n["attrs"])
    assert q_proj["label"] == "q_proj"
    assert q_proj["namespace"] == last.removesuffix(".q_proj").replace(
        ".self_attn", "/self_attn"
    ).replace("model.", "model/")
    assert {"key": "type", "value": "Linear"} in q_proj["attrs"]
    assert nodes["given0"]["label"] == "input_ids"


def test_an_edge_names_the_output_and_the_input_that_it_joins(exported: dict[str, Any]) -> None:
    nodes = {node["id"]: node for node in exported["graphs"][0]["nodes"]}
    mul = next(node for node in nodes.values() if node["label"] == "mul")
    joined = {
        edge["targetNodeInputId"]: nodes[edge["sourceNodeId"]]["label"]
        for edge in mul["incomingEdges"]
    }
    assert joined == {"0": "act_fn", "1": "up_proj"}


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG\r\n"), ("pdf", b"%PDF-")])
def test_pictures_need_no_program(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, start: bytes
) -> None:
    monkeypatch.setenv("PATH", "")
    file = report.dependency_graph().save(tmp_path / f"graph.{ending}")
    assert file.read_bytes().startswith(start)
    assert file.stat().st_size > 10_000
