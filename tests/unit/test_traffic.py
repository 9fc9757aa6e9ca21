"""Bytes of weights, activations and cache per operator, module, layer and model."""

import pandas as pd
import pytest

import llmsim_magic as llmsim
from llmsim_magic.analyses.cost.operator_costs import totals
from llmsim_magic.analyses.cost.traffic import traffic
from llmsim_magic.simulate.report import Report
from llmsim_magic.views.tables.modules import layers_table
from tests.helpers import small_models

SUMMED = (
    "flops",
    "elementwise_ops",
    "causal_skippable_flops",
    "bytes_read",
    "bytes_written",
    "bytes_weights",
    "bytes_activations",
    "bytes_cache",
)


def report(name: str, phase: str) -> Report:
    return llmsim.trace(
        small_models.CONFIGS[name](), phase=phase, batch=2, context=small_models.CONTEXT
    )


@pytest.mark.parametrize(("name", "phase"), small_models.WORKLOADS)
def test_weights_activations_and_cache_are_all_that_moves(name: str, phase: str) -> None:
    ops = report(name, phase).ops
    moved = ops.bytes_read + ops.bytes_written
    assert (ops.bytes_weights + ops.bytes_activations + ops.bytes_cache == moved).all()


@pytest.mark.parametrize(("name", "phase"), small_models.WORKLOADS)
def test_modules_and_layers_sum_to_the_operators(name: str, phase: str) -> None:
    found = report(name, phase)
    layers = layers_table(found.trace)
    for column in SUMMED:
        total = found.ops[column].sum()
        assert layers[column].sum() == total, column
        assert found.modules.loc["", column] == total, column
        if column != "flops":
            assert getattr(totals(found.trace), column) == total, column
    assert layers.params.sum() == totals(found.trace).parameters
    assert layers.operators.sum() == len(found.ops)


def test_a_linear_layer_reads_its_weight_once_and_does_two_flops_for_each_element() -> None:
    found = report("llama", "decode")
    linear = found.ops[found.ops.op == "Linear"].iloc[0]
    outputs, inputs = linear.weight_shapes[0]
    assert linear.bytes_weights == 4 * outputs * inputs
    assert linear.bytes_activations == 4 * 2 * (inputs + outputs)
    assert linear.bytes_cache == 0
    moved = linear.bytes_weights + linear.bytes_activations
    assert linear.arithmetic_intensity == 2 * 2 * outputs * inputs / moved


def test_the_intensity_of_a_linear_layer_tends_to_the_batch() -> None:
    """2 · B · k · n FLOPs over 2 · k · n bytes of bfloat16 weights: B, less what B rows move."""
    ops = llmsim.trace("Qwen/Qwen3-0.6B", phase="decode", batch=4, context=16).ops
    head = ops.iloc[-1]
    assert 3.8 < head.arithmetic_intensity < 4


def test_attention_in_decode_reads_the_cache() -> None:
    found = report("llama", "decode")
    attention = found.ops[found.ops.op == "scaled_dot_product_attention"].iloc[0]
    key = attention.input_shapes[1]
    assert attention.bytes_weights == 0
    # Both keys and values, whole: [batch, kv heads, context + 1, head], of four bytes.
    _, _, length, width = key
    assert attention.bytes_cache == 2 * 2 * 2 * length * width * 4


def test_an_encoder_moves_no_cache_and_a_recurrent_one_its_state() -> None:
    assert report("bert", "prefill").ops.bytes_cache.sum() == 0
    assert report("mamba", "decode").ops.bytes_cache.sum() > 0


def test_nothing_is_divided_by_nothing() -> None:
    ops = report("bert", "prefill").ops
    idle = ops[(ops.bytes_read == 0) & (ops.bytes_written == 0)]
    assert len(idle)
    assert idle.arithmetic_intensity.isna().all()
    assert ops.arithmetic_intensity.dtype == pd.Float64Dtype()


def test_what_is_moved_is_moved_for_a_reason() -> None:
    """Every access has the role of the storage it goes to."""
    record = report("mixtral", "decode").trace.recorded
    for moved in traffic(record):
        for access in (*moved.reads, *moved.writes):
            assert access.role == record.storages[record.tensors[access.tensor].storage].role
