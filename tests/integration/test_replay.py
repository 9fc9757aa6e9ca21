"""A replayed layer gives the same record and the same tables as a layer that ran."""

import random
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import llmsim_magic as llmsim
from llmsim_magic.capture.models.live_model_copy import copy_without_weights
from llmsim_magic.capture.models.meta_model import MetaModel
from llmsim_magic.capture.run import run, run_with_inputs
from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import Workload
from llmsim_magic.simulate.models.building import build_model
from llmsim_magic.simulate.models.recipes import model_recipe
from llmsim_magic.simulate.request import Build
from tests.helpers import small_models
from tests.helpers.reduced_configs import candidates
from tests.helpers.replay_comparison import differences
from tests.integration.test_architectures import TYPES

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def weightless(config: Any) -> MetaModel:
    return build_model(model_recipe(config, Build()))


def replayed(model: MetaModel, workload: Workload) -> Trace:
    """The trace with replays, held against the one in which every layer runs."""
    run(model, workload)  # some models remember tables from their first pass
    full, found = (run(model, workload, replay=replay) for replay in (False, True))
    assert not full.replays
    assert list(differences(full, found)) == []
    return found


def test_hooks_that_a_model_hangs_on_its_layers_are_gone_after_a_pass() -> None:
    config = transformers.LlamaConfig(**SIZES, num_hidden_layers=4, output_hidden_states=True)
    model = weightless(config)
    first = run(model, Workload())
    assert list(differences(run(model, Workload(), replay=False), first)) == []


QUICK = ("gemma3_text", "gpt2", "hubert", "llava", "mamba2", "mixtral", "qwen3_next", "t5")


@pytest.mark.parametrize("model_type", QUICK)
def test_a_replayed_trace_is_the_full_one(model_type: str) -> None:
    hold(model_type)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TYPES)
def test_a_replayed_trace_of_any_architecture_is_the_full_one(model_type: str) -> None:
    hold(model_type)


def hold(model_type: str) -> None:
    """Both phases of a small configuration of a type, replayed and not."""
    if model_type not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    traced = 0
    for config, _ in candidates(model_type):
        with suppress(LlmsimError):
            model = weightless(config)
            for phase in ("prefill", "decode"):
                replayed(model, Workload(phase, 2, 24))
                traced += 1
        if traced:
            return
    pytest.fail("no configuration of it traces")


def recorded_layers(trace: Trace) -> set[str]:
    """The layers that ran, by path."""
    return {
        ".".join(parts[:3])
        for operator in trace.recorded.operators
        if len(parts := operator.path.split(".")) > 2 and parts[1] == "layers"
    }


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_layers_of_one_kind_run_once(phase: str) -> None:
    config = transformers.LlamaConfig(**SIZES, num_hidden_layers=6)
    trace = replayed(weightless(config), Workload(phase, 2, 5))
    assert recorded_layers(trace) == {"model.layers.0"}
    assert [replay.path for replay in trace.replays] == [f"model.layers.{n}" for n in range(1, 6)]


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_sliding_and_full_attention_each_run_once(phase: str) -> None:
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 3
    config = transformers.Gemma3TextConfig(
        **SIZES, num_hidden_layers=9, head_dim=8, sliding_window=4, layer_types=kinds
    )
    trace = replayed(weightless(config), Workload(phase, 2, 9))
    assert recorded_layers(trace) == {"model.layers.0", "model.layers.2"}


def llama4(layers: int) -> Any:
    """`moe_layers` names all of its layers; each layer's item is its own index."""
    return transformers.Llama4TextConfig(
        **SIZES | {"intermediate_size": 16},
        num_hidden_layers=layers,
        head_dim=8,
        intermediate_size_mlp=32,
        num_local_experts=4,
    )


LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}


def longcat(layers: int) -> Any:
    """Each layer attends twice, with the cache's parts 2n and 2n + 1."""
    return transformers.LongcatFlashConfig(
        **{name: SIZES[name] for name in ("vocab_size", "hidden_size", "num_attention_heads")},
        **LATENT,
        num_layers=layers,
        head_dim=8,
        ffn_hidden_size=64,
        expert_ffn_hidden_size=16,
        n_routed_experts=4,
        zero_expert_num=2,
        moe_topk=2,
    )


def glm_sparse(layers: int) -> Any:
    """Each layer passes its selected tokens on: another tensor of the same assumed values."""
    return transformers.AutoConfig.for_model(
        "glm_moe_dsa",
        **SIZES | {"num_key_value_heads": 4},
        **LATENT,
        num_hidden_layers=layers,
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        index_topk=4,
        index_n_heads=2,
        index_head_dim=16,
        mlp_layer_types=["dense"] * 3 + ["sparse"] * (layers - 3),
    )


