"""QLoRA: weights in NF4 as bitsandbytes keeps and multiplies them, adapters as peft adds them."""

import sys
import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import llmsim_magic as llmsim
from llmsim_magic.analyses.kernels.elementwise_work import kernels_without_formula
from llmsim_magic.capture.adapters.nf4_linear import Linear4bit
from llmsim_magic.capture.adapters.qlora import with_qlora
from llmsim_magic.capture.configs.resolve import ConfigSource
from llmsim_magic.capture.meta.evaluation_modes import evaluating_partially
from llmsim_magic.capture.models.meta_model import MetaModel, from_config
from llmsim_magic.capture.run import run
from llmsim_magic.records.errors import CannotTrace, InvalidValue
from llmsim_magic.records.trace.lora import parse_lora
from llmsim_magic.records.trace.workload import Workload
from tests.helpers import small_models
from tests.helpers.replay_comparison import differences

pytest.importorskip("peft")
META = torch.device("meta")
ALL = parse_lora("r=4,targets=all-linear")
BF16, FP32, UINT8 = torch.bfloat16, torch.float32, torch.uint8


def layer_of(width: int, outputs: int, bias: bool = False) -> Linear4bit:
    parameter = torch.nn.Parameter(torch.empty(outputs, dtype=BF16, device=META), False)
    return Linear4bit(width, outputs, parameter if bias else None, BF16, BF16)


def quantized(name: str, dtype: torch.dtype = BF16, checkpointing: bool = False) -> Any:
    model = small_models.build(name, "meta").to(dtype).train()
    return with_qlora(model, ALL, checkpointing=checkpointing)[0]


# the tensors


@pytest.mark.parametrize(
    ("width", "outputs", "packed", "blocks", "nested"),
    [
        (64, 96, 3072, 96, 1),
        (3, 5, 8, 1, 1),  # 15 weights fill seven bytes and a half
        (1024, 4096, 2_097_152, 65_536, 256),
        (4096, 4097, 8_390_656, 262_208, 1025),  # 64 more blocks than 1024 · 256
    ],
)
def test_the_tensors_are_those_of_bitsandbytes(
    width: int, outputs: int, packed: int, blocks: int, nested: int
) -> None:
    """As `bitsandbytes.functional.quantize_4bit` makes them, blocks of 64 and of 256."""
    layer = layer_of(width, outputs)
    tensors = {"weight": layer.weight.data, **dict(layer.named_buffers())}
    assert {name: (tuple(each.shape), each.dtype) for name, each in tensors.items()} == {
        "weight": ((packed, 1), UINT8),
        "absmax": ((blocks,), UINT8),
        "quant_map": ((16,), FP32),
        "nested_absmax": ((nested,), FP32),
        "nested_quant_map": ((256,), FP32),
        "nested_offset": ((), FP32),
    }
    assert not layer.weight.requires_grad


def test_double_quantisation_saves_what_litgpt_measured() -> None:
    """GiB of Llama 2 13B in nf4 and nf4-dq, whose linear layers hold 12.85 · 10⁹ weights.

    From Lightning-AI/litgpt, tutorials/resource-tables.md. Without it, each block of 64 weights has
    a float32.
    """
    measured = (7.748604 - 7.18981) * 2**30 / 12_852_024_320
    layer = layer_of(5120, 13_824)
    weights = layer.in_features * layer.out_features
    nested = layer.absmax.nbytes + layer.nested_absmax.nbytes + layer.nested_quant_map.nbytes
    assert (weights / 64 * 4 - nested) / weights == pytest.approx(measured, rel=0.005)


# the kernels


