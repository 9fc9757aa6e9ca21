"""Every line of arithmetic in `explain` is correct."""

import re

import pytest

import llmsim_magic as llmsim
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.views.explain import explain_operator
from tests.helpers import small_models

MODELS = ["Qwen/Qwen3-0.6B", "gpt2", "google/vit-base-patch16-224", "mistralai/Mixtral-8x7B-v0.1"]
PRODUCT = re.compile(r"((?:[\d,]+ × )+(?:[\d,]+|\(\d+ \+ \d+\))) = ([\d,]+)")


def _number(text: str) -> int:
    return sum(int(term) for term in text.strip("()").replace(",", "").split(" + "))


@pytest.mark.parametrize("name", MODELS)
def test_every_product_multiplies_out_and_the_flops_are_the_tables(name: str) -> None:
    report = llmsim.trace(name)
    checked = 0
    first_layer = [p for p in report.ops["path"].unique() if ".1." not in p][:40]
    for path in first_layer:
        text = report.explain(path)
        for factors, result in PRODUCT.findall(text):
            product = 1
            for factor in factors.split(" × "):
                product *= _number(factor)
            assert product == _number(result), (path, factors)
            checked += 1
    assert checked > 40


def test_a_linear_layer_reads_as_on_a_whiteboard() -> None:
    report = llmsim.trace("Qwen/Qwen3-0.6B")
    text = report.explain("model.layers.0.mlp.up_proj")
    assert "2 × 128 × 1024 × 3072 = 805,306,368" in text
    assert "3,145,728 × 2 = 6,291,456" in text
    assert "waits for: 15 (model.layers.0.post_attention_layernorm)" in text


def test_a_containers_flops_are_the_sum_of_its_operators() -> None:
    report = llmsim.trace("Qwen/Qwen3-0.6B")
    inside = report.ops[report.ops["path"].str.startswith("model.layers.0.mlp")]
    assert f"FLOPs: {inside['flops'].sum():,}" in report.explain("model.layers.0.mlp")
    assert f"FLOPs: {report.summary.loc['flops', 'value']:,}" in report.explain("")


def test_a_module_that_never_runs_says_so() -> None:
    report = llmsim.trace("google-t5/t5-small", phase="decode", context=4)
    assert "never called" in report.explain("encoder.block.0.layer.0.SelfAttention.q")


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("model.layers.0.mlp.up_prj", "model.layers.0.mlp.up_proj"),
        ("model.layers.0.mlp.up", "model.layers.0.mlp.up_proj"),
        ("mlp.up", "model.layers.0.mlp.up_proj"),
        ("…mlp.up", "model.layers.0.mlp.up_proj"),
        ("layers.3.mlp.up_proj", "model.layers.3.mlp.up_proj"),
        ("self_attn.v", "model.layers.0.self_attn.v_proj"),
        ("Model.Norm", "model.norm"),
        ("layers.2", "model.layers.2"),
    ],
)
def test_an_unknown_path_names_the_nearest_by_its_end(given: str, nearest: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        llmsim.trace("Qwen/Qwen3-0.6B").explain(given)
    assert re.search(rf"; try {re.escape(nearest)}(,|$)", str(caught.value))


@pytest.mark.parametrize("name", ["qwen3", "mixtral", "gemma2", "whisper"])
def test_a_replayed_layer_is_explained_as_one_that_ran(name: str) -> None:
    replayed, ran = (
        llmsim.trace(getattr(small_models, name)(), phase="decode", context=7, replay=replay).trace
        for replay in (True, False)
    )
    for order in range(len(ran.operators)):
        assert explain_operator(replayed, order) == explain_operator(ran, order)