def gemma4(layers: int) -> Any:
    """Each layer gets its slice of one tensor; the last two use the keys of the two before."""
    return transformers.AutoConfig.for_model(
        "gemma4_text",
        **SIZES,
        num_hidden_layers=layers,
        layer_types=["sliding_attention", "full_attention"] * (layers // 2),
        head_dim=8,
        global_head_dim=8,
        vocab_size_per_layer_input=96,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=2,
        sliding_window=4,
    )


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_list_of_layer_indices_in_the_config_does_not_tell_layers_apart(phase: str) -> None:
    config = llama4(8)
    assert config.moe_layers == [*range(8)]
    trace = replayed(weightless(config), Workload(phase, 2, 9))
    # of four layers, three attend within a chunk and the fourth to everything
    assert recorded_layers(trace) == {"model.layers.0", "model.layers.3"}


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_layer_with_two_attentions_keeps_two_parts_of_the_cache(phase: str) -> None:
    trace = replayed(weightless(longcat(4)), Workload(phase, 2, 9))
    assert recorded_layers(trace) == {"model.layers.0"}
    tokens = 9 + (phase == "decode")
    keys = [slot for slot in trace.cache if slot.name.endswith(".keys")]
    assert [slot.shape[2] for slot in keys] == [tokens] * 8  # two for each of four layers


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_layers_that_get_equal_indices_from_the_layer_before_run_once(phase: str) -> None:
    trace = replayed(weightless(glm_sparse(6)), Workload(phase, 2, 9))
    # layer 0 gets no indices
    assert recorded_layers(trace) == {"model.layers.0", "model.layers.1", "model.layers.3"}


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_layers_that_get_slices_of_one_tensor_run_once(phase: str) -> None:
    trace = replayed(weightless(gemma4(8)), Workload(phase, 2, 9))
    assert recorded_layers(trace) == {f"model.layers.{n}" for n in (0, 1, 4, 5, 6, 7)}


def xlstm(layers: int) -> Any:
    """Each layer writes a state that starts as zeros on the host."""
    return transformers.AutoConfig.for_model(
        "xlstm", vocab_size=96, hidden_size=128, num_heads=4, num_hidden_layers=layers, chunk_size=8
    )


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_layers_that_write_states_of_equal_values_run_once(phase: str) -> None:
    trace = replayed(weightless(xlstm(6)), Workload(phase, 2, 9))
    assert len(trace.replays) == 5
    assert len(run(weightless(xlstm(40)), Workload(phase, 2, 9)).replays) == 39


def zamba2(layers: int) -> Any:
    """Layers get their index as an argument; every fourth one shares a block, and chooses by it."""
    return transformers.AutoConfig.for_model(
        "zamba2",
        **SIZES | {"num_key_value_heads": 4},
        num_hidden_layers=layers,
        layers_block_type=["mamba", "mamba", "mamba", "hybrid"] * (layers // 4),
        mamba_d_state=8,
        mamba_expand=2,
        n_mamba_heads=4,
        mamba_headdim=16,
        mamba_ngroups=1,
        chunk_size=8,
        adapter_rank=4,
        use_shared_attention_adapter=True,
    )


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.slow
def test_layers_that_get_their_index_run_once_unless_they_share_a_part(phase: str) -> None:
    trace = replayed(weightless(zamba2(16)), Workload(phase, 2, 9))
    assert recorded_layers(trace) == {f"model.layers.{n}" for n in (0, 3, 7, 11, 15)}
    deeper = run(weightless(zamba2(40)), Workload(phase, 2, 9))
    assert recorded_layers(deeper) == {f"model.layers.{n}" for n in (0, *range(3, 40, 4))}


def hrm(layers: int) -> Any:
    """Its layers run in cycles, each time with another part of the cache."""
    return transformers.AutoConfig.for_model(
        "hrm_text",
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        head_dim=8,
        num_hidden_layers=layers,
    )


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.slow
def test_layers_that_run_again_with_another_part_of_the_cache_are_replayed(phase: str) -> None:
    if "hrm_text" not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no hrm_text")
    few = replayed(weightless(hrm(4)), Workload(phase, 2, 9))
    many = run(weightless(hrm(40)), Workload(phase, 2, 9))
    stacks = [
        {".".join(operator.path.split(".")[:4]) for operator in trace.recorded.operators}
        for trace in (few, many)
    ]
    assert stacks[0] == stacks[1]
    assert {path for path in stacks[0] if ".layers." in path} == {
        f"model.{stack}_module.layers.0" for stack in "LH"
    }
    assert len(few.replays) == 4 * 8 - 3  # the low stack runs again with an offset


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("make", [llama4, longcat, glm_sparse, gemma4])
@pytest.mark.slow
def test_a_deeper_model_runs_no_more_layers(make: Callable[[int], Any], phase: str) -> None:
    few, many = (run(weightless(make(n)), Workload(phase, 2, 9)) for n in (8, 40))
    assert len(recorded_layers(many)) == len(recorded_layers(few)) < 8
    done = {replay.path for replay in many.replays} | recorded_layers(many)
    assert done == {f"model.layers.{n}" for n in range(40)}


def test_a_list_of_flags_is_no_list_of_layer_indices() -> None:
    """In a model of two layers `[0, 1]` may be either: the layers are not taken for equal."""
    config = transformers.LlamaConfig(**SIZES, num_hidden_layers=2)
    config.flags = [0, 1]
    assert run(weightless(config), Workload()).replays == ()


def test_a_dense_first_layer_stands_for_no_layer_of_experts() -> None:
    config = transformers.DeepseekV3Config(
        **SIZES | {"num_key_value_heads": 4},
        num_hidden_layers=5,
        first_k_dense_replace=2,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        kv_lora_rank=8,
        q_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
    )
    trace = replayed(weightless(config), Workload("prefill", 2, 6))
    assert recorded_layers(trace) == {"model.layers.0", "model.layers.2"}


def test_one_trace_is_as_deep_as_another_and_costs_no_more_kernels() -> None:
    shallow, deep = (
        run(weightless(transformers.LlamaConfig(**SIZES, num_hidden_layers=n)), Workload())
        for n in (2, 40)
    )
    assert len(deep.recorded.kernels) == len(shallow.recorded.kernels)
    assert len(deep.kernels) > 15 * len(shallow.kernels)


# layers of our own: what must not be replayed


class Layers(nn.Module):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state: dict[str, Any] = {"sum": torch.zeros_like(x), "seen": []}
        if any(isinstance(layer, Takes) for layer in self.layers):
            state["numbers"] = iter(range(9))
        for layer in self.layers:
            x = layer(x, state)
        return x + state["sum"]


class Layer(nn.Module):
    """The like of any other of its class."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        return self.linear(x).relu()


class Adds(Layer):
    def forward(self, x: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        state["sum"] += x
        return self.linear(x)


class Notes(Layer):
    def forward(self, x: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        state["seen"].append(x)
        return torch.cat([self.linear(seen) for seen in state["seen"]]).sum(0, keepdim=True)


class Changes(Layer):
    def forward(self, x: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        state["sum"] = self.linear(x + state["sum"])
        return x


class Takes(Layer):
    def forward(self, x: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        return self.linear(x) * next(state["numbers"])


class Boxes(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.box: dict[str, Any] = {}

    def forward(self, x: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        self.box["x"] = x
        return self.linear(x)


class Counts(Layer):
    shared = SimpleNamespace(number=0)

    def __init__(self) -> None:
        super().__init__()
        self.counter = self.shared

    def forward(self, x: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        self.counter.number += 1
        return self.linear(x)


class Fills(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(1, 8))

    def forward(self, x: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        self.last.copy_(x)
        return self.linear(x)


class Keeps(Layer):
    def forward(self, x: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        self.last = x
        return self.linear(x)


class Scales(Layer):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        return self.linear(x) * self.factor if self.factor else self.linear(x)


class InPlace(Layer):
    def forward(self, x: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        return x.add_(self.linear(x))


class Draws(Layer):
    """Runs its part once or twice, as a number on the host says."""

    def drawn(self) -> float:
        return float(torch.rand(()))

    def forward(self, x: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        once = self.linear(x)
        return once if self.drawn() < 0.5 else self.linear(once)


class DrawsInPython(Draws):
    def drawn(self) -> float:
        return random.random()


class DrawsWithNumpy(Draws):
    def drawn(self) -> float:
        return float(np.random.rand())


def of_own(*layers: nn.Module, kind: type[Layers] = Layers) -> Trace:
    model = copy_without_weights(kind(list(layers)), "layers")
    full, found = (
        run_with_inputs(model, (torch.ones(1, 8),), {}, replay=replay) for replay in (False, True)
    )
    assert list(differences(full, found)) == []
    return found


def test_layers_of_any_module_are_replayed() -> None:
    assert len(of_own(Layer(), Layer(), Layer(), Layer()).replays) == 3


@pytest.mark.parametrize(
    "kind",
    [
        *(Adds, Notes, Changes, Takes, Boxes, Counts, Fills, Keeps, InPlace),
        *(Draws, DrawsInPython, DrawsWithNumpy),
    ],
)
def test_a_layer_that_leaves_more_than_its_result_runs_each_time(kind: type[Layer]) -> None:
    assert not of_own(kind(), kind(), kind()).replays


class Hooked(Layers):
    """Keeps what a hook inside each layer sees, and returns it, or computes with it."""

    def hook(self, layer: nn.Module, seen: list[torch.Tensor]) -> Any:
        return layer.linear.register_forward_hook(lambda *given: seen.append(given[-1]))

    def end(self, y: torch.Tensor, seen: list[torch.Tensor]) -> Any:
        return y + torch.stack(seen).sum(0)

    def forward(self, x: torch.Tensor) -> Any:
        seen: list[torch.Tensor] = []
        handles = [self.hook(layer, seen) for layer in self.layers]
        y = super().forward(x)
        for handle in handles:
            handle.remove()
        return self.end(y, seen)


class Returns(Hooked):
    def end(self, y: torch.Tensor, seen: list[torch.Tensor]) -> Any:
        return y, seen


class SeesInputs(Hooked):
    """A hook sees the first input of a part: that of the layer itself."""

    def hook(self, layer: nn.Module, seen: list[torch.Tensor]) -> Any:
        return layer.linear.register_forward_pre_hook(lambda part, args: seen.append(args[0]))


class Outputs(Layer):
    """Returns what its part does, so that a hook on the part sees the layer's output."""

    def forward(self, x: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        return self.linear(x)


@pytest.mark.parametrize("model", [Hooked, Returns, SeesInputs])
@pytest.mark.parametrize("kind", [Layer, Outputs])
def test_layers_with_hooks_inside_each_run(kind: type[Layer], model: type[Hooked]) -> None:
    assert not of_own(kind(), kind(), kind(), kind=model).replays


EXPERTS = {"num_experts_per_tok": 2, "output_router_logits": True}
CAPTURING = {  # by hooks of transformers on parts of layers
    "mixtral": lambda: transformers.MixtralConfig(
        **SIZES, num_hidden_layers=3, num_local_experts=4, **EXPERTS
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **SIZES, num_hidden_layers=3, head_dim=8, num_experts=4, moe_intermediate_size=16, **EXPERTS
    ),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **SIZES, num_hidden_layers=3, head_dim=8, num_local_experts=4, **EXPERTS
    ),
    "llama": lambda: transformers.LlamaConfig(
        **SIZES, num_hidden_layers=3, output_attentions=True, attn_implementation="eager"
    ),
    "t5": lambda: transformers.T5Config(
        vocab_size=96,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_heads=4,
        num_layers=3,
        output_attentions=True,
        output_hidden_states=True,
        attn_implementation="eager",
    ),
}


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=name, marks=() if name in ("mixtral", "llama") else pytest.mark.slow)
        for name, make in CAPTURING.items()
    ],
)
def test_what_hooks_of_transformers_capture_inside_layers_is_that_of_every_layer(
    make: Callable[[], Any], phase: str
) -> None:
    assert not replayed(weightless(make()), Workload(phase, 2, 8)).replays


