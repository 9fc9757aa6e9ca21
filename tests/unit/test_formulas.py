"""Formulas in batch and context equal the traces, and are NA where none is exact."""

import random
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from typing import Any

import pandas as pd
import pytest
import sympy
import transformers

import llmsim_magic as llmsim
from llmsim_magic.analyses.cost.operator_costs import totals
from llmsim_magic.analyses.formulas.polynomials import Grid, Polynomial, formula
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.simulate.sweeps.formulas import sweep_formulas
from llmsim_magic.views.tables.formulas import polynomial_text
from tests.helpers import small_models

QUANTITIES = ["flops", "elementwise_ops", "bytes_read", "bytes_written"]
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "vocab_size": 100}  # fmt: skip
B, S, C = sympy.symbols("B S C", positive=True, integer=True)


def with_positions(config: Any) -> Any:
    """The same with positions for long contexts."""
    config.max_position_embeddings = 100_000
    return config


def test_a_polynomial_is_written_as_sympy_writes_it() -> None:
    chosen = random.Random(0)
    factors = [Fraction(top, bottom) for top in (0, 1, -1, 2, -7, 4096) for bottom in (1, 2, 3)]
    for batches, contexts in product((1, 2, 3), (1, 2, 3, 4)):
        for _ in range(40):
            rows = [[chosen.choice(factors) for _ in range(contexts)] for _ in range(batches)]
            polynomial = Polynomial(tuple(map(tuple, rows)))
            text = str(polynomial.to_sympy(B, S))
            expected = text.replace("**2", "²").replace("**3", "³").replace("*", "·")
            assert polynomial_text(polynomial, "S") == expected


@pytest.mark.parametrize(
    "name",
    [
        "qwen3",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("mixtral", "llama", "mistral", "gemma2", "bert", "gpt2")
        ),
    ],
)
@pytest.mark.parametrize(("phase", "context"), [("prefill", "S"), ("decode", "C")])
def test_formulas_give_what_traces_give(name: str, phase: str, context: str) -> None:
    if (name, phase) == ("bert", "decode"):
        pytest.skip("no decode")
    config = getattr(small_models, name)()
    if getattr(config, "sliding_window", None):
        config.sliding_window = 300  # as those of real models, beyond a few tokens
    found = llmsim.trace(config, phase=phase, context=5).symbolic
    compared = 0
    for batch, length in ((1, 1), (7, 20), (3, 31)):
        real = by_call(llmsim.trace(config, phase=phase, batch=batch, context=length).ops)
        given = by_call(found.evaluate(B=batch, **{context: length}))
        for call, column in product(real.index, ("input_shapes", "output_shapes", *QUANTITIES)):
            if call in given.index and not missing(given.loc[call, column]):
                compared += 1
                assert given.loc[call, column] == real.loc[call, column], (call, column, length)
    assert compared > 0.9 * 3 * 6 * len(found.ops)


def by_call(ops: pd.DataFrame) -> pd.DataFrame:
    """Rows by path, operator and which of its calls there."""
    call = ops.groupby(["path", "op"]).cumcount()
    return ops.set_index([ops["path"], ops["op"], call], drop=False)


def missing(value: Any) -> bool:
    """Whether a cell, or any size in it, has no formula."""
    if isinstance(value, list):
        return any(missing(size) for shape in value for size in shape)
    return bool(pd.isna(value))


def test_shapes_and_work_of_a_decoder_are_what_one_writes_by_hand() -> None:
    prefill = llmsim.trace("Qwen/Qwen3-0.6B").symbolic.ops.set_index("path")
    up = prefill.loc["model.layers.27.mlp.up_proj"]
    assert up["input_shapes"] == [(B, S, 1024)]
    assert up["output_shapes"] == [(B, S, 3072)]
    assert up["flops"] == 2 * 1024 * 3072 * B * S
    decode = llmsim.trace("Qwen/Qwen3-0.6B", phase="decode").symbolic
    update = decode.ops[decode.ops["op"] == "DynamicCache.update"].iloc[-1]
    assert update["output_shapes"] == [(B, 8, C + 1, 128)] * 2
    attention = decode.ops[decode.ops["op"] == "scaled_dot_product_attention"].iloc[0]
    assert attention["flops"] == sympy.expand(2 * 16 * B * (C + 1) * 256)
    cache = decode.totals.loc["cache_bytes", "formula"]
    assert cache == sympy.expand(28 * 2 * 8 * 128 * 2 * B * (C + 1))


