"""A training step in tables, graphs, explanations and files."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pandas as pd
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PretrainedConfig

import llmsim_magic as llmsim
from llmsim_magic.simulate.report import Report
from llmsim_magic.views.json_export import json_schema
from llmsim_magic.views.screen.grid import grid
from llmsim_magic.views.tables.column_meanings import missing
from tests.helpers import small_models

BATCH, CONTEXT = 2, 8
STEP: dict[str, Any] = {"phase": "train", "batch": BATCH, "context": CONTEXT}
MODELS = {"gpt2": small_models.gpt2, "llama": small_models.llama, "qwen3": small_models.qwen3}


def _without_dropout(config: PretrainedConfig) -> PretrainedConfig:
    for name in ("attn_pdrop", "resid_pdrop", "embd_pdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    return config


@pytest.fixture(scope="module")
def step() -> Report:
    return llmsim.trace(small_models.qwen3(), **STEP)


@pytest.fixture(scope="module")
def checkpointed() -> Report:
    return llmsim.trace(small_models.qwen3(), checkpointing=True, **STEP)


def _real(config: PretrainedConfig) -> tuple[int, int, int]:
    """Bytes that autograd keeps, and FLOPs of forward and backward, of a step on the CPU."""
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").train()
    tokens = torch.zeros(BATCH, CONTEXT, dtype=torch.long)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda x: x):
        loss = model(input_ids=tokens, labels=tokens.clone(), use_cache=False).loss
        forward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    return sum(map(len, kept.values())), forward, counter.get_total_flops()


@pytest.mark.parametrize("name", MODELS)
def test_saved_bytes_and_flops_are_those_of_a_real_step(name: str) -> None:
    config = _without_dropout(MODELS[name]())
    ops = llmsim.trace(config, attn="eager", **STEP).ops
    flops = ops.groupby("pass")["flops"].sum()
    saved, forward, backward = _real(config)
    assert (flops["forward"], flops["backward"]) == (forward, backward)
    # A real step has its token ids and labels once; a loss keeps scalars by the version of torch.
    assert abs(int(ops["saved_bytes"].sum()) - saved) <= 2 * 8 * BATCH * CONTEXT


def test_columns_of_a_step_are_of_a_step_alone(step: Report) -> None:
    names = list(step.ops)
    place = names.index("source")
    assert names[place + 1 : place + 4] == ["pass", "saved_bytes", "backward_of"]
    assert list(step.kernels)[-1] == "pass"
    other = llmsim.trace(small_models.qwen3(), context=CONTEXT)
    assert not {"pass", "saved_bytes", "backward_of"} & {*other.ops, *other.kernels}


@pytest.mark.parametrize(
    "name", ["ops", "modules", "edges", "kernels", "summary", "topological", "costs", "layers"]
)
def test_every_column_of_a_step_has_a_meaning(step: Report, name: str) -> None:
    table = getattr(step, name)
    named = table.reset_index() if table.index.name else table
    assert missing(name, map(str, named)) == []


def test_rows_of_backward_name_the_operator_whose_gradients_they_compute(step: Report) -> None:
    ops = step.ops
    backward = ops[ops["pass"] == "backward"]
    of = ops.loc[backward["backward_of"].astype(int)]
    assert set(of["pass"]) == {"forward"}
    same = [
        (own.path, own.op) == (other.path, other.op)
        for own, other in zip(backward.itertuples(), of.itertuples(), strict=True)
    ]
    views = {op for op, is_same in zip(backward["op"], same, strict=True) if not is_same}
    assert views <= {"view", "transpose"}  # which are no operators of forward
    others = ops[ops["pass"] != "backward"]
    assert others["backward_of"].isna().all()


def test_kernels_have_the_pass_of_their_operator(checkpointed: Report) -> None:
    kernels, ops = checkpointed.kernels, checkpointed.ops
    owned = kernels[kernels["op_order"].notna()]
    assert list(owned["pass"]) == list(ops.loc[owned["op_order"].astype(int), "pass"])
    assert kernels[kernels["op_order"].isna()]["pass"].isna().all()


def test_edges_go_through_saved_tensors_and_gradients(step: Report) -> None:
    ops, edges = step.ops, step.edges
    passes = ops["pass"]
    through = edges["through"]
    kept = edges[(through == "saved").fillna(value=False)]
    assert set(passes[kept["source"]]) == {"forward"}
    assert set(passes[kept["target"]]) == {"backward"}
    across = edges[
        (passes[edges["source"]].to_numpy() == "forward")
        & (passes[edges["target"]].to_numpy() == "backward")
    ]
    assert len(across) == len(kept)
    path = "model.layers.1.mlp.down_proj"
    forward, backward = ops.index[(ops["path"] == path)]
    reads = set(edges[edges["target"] == backward]["source"])
    assert reads >= set(ops.loc[forward, "depends_on"])  # its input, which autograd kept
    assert {passes[source] for source in reads} == {"forward", "backward"}
    updates = edges[passes[edges["target"]].to_numpy() == "optimizer"]
    gradients = {name for name in updates["through"].dropna() if name.endswith(".grad")}
    trained = {p.name for p in step.trace.parameters if p.trainable and p.tied_to is None}
    assert gradients == {f"{name}.grad" for name in trained if name != "lm_head.weight"}


def test_recomputed_operators_are_named_and_keep_what_is_not_known(checkpointed: Report) -> None:
    ops = checkpointed.ops
    recomputed = ops[ops["pass"] == "recompute"]
    assert len(recomputed)
    assert recomputed["saved_bytes"].isna().all()
    whole = llmsim.trace(small_models.qwen3(), **STEP).ops
    assert ops["saved_bytes"].sum() < whole["saved_bytes"].sum() / 2
    texts = set(checkpointed.edges["target_operator"])
    assert any(text.startswith("recompute of model.layers.0.") for text in texts)


def test_what_a_layer_itself_recomputes_is_no_part_of_backward(checkpointed: Report) -> None:
    ops = checkpointed.ops[checkpointed.ops["path"] == "model.layers.1"]
    adds = ops[ops["op"] == "add"]["pass"].tolist()
    assert adds.count("forward") == 2
    assert adds.count("recompute") == 1  # the first: a checkpoint stops before the last kernels


def test_the_summary_sums_the_passes(checkpointed: Report) -> None:
    rows = checkpointed.summary["value"]
    passes = ("forward", "recompute", "backward", "optimizer")
    for what in ("flops", "operators"):
        assert sum(rows[f"{what}_{name}"] for name in passes) == rows[what]
    assert rows["saved_bytes"] == checkpointed.ops["saved_bytes"].sum()
    assert rows["optimizer"] == "adamw"
    assert "checkpointing" in checkpointed.summary["means"]["optimizer"]


def test_a_screen_shows_each_pass_with_its_layers_as_one_block(checkpointed: Report) -> None:
    shown = grid(checkpointed.ops)
    labels = [line.label for line in shown.lines]
    heads = [place for place, label in enumerate(labels) if not label.startswith(" ")]
    assert [labels[place] for place in heads] == ["forward", "recompute", "backward", "optimizer"]
    blocks = Counter(label.strip() for label in labels if "×2" in label)
    assert blocks == {"model.layers.0–1 ×2": 3}
    flops = next(column for column in shown.columns if column.name == "flops")
    by_pass = checkpointed.ops.groupby("pass")["flops"].sum()
    assert flops.of_layer.keys() >= set(heads[:3])
    assert flops.exact is not None
    assert flops.exact[heads[0]] == f"{by_pass['forward']:,}"


def test_text_of_a_step_names_what_waits_for_what(step: Report) -> None:
    waits = step.topological["waits_for_operators"]
    backward = step.ops.index[step.ops["pass"] == "backward"]
    assert any("backward of model.layers.1.mlp" in waits[order] for order in backward)


@pytest.mark.parametrize("level", ["module", "operator", "kernel"])
def test_graphs_have_a_box_for_each_pass_and_fold_its_layers(
    checkpointed: Report, level: Any
) -> None:
    dot = checkpointed.dependency_graph(level=level).dot
    for name in ("forward", "recompute", "backward"):
        assert f"{name} · Qwen3ForCausalLM" in dot
    assert dot.count("layers.0-1 ×2") >= 3
    assert "optimizer" in dot
    assert '" saved "' in dot
    assert '" gradient "' in dot
    assert checkpointed.topological_graph(level=level).dot.count("layers.0-1 ×2") >= 3


def test_layers_of_every_pass_unfold_together(step: Report) -> None:
    dot = step.dependency_graph(layers="all").dot
    assert dot.count("layers.1 · Qwen3DecoderLayer") == 2
    assert "×2" not in dot


def test_an_interactive_graph_has_every_operator_that_runs_a_kernel_once(step: Report) -> None:
    graph = step.dependency_graph()
    drawn = {int(n["id"][1:]) for n in _nodes(graph.json()) if n["id"].startswith("n")}
    kernels = step.kernels
    assert drawn == set(kernels[~kernels["is_view"]]["op_order"].dropna().astype(int))


def _nodes(data: bytes) -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = json.loads(data)["graphs"][0]["nodes"]
    return nodes


def test_an_explanation_sums_a_module_by_pass(step: Report) -> None:
    ops, path = step.ops, "model.layers.1.mlp"
    inside = ops[(ops["path"] == path) | ops["path"].str.startswith(f"{path}.")]
    text = str(step.explain(path))
    for name in ("forward", "backward"):
        total = inside[inside["pass"] == name]["flops"].sum()
        assert f"in {name}: FLOPs: {total:,}" in text
    forward, backward = ops.index[ops["path"] == f"{path}.up_proj"]
    text = str(step.explain(f"{path}.up_proj"))
    assert f"operator {backward} in backward, of operator {forward}" in text
    assert f"saved for backward: {ops.loc[forward, 'saved_bytes']:,} bytes" not in text  # shared
    rows, wide, narrow = BATCH * CONTEXT, 96, 64
    assert f"2 × {rows} × {wide} × {narrow} = " in text


@pytest.mark.slow
def test_formulas_of_a_step_hold_at_other_sizes(step: Report) -> None:
    shapes = step.shapes
    assert list(shapes)[:4] == ["path", "op", "pass", "call"]
    evaluated = step.symbolic.evaluate(B=3, S=6)
    real = llmsim.trace(small_models.qwen3(), phase="train", batch=3, context=6).ops
    for name in ("input_shapes", "output_shapes", "flops"):
        known = evaluated[name].map(_is_known) & real[name].notna()
        assert known.mean() > 0.7
        assert evaluated[name][known].tolist() == real[name][known].tolist()


def _is_known(value: Any) -> bool:
    """Whether a formula holds for a number, or for every size of some shapes."""
    if isinstance(value, list):
        return all(size is not pd.NA for shape in value for size in shape)
    return bool(pd.notna(value))


def test_a_grid_of_steps_has_a_row_and_the_passes_of_each() -> None:
    sweep = llmsim.sweep(small_models.qwen3(), phase="train", batch=[1, 2], context=[4, 8])
    assert sweep.totals["phase"].unique().tolist() == ["train"]
    assert len(sweep.totals) == 4
    passes = sweep.ops.groupby(["batch", "context"])["pass"].unique()
    assert all(list(each) == ["forward", "backward", "optimizer"] for each in passes)
    assert "train 2×8" in sweep.shapes
    assert "backward" in repr(sweep)


def test_two_models_are_compared_in_training(tmp_path: Path) -> None:
    from llmsim_magic.__main__ import main

    folders = []
    for name in ("llama", "qwen3"):
        MODELS[name]().save_pretrained(tmp_path / name)
        folders.append(str(tmp_path / name))
    line = [folders[0], "--compare", folders[1], "--phase", "train", "--context", "8"]
    assert main([*line, "--csv", str(tmp_path / "out")]) == 0
    (found,) = (tmp_path / "out").glob("*comparison*.csv")
    table = pd.read_csv(found, index_col="quantity")
    assert float(table["ratio"]["flops"]) > 0


def test_files_and_pages_of_a_step(step: Report, tmp_path: Path) -> None:
    from llmsim_magic.__main__ import main

    small_models.qwen3().save_pretrained(tmp_path / "m")
    line = [str(tmp_path / "m"), "--phase", "train", "--batch", "2", "--context", "8"]
    line += ["--ops", "--deps", "--topological", "--costs", "--memory", "--summary"]
    line += ["--checkpointing", "--optimizer", "sgd", "--explain", "model.layers.0"]
    assert main([*line, "--csv", str(tmp_path / "out"), "--json", str(tmp_path / "r.json")]) == 0
    (found,) = (tmp_path / "out").glob("*.ops.csv")
    assert set(pd.read_csv(found)["pass"]) == {"forward", "recompute", "backward", "optimizer"}
    document = json.loads((tmp_path / "r.json").read_text())
    jsonschema.validate(document, json_schema(), jsonschema.Draft202012Validator)
    assert document["training"]["optimizer"] == "sgd"
    assert document["training"]["checkpointing"] is True
    assert document["workloads"][0] == {"phase": "train", "batch": 2, "context": 8}
    assert json.loads(llmsim.trace(small_models.qwen3(), context=4).json())["training"] is None
    step.to_html(tmp_path / "page.html")
    assert "backward" in (tmp_path / "page.html").read_text()


def test_a_title_says_which_options_of_a_step_are_not_the_defaults(
    step: Report, checkpointed: Report
) -> None:
    """Two pages of one model and workload can be told apart."""
    assert step.title.endswith(f": train, batch {BATCH} × context {CONTEXT}")
    assert checkpointed.title == f"{step.title}, checkpointing"