class KernelLog(TorchDispatchMode):
    """Names and results of the kernels that run, without views."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not (func.is_view or func is torch.ops.aten._unsafe_view.default):
            is_tensor = isinstance(out, torch.Tensor)
            self.calls.append((str(func), tuple(out.shape), out.dtype) if is_tensor else str(func))
        return out


def test_a_matmul_dequantises_in_forward_and_again_in_backward() -> None:
    """The kernels of bitsandbytes' `gemm_4bit` for many tokens, and of `MatMul4Bit.backward`."""
    layer = layer_of(64, 96)
    x = torch.empty(2, 7, 64, dtype=FP32, device=META, requires_grad=True)
    with KernelLog() as forward:
        y = layer(x)
    assert forward.calls == [
        ("aten._to_copy.default", (2, 7, 64), BF16),
        ("bnb.dequantize_blockwise.default", (96,), FP32),
        ("aten.add.Tensor", (96,), FP32),
        ("bnb.dequantize_4bit.default", (96, 64), BF16),
        ("aten.mm.default", (14, 96), BF16),
        ("aten._to_copy.default", (2, 7, 96), FP32),
    ]
    gradient = torch.empty_like(y)
    with KernelLog() as backward:
        y.backward(gradient)
    assert [each for each in backward.calls if "detach" not in each[0]] == [
        ("aten._to_copy.default", (2, 7, 96), BF16),
        ("bnb.dequantize_blockwise.default", (96,), FP32),
        ("aten.add_.Tensor", (96,), FP32),
        ("bnb.dequantize_4bit.default", (96, 64), BF16),
        ("aten.mm.default", (14, 64), BF16),
        ("aten._to_copy.default", (2, 7, 64), FP32),
    ]
    assert x.grad is not None
    assert layer.weight.grad is None


def test_the_dequantised_weight_is_not_kept() -> None:
    alive: list[weakref.ref[Any]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            if "dequantize" in str(func):
                alive.append(weakref.ref(out.untyped_storage()))
            return out

    x = torch.empty(2, 64, dtype=BF16, device=META, requires_grad=True)
    saved: list[torch.Tensor] = []
    keep = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t)
    with Watch(), keep:
        y = layer_of(64, 96)(x)
    assert len(alive) == 2
    assert all(each() is None for each in alive)
    assert not saved
    with Watch():
        y.sum().backward()
    assert len(alive) == 4
    assert all(each() is None for each in alive)


# the model


def forward_and_backward(model: Any) -> list[Any]:
    ids = torch.zeros(2, 7, dtype=torch.long, device=META)
    with evaluating_partially(), torch.enable_grad(), KernelLog() as log:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return log.calls


def test_what_is_not_quantised_is_cast_to_float32() -> None:
    """As `prepare_model_for_kbit_training` does; the head and the embedding are not quantised."""
    model = quantized("llama")
    dtypes = {path: each.dtype for path, each in model.named_parameters()}
    packed = {path for path, dtype in dtypes.items() if dtype == UINT8}
    layers = model.config.num_hidden_layers
    assert len(packed) == 7 * layers
    assert all(path.endswith(".base_layer.weight") for path in packed)
    assert {dtype for path, dtype in dtypes.items() if path not in packed} == {FP32}
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} <= dtypes.keys()


def test_modules_that_transformers_keeps_are_not_quantised() -> None:
    """T5 keeps `wo` in float32, a tied head stays the embedding, GPT-2's Conv1D is replaced."""
    t5 = dict(quantized("t5").named_modules())
    kinds = {path.rpartition(".")[2]: type(part) for path, part in t5.items()}
    assert type(t5["encoder.block.0.layer.1.DenseReluDense.wo"].base_layer) is torch.nn.Linear
    assert type(t5["encoder.block.0.layer.1.DenseReluDense.wi"].base_layer) is Linear4bit
    assert kinds["lm_head"] is torch.nn.Linear
    gpt2 = quantized("gpt2")
    assert gpt2.lm_head.weight is gpt2.transformer.wte.weight
    attention = gpt2.transformer.h[0].attn.c_attn.base_layer
    assert type(attention) is Linear4bit
    assert (attention.in_features, attention.out_features) == (64, 192)
    assert attention.bias.dtype == BF16


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "mixtral"])
def test_the_adapters_alone_have_gradients(name: str, checkpointing: bool) -> None:
    model = quantized(name, checkpointing=checkpointing)
    if checkpointing:
        new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"
        getattr(model, new if hasattr(model, new) else old)()
    forward_and_backward(model)
    for path, parameter in model.named_parameters():
        assert parameter.requires_grad == (".lora_" in path)
        assert (parameter.grad is not None) == parameter.requires_grad, path