@pytest.mark.slow
def test_the_cache_of_a_sliding_window_stops_growing() -> None:
    config = small_models.mistral()
    config.sliding_window = 300
    decode = llmsim.trace(with_positions(config), phase="decode").symbolic
    per_token = 2 * 2 * config.num_key_value_heads * config.head_dim * 4
    size = decode.totals.loc["cache_bytes", "formula"]
    for batch, context in ((1, 1), (2, 298), (2, 299), (2, 300), (3, 5000)):
        kept = min(context + 1, 299)
        assert size.subs({B: batch, C: context}) == per_token * batch * kept
    sizes = {str(size) for shapes in decode.ops["output_shapes"] for s in shapes for size in s}
    assert any("Min" in size for size in sizes)


@pytest.mark.parametrize("batch", [9, 33, 64, 200])
@pytest.mark.slow
def test_more_tokens_than_experts_never_give_a_wrong_formula(batch: int) -> None:
    config = small_models.mixtral()
    config.num_local_experts = 64
    found = llmsim.trace(config, phase="decode", context=20).symbolic
    real = llmsim.trace(config, phase="decode", batch=batch, context=20).ops
    given = found.evaluate(B=batch, C=20)["bytes_read"]
    known = given.notna()
    assert known.sum() > len(real) / 2
    assert given[known].tolist() == real["bytes_read"][known].tolist()


@pytest.mark.slow
def test_nothing_is_evaluated_beyond_what_was_checked() -> None:
    found = llmsim.trace(small_models.gpt2(), context=5).symbolic
    with pytest.raises(InvalidValue, match="S=33 is beyond 32"):
        found.evaluate(B=1, S=33)


@pytest.mark.slow
def test_a_sweep_beyond_the_window_has_no_formula_that_is_wrong_below_it() -> None:
    config = small_models.mistral()
    config.sliding_window = 64
    shapes = llmsim.sweep(config, batch=[1, 2], context=[128, 256], phase="decode").shapes
    row = shapes[shapes["op"] == "DynamicCache.update"].iloc[0]
    assert pd.isna(row["symbolic"]) or "min(" in row["symbolic"]