class Alternates(Layer):
    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(self, x: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        return self.linear(x).relu() if self.layer_idx % 2 else self.linear(x)


def test_a_number_of_its_own_tells_layers_of_unknown_code_apart() -> None:
    assert not of_own(*map(Alternates, range(4))).replays


def test_layers_with_other_attributes_each_run() -> None:
    trace = of_own(Scales(2.0), Scales(0.0), Scales(2.0), Scales(0.0))
    assert [(replay.path, replay.of) for replay in trace.replays] == [
        ("layers.2", "layers.0"),
        ("layers.3", "layers.1"),
    ]


def test_layers_that_share_a_part_with_the_first_keep_its_name() -> None:
    layers = [Layer() for _ in range(4)]
    for layer in layers[1:]:
        layer.linear = layers[0].linear
    trace = of_own(*layers)
    assert {replay.of for replay in trace.replays} == {"layers.1"}
    assert {operator.path for operator in trace.operators if operator.op == "Linear"} == {
        "layers.0.linear"
    }


# how it is asked for


def test_the_front_doors_can_have_every_layer_run(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_models.llama()
    assert llmsim.trace(config, context=5).trace.replays
    assert not llmsim.trace(config, context=5, replay=False).trace.replays
    assert not llmsim.sweep(config, batch=[1], context=[5], replay=False).traces[0].replays
    monkeypatch.setenv("LLMSIM_NO_REPLAY", "1")
    assert not llmsim.trace(config, context=5).trace.replays


@pytest.mark.parametrize(
    "make", [small_models.qwen3, small_models.mamba, small_models.gemma2, small_models.t5]
)
def test_a_step_that_goes_on_from_a_prefill_is_the_step_after_one_of_its_own(make: Any) -> None:
    model = weightless(make())
    prefill, step = (Workload(phase, 2, 7) for phase in ("prefill", "decode"))
    alone = run(model, step)
    run(model, prefill)
    assert list(differences(run(model, step), alone)) == []
    assert list(differences(run(model, step), alone)) == []