def test_backward_skips_weights_before_the_first_adapter() -> None:
    """14 matmuls of two layers; the first layer's q, k and v pass no gradient on to the input."""
    names = [each[0] for each in forward_and_backward(quantized("llama"))]
    assert names.count("bnb.dequantize_4bit.default") == 14 + 14 - 3


def test_a_model_in_float32_computes_in_bfloat16() -> None:
    """Its weights are dequantised to float32 in backward, the dtype that was quantised."""
    calls = forward_and_backward(quantized("llama", FP32))
    dtypes = [call[2] for call in calls if call[0] == "bnb.dequantize_4bit.default"]
    assert dtypes == [BF16] * 14 + [FP32] * 11


def test_under_autocast_the_weights_had_the_dtype_of_the_checkpoint() -> None:
    """transformers loads a checkpoint in bfloat16 as that, and quantises it."""
    config = small_models.llama()
    config.dtype = BF16
    report = llmsim.trace(
        config, phase="train", batch=2, context=7, precision="amp", qlora=True, lora="r=4"
    )
    trace = report.trace
    written = [
        trace.tensors[kernel.outputs[0]].dtype
        for kernel in trace.kernels
        if kernel.name == "bnb.dequantize_4bit.default"
    ]
    assert written == ["bfloat16"] * len(written)
    assert len(written) > 14


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_record_names_the_packed_weight_and_layers_are_replayed(name: str) -> None:
    plain = from_config(ConfigSource("small", small_models.CONFIGS[name](), "a test"))
    model, note = with_qlora(plain.module, ALL)
    meta_model = MetaModel(model, plain.info)
    workload = Workload("prefill", 2, 7)
    full, replayed = (run(meta_model, workload, replay=each) for each in (False, True))
    assert len(replayed.replays) == 1
    assert not list(differences(full, replayed))
    kernels = [each for each in full.kernels if each.name == "bnb.dequantize_4bit.default"]
    layers = [part for part in model.modules() if isinstance(part, Linear4bit)]
    read = {full.storages[full.tensors[each.inputs[0]].storage].name for each in kernels}
    paths = {path for path, part in model.named_modules() if isinstance(part, Linear4bit)}
    assert read == {f"{path}.weight" for path in paths}
    assert len(kernels) == len(layers)
    assert not any(each.startswith("bnb") for each in kernels_without_formula(full))
    nbytes = sum(b.nbytes for each in layers for b in (each.weight, *each.buffers()))
    assert f"{len(layers)} linear weights" in note
    assert f"{nbytes:,} bytes" in note


# mistakes


def test_a_module_that_transformers_cannot_quantise_is_refused() -> None:
    with META:
        model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    with pytest.raises(InvalidValue, match="Sequential is not a model of transformers"):
        with_qlora(model, ALL)


def test_dora_is_refused() -> None:
    with pytest.raises(InvalidValue, match="leave dora out"):
        with_qlora(small_models.build("llama", "meta"), parse_lora("r=4,dora"))


def test_targets_that_match_nothing_are_refused() -> None:
    with pytest.raises(InvalidValue, match=r"'qproj'.*q_proj"):
        with_qlora(small_models.build("llama", "meta"), parse_lora("r=4,targets=qproj"))


def test_without_peft_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(CannotTrace, match=r"qlora needs peft.*llmsim-magic\[train\]"):
        with_qlora(small_models.build("llama", "meta"), ALL)


def test_two_weights_of_a_byte_are_two_parameters() -> None:
    plain = llmsim.trace(small_models.llama(), phase="train", context=4)
    packed = llmsim.trace(small_models.llama(), phase="train", context=4, qlora=True, lora="r=2")
    adapters = packed.modules.trainable.sum()
    assert packed.summary.value["parameters"] == plain.summary.value["parameters"] + adapters
    weight = next(p for p in packed.trace.parameters if p.packed == 2)
    assert weight.nbytes * 2 == weight.numel