def test_a_regime_that_is_no_polynomial_has_no_formula() -> None:
    values = {(b, x): b * (-(-x // 64) * 64) for b in (1, 2, 3) for x in (6, 9, 13, 17, 100, 4000)}
    assert formula(values, Grid((2, 3), (6, 9, 13))) is None


def test_a_second_regime_is_the_lesser_or_the_greater_of_two() -> None:
    near, far = Grid((2, 3), (6, 9, 13)), Grid((2, 3), (4000, 5000, 6000))
    points = (*near.points, *far.points, (2, 299), (2, 300), (2, 301))
    lesser = formula({(b, x): b * min(x, 300) for b, x in points}, near, far)
    assert lesser is not None
    assert lesser.to_sympy(B, C) == sympy.Min(B * C, 300 * B)
    greater = formula({(b, x): b * max(x, 300) for b, x in points}, near, far)
    assert greater is not None
    assert greater.to_sympy(B, C) == sympy.Max(B * C, 300 * B)


def test_the_wide_table_of_a_sweep_has_the_formulas() -> None:
    shapes = llmsim.sweep(small_models.qwen3(), batch=[1, 3], context=[2, 9]).shapes
    row = shapes[shapes["path"] == "model.layers.1.mlp.up_proj"].iloc[0]
    assert row["symbolic"] == "prefill [B, S, 64] → [B, S, 96]; decode [B, 1, 64] → [B, 1, 96]"
    assert list(shapes.columns)[-2:] == ["symbolic", "changes"]


def test_a_sweep_of_one_workload_has_them_too() -> None:
    shapes = llmsim.sweep(small_models.qwen3(), batch=2, context=9, phase="decode").shapes
    row = shapes[shapes["path"] == "model.layers.1.mlp.up_proj"].iloc[0]
    assert row["symbolic"] == "[B, 1, 64] → [B, 1, 96]"


def big_bird() -> Any:
    """Attention in blocks from 113 tokens on, the longest that it reads is 400."""
    return transformers.BigBirdConfig(
        **SIZES, max_position_embeddings=400, block_size=16, num_random_blocks=1,
        architectures=["BigBirdForMaskedLM"],
    )  # fmt: skip


def reformer() -> Any:
    """Attention in chunks, over and over, and of all tokens where they are few."""
    return transformers.ReformerConfig(
        hidden_size=64, feed_forward_size=96, attention_head_size=32, num_attention_heads=2,
        axial_pos_shape=[16, 16], axial_pos_embds_dim=[32, 32], max_position_embeddings=256,
        attn_layers=["local", "lsh"], lsh_attn_chunk_length=16, local_attn_chunk_length=16,
        vocab_size=100, num_buckets=4, architectures=["ReformerForMaskedLM"],
    )  # fmt: skip


@pytest.mark.parametrize("config", [pytest.param(big_bird, marks=pytest.mark.slow), reformer])
def test_formulas_hold_at_lengths_that_a_model_treats_otherwise(config: Callable[[], Any]) -> None:
    """They once held at 13 tokens and at the longest alone."""
    report = llmsim.trace(config(), batch=2, context=16)
    assert report.tracer is not None
    of_shapes = sweep_formulas(report.tracer, [report.trace])["prefill"]
    sums = report.symbolic.totals["formula"].dropna()
    for context in (64, 112, 113, 160, 256):
        trace = llmsim.trace(config(), batch=2, context=context).trace
        real = totals(trace)
        for name, found in sums.items():
            assert found.subs({B: 2, S: context}) == getattr(real, str(name)), (name, context)
        by_place = {(o.path, o.op): o for o in reversed(trace.unrolled.operators)}
        for each in of_shapes:
            operator = by_place.get(each.key[:2])
            if operator is None or each.outputs is None or each.key[2]:
                continue
            shapes = trace.unrolled.shapes(operator.outputs)
            for shape, formulas in zip(shapes, each.outputs, strict=False):
                for size, known in zip(shape, formulas, strict=False):
                    assert known is None or known.at((2, context)) == size, (each.key, context)


@pytest.mark.parametrize("phase", [pytest.param("prefill", marks=pytest.mark.slow), "decode"])
@pytest.mark.slow
def test_a_scan_over_tokens_is_checked_where_it_is_soon_read(phase: str) -> None:
    """Mamba's, where its kernels are not installed; it was traced at 56,003 tokens before."""
    report = llmsim.trace(small_models.mamba(), context=5, phase=phase)
    longest = max(context for _, context in report.symbolic.points)
    assert 13 < longest < 1_000
    assert "B" in {str(s) for s in report.symbolic.totals.formula["cache_bytes"].free_symbols}
    assert report.tracer is not None
    assert report.tracer.far(phase).contexts[-1] == longest


@pytest.mark.parametrize(
    "given", [{"B": 1}, {"B": 1, "C": 2}, {"B": 0, "S": 1}, {"B": 1, "S": 2.5}]
)
def test_other_sizes_than_its_own_are_refused(given: dict[str, Any]) -> None:
    found = llmsim.trace(small_models.qwen3(), context=5).symbolic
    with pytest.raises(InvalidValue):
        found.evaluate(**given)


def test_a_module_with_inputs_of_its_own_has_no_formulas() -> None:
    import torch

    report = llmsim.trace(torch.nn.Linear(3, 4), inputs=torch.ones(2, 3))
    with pytest.raises(InvalidValue, match="symbolic"):
        _ = report.symbolic
