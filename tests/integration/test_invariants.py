"""Totals, sums and orders hold for every model and agree with torch."""

import dataclasses
from collections.abc import Iterator
from functools import cache
from typing import Any

import pandas as pd
import pytest
import torch

import llmsim_magic as llmsim
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.simulate.report import Report
from tests.helpers.cache_names import cache_of
from tests.helpers.real_forward import really_run
from tests.helpers.small_models import BATCH, CONFIGS, CONTEXT, ENCODERS, WORKLOADS, build, inputs

TABLES = ("ops", "modules", "edges", "kernels", "summary")
COLUMNS = {
    "ops": "path op kind layer input_shapes output_shapes dtype params weight_shapes flops "
    "elementwise_ops bytes_read bytes_written depends_on source",
    "modules": "type parent depth children calls params params_total trainable tied_to "
    "weight_shapes input_shapes output_shapes flops order_first",
    "edges": "source target shape dtype through",
    "kernels": "order op_order kernel input_shapes output_shapes dtype flops bytes_read "
    "bytes_written is_view",
}
TIED = ("qwen3", "gpt2", "bert", "distilbert", "t5", "whisper", "gemma2", "opt", "mamba")

every_model = pytest.mark.parametrize("name", CONFIGS)
every_workload = pytest.mark.parametrize(("name", "phase"), WORKLOADS)


@cache
def report(name: str, phase: str = "prefill") -> Report:
    return llmsim.trace(CONFIGS[name](), phase=phase, batch=BATCH, context=CONTEXT)


def total(found: Report, quantity: str) -> Any:
    return found.summary.loc[quantity, "value"]


def is_under(path: str, container: str) -> bool:
    return not container or path == container or path.startswith(f"{container}.")


def first_names(model: torch.nn.Module) -> dict[str, str]:
    """For every name of every parameter, the name under which the model shows it first."""
    first: dict[int, str] = {}
    return {
        name: first.setdefault(id(parameter), name)
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }


@every_model
def test_parameters_are_those_of_the_real_model(name: str) -> None:
    real = list(build(name).parameters())
    found = report(name)

    count = sum(parameter.numel() for parameter in real)
    trainable = sum(parameter.numel() for parameter in real if parameter.requires_grad)
    assert found.modules["params"].sum() == count
    assert found.modules.loc["", "params_total"] == count
    assert total(found, "parameters") == count
    assert found.modules["trainable"].sum() == trainable
    assert total(found, "parameters_trainable") == trainable
    size = sum(parameter.numel() * parameter.element_size() for parameter in real)
    assert total(found, "parameter_bytes") == size


@every_model
def test_params_total_counts_a_subtree_with_what_it_shares_once(name: str) -> None:
    real = {
        path: sum(parameter.numel() for parameter in module.parameters())
        for path, module in build(name).named_modules()
    }
    assert report(name).modules["params_total"].to_dict() == real


@every_model
def test_a_shared_parameter_counts_at_its_first_owner_alone(name: str) -> None:
    model = build(name)
    modules = report(name).modules
    first = first_names(model)
    shared = {label: known for label, known in first.items() if label != known}

    assert bool(shared) == (name in TIED)
    own = dict.fromkeys(modules.index, 0)
    for label, parameter in model.named_parameters():
        own[label.rpartition(".")[0]] += parameter.numel()
    assert modules["params"].to_dict() == own
    tied: dict[str, str] = {}
    for label, known in shared.items():
        tied.setdefault(label.rpartition(".")[0], known)
    assert modules["tied_to"].dropna().to_dict() == tied


@every_workload
def test_flops_are_those_of_torchs_own_counter(name: str, phase: str) -> None:
    model = build(name)
    expected = really_run(model, **inputs(name, phase, model)).flops
    if name == "mixtral":
        expected += experts_flops(model.config, tokens=CONTEXT if phase == "prefill" else 1)

    found = report(name, phase)
    assert total(found, "flops") == expected
    assert found.ops["flops"].sum() == expected
    assert found.kernels["flops"].sum() == expected
    assert found.modules.loc["", "flops"] == expected


