"""A reduced config keeps the structure of the full one."""

from typing import Any

import pytest

from tests.helpers.reduced_configs import narrower, shallower


@pytest.mark.parametrize(
    ("keys", "cut"),
    [
        ({"num_hidden_layers": 28}, {"num_hidden_layers": 2}),
        (
            {"num_hidden_layers": 8, "layer_types": ["linear", "linear", "linear", "full"] * 2},
            {"num_hidden_layers": 4, "layer_types": ["linear", "linear", "linear", "full"]},
        ),
        (
            {"n_layer": 6, "hybrid_pattern": "MM*MM*", "mlp_only_layers": []},
            {"n_layer": 3, "hybrid_pattern": "MM*", "mlp_only_layers": []},
        ),
        (
            {"num_hidden_layers": 61, "first_k_dense_replace": 3},
            {"num_hidden_layers": 2, "first_k_dense_replace": 1},
        ),
        ({"text_config": {"depth": 9}}, {"text_config": {"depth": 2}}),
    ],
)
def test_as_few_layers_remain_as_hold_one_of_every_kind(
    keys: dict[str, Any], cut: dict[str, Any]
) -> None:
    assert shallower(keys) == cut


def test_widths_and_experts_shrink_and_what_sizes_the_input_stays() -> None:
    widths = {"hidden_size": 64, "d_kv": 16, "conv_dim": [32, 32], "num_experts": 8, "top_k": 4}
    assert narrower(widths, 8) == {
        "hidden_size": 8,
        "d_kv": 2,
        "conv_dim": [4, 4],
        "num_experts": 4,
        "top_k": 2,
    }
    fixed = {"num_channels": 16, "image_size": 224, "patch_size": 16, "vocab_size": 64}
    assert narrower(fixed, 8) == fixed