def experts_flops(config: Any, tokens: int) -> int:
    """By hand, for torch's counter has no formula for a grouped matmul: 2 · rows · k · n.

    A row is a token at one of the experts chosen for it. It meets two matrices in each layer:
    gate and up in one `[hidden, 2 · intermediate]`, and down `[intermediate, hidden]`.
    """
    rows = BATCH * tokens * config.num_experts_per_tok
    gate_up = 2 * rows * config.hidden_size * (2 * config.intermediate_size)
    down = 2 * rows * config.intermediate_size * config.hidden_size
    return config.num_hidden_layers * (gate_up + down)


@every_workload
def test_cache_bytes_are_those_of_the_cache_of_a_real_run(name: str, phase: str) -> None:
    model = build(name)
    with torch.no_grad():
        output = model(**inputs(name, phase, model))
    held = list(cached_tensors(output))

    assert bool(held) == (name not in ENCODERS)
    expected = sum(tensor.numel() * tensor.element_size() for tensor in held)
    assert total(report(name, phase), "cache_bytes") == expected


def cached_tensors(output: Any) -> Iterator[torch.Tensor]:
    """Keys, values and states in every layer of the cache, counters aside."""
    cache = cache_of(output)
    halves = [cache] if cache is not None else []
    if hasattr(cache, "cross_attention_cache"):
        halves = [cache.self_attention_cache, cache.cross_attention_cache]
    for half in halves:
        for layer in half.layers:
            for held in vars(layer).values():
                for tensor in held.values() if isinstance(held, dict) else [held]:
                    if isinstance(tensor, torch.Tensor) and tensor.dim() > 0:
                        yield tensor


@every_workload
def test_a_trace_comes_back_from_json_as_it_was(name: str, phase: str) -> None:
    found = report(name, phase)
    again = Trace.from_json(found.trace.to_json())

    assert again == found.trace
    for table in TABLES:
        pd.testing.assert_frame_equal(getattr(Report(trace=again), table), getattr(found, table))


def test_the_record_cannot_be_changed() -> None:
    found = report("qwen3", "decode")
    record = found.trace
    parts = [record.model, record.workload]
    for many in (
        record.modules,
        record.parameters,
        record.storages,
        record.tensors,
        record.kernels,
        record.operators,
        record.cache,
    ):
        assert isinstance(many, tuple)
        parts.append(many[0])
    for part in (found, record, *parts):
        names = getattr(part, "__struct_fields__", None) or [
            field.name for field in dataclasses.fields(part)
        ]
        for name in names:
            with pytest.raises(AttributeError):  # of which a frozen dataclass's is one
                setattr(part, name, None)


@every_workload
def test_a_container_costs_what_the_operators_inside_it_cost(name: str, phase: str) -> None:
    found = report(name, phase)
    ops, modules = found.ops, found.modules
    assert set(ops["path"]) <= set(modules.index)

    flops: dict[str, int] = {}
    first: dict[str, int] = {}
    for container in modules.index:
        inside = ops[[is_under(path, container) for path in ops["path"]]]
        flops[container] = inside["flops"].sum()
        if len(inside):
            first[container] = inside.index[0]
    assert modules["flops"].to_dict() == flops
    assert modules["order_first"].dropna().to_dict() == first


@every_model
def test_the_hierarchy_is_told_by_parent_depth_and_children(name: str) -> None:
    modules = report(name).modules
    below = modules["parent"].value_counts()
    for path, row in modules.iterrows():
        parts = str(path).split(".") if path else []
        assert row["depth"] == len(parts)
        assert row["children"] == below.get(path, 0)
        assert row["parent"] == ".".join(parts[:-1]) if parts else pd.isna(row["parent"])


@every_workload
def test_columns_begin_as_the_design_says(name: str, phase: str) -> None:
    found = report(name, phase)
    for table, columns in COLUMNS.items():
        promised = columns.split()
        assert list(getattr(found, table).columns[: len(promised)]) == promised
    assert found.ops.index.name == "order"
    assert found.ops.index.tolist() == list(range(len(found.ops)))
    assert found.modules.index.name == "path"


@every_workload
def test_edges_are_what_depends_on_says(name: str, phase: str) -> None:
    found = report(name, phase)
    edges = set(found.edges[["source", "target"]].itertuples(index=False, name=None))
    waits = found.ops["depends_on"].explode().dropna()
    assert edges == {(source, target) for target, source in waits.items()}


@every_workload
def test_an_operator_waits_only_for_earlier_ones(name: str, phase: str) -> None:
    for order, sources in report(name, phase).ops["depends_on"].items():
        assert sources == sorted(set(sources))
        assert all(0 <= source < order for source in sources)
