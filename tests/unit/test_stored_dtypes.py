"""A pass reads the bytes of its weights in their stored dtype."""

from dataclasses import replace
from typing import Any

import pytest

import llmsim_magic as llmsim
from llmsim_magic.analyses.memory.weights import weights
from llmsim_magic.analyses.time.kernel_sizes import StoredDtypes, kernel_shapes
from llmsim_magic.analyses.time.latency import latency
from llmsim_magic.analyses.time.roofline import estimate
from llmsim_magic.analyses.time.stored_dtypes import stored_dtypes
from llmsim_magic.catalog import accelerators
from llmsim_magic.catalog.calibration import calibration
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.kernel_shapes import Attention, Matmul
from llmsim_magic.records.trace.trace import Trace
from tests.helpers import small_models

H100 = accelerators.find("H100-SXM5-80GB")
A100 = accelerators.find("A100-SXM4-80GB")
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True}
FP8 = {"quant_method": "fp8", "weight_block_size": [32, 32]}


def traced(config: Any, quantisation: dict[str, Any] | None = None) -> Trace:
    if quantisation is not None:
        config.quantization_config = quantisation
    return llmsim.trace(config, phase="decode", batch=2, context=7).trace


def multiplied(trace: Trace, stored: StoredDtypes) -> list[tuple[str, Matmul]]:
    """Every product of a step, with the module that multiplies."""
    each = trace.expand_replays(kernel_shapes(trace, H100, "graph", stored))
    return [
        (path, size)
        for path, found in zip(trace.paths, each, strict=True)
        for size in found
        if isinstance(size, Matmul)
    ]


def products(trace: Trace, stored: StoredDtypes) -> dict[str, Matmul]:
    """The product of each linear layer."""
    return dict(multiplied(trace, stored))


def read_from(trace: Trace, stored: StoredDtypes) -> float:
    """Bytes of weights that products inside the layers read."""
    return sum(s.weight_bytes for path, s in multiplied(trace, stored) if ".layers." in path)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mixtral"])
@pytest.mark.parametrize("dtype", ["int4", "int8", "fp8"])
def test_a_step_reads_the_packed_weights_to_the_byte(name: str, dtype: str) -> None:
    trace = traced(small_models.CONFIGS[name]())
    takes = weights(trace, dtype)
    routers = sum(p.nbytes for p in trace.parameters if p.name.endswith(".gate.weight"))
    read = read_from(trace, stored_dtypes(trace, H100, dtype))
    assert read == pytest.approx(takes.codes + takes.scales + routers, rel=1e-9)


@pytest.mark.parametrize("quantisation", [AWQ, FP8], ids=["awq", "fp8"])
def test_a_checkpoint_s_own_packing_is_read_where_none_is_chosen(quantisation: Any) -> None:
    trace = traced(small_models.llama(), quantisation)
    takes = weights(trace)
    assert takes.codes
    read = read_from(trace, stored_dtypes(trace, H100))
    assert read == pytest.approx(takes.codes + takes.scales, rel=1e-9)
    whole = traced(small_models.llama())
    assert read_from(whole, stored_dtypes(whole, H100)) > read


def test_a_packing_that_the_language_model_s_config_declares_is_read() -> None:
    # The tensors of Kimi-K2.5's checkpoint are 595,148,192,736 bytes, by its safetensors headers.
    report = llmsim.trace("moonshotai/Kimi-K2.5", phase="decode", context=2)
    assert report.memory.loc["weights", "bytes"] == pytest.approx(595_148_192_736, rel=1e-3)


def test_layers_that_a_checkpoint_leaves_out_count_as_they_are() -> None:
    """A layer that is replayed is recorded once: its twins' bytes are shared out evenly."""
    trace = traced(small_models.llama(), AWQ | {"modules_to_not_convert": ["model.layers.1"]})
    takes = weights(trace)
    inside = [
        p for p in trace.parameters if p.name.startswith("model.layers.1.") and len(p.shape) == 2
    ]
    read = read_from(trace, stored_dtypes(trace, H100))
    assert read == pytest.approx(takes.codes + takes.scales + sum(p.nbytes for p in inside))


def test_head_and_embeddings_stay_as_traced() -> None:
    trace = traced(small_models.llama())
    found = products(trace, stored_dtypes(trace, H100, "int4"))
    assert found["lm_head"].weight_bits is None
    head = next(p for p in trace.parameters if p.name == "lm_head.weight")
    assert found["lm_head"].weight_bytes == head.nbytes


def test_fp8_is_multiplied_where_the_device_can_else_widened() -> None:
    trace = traced(small_models.llama())
    there, widened = (stored_dtypes(trace, device, "fp8") for device in (H100, A100))
    path = "model.layers.0.mlp.up_proj"
    assert products(trace, there)[path].dtype == "fp8"
    assert products(trace, widened)[path].dtype == "fp32"  # as the small model is traced
    bits = {products(trace, each)[path].weight_bits for each in (there, widened)}
    assert bits == {8 + 16 / 64}  # a 16-bit scale for the 64 inputs of each output
    assert latency(trace, A100, stored=widened).seconds > 0


@pytest.mark.parametrize("dtype", ["int4", "int8"])
def test_integers_are_weight_only(dtype: str) -> None:
    trace = traced(small_models.llama())
    stored = stored_dtypes(trace, H100, dtype)
    assert products(trace, stored)["model.layers.0.mlp.up_proj"].dtype == "fp32"


def test_a_checkpoint_in_fp8_is_multiplied_so_but_for_its_head() -> None:
    trace = traced(small_models.llama(), FP8)
    kinds = {path: size.kind for path, size in products(trace, stored_dtypes(trace, H100)).items()}
    assert kinds["model.layers.0.mlp.up_proj"] == "matmul fp8"
    assert kinds["lm_head"] == "matmul 16-bit"
    widened = products(trace, stored_dtypes(trace, A100))["model.layers.0.mlp.up_proj"]
    assert widened.kind == "matmul 16-bit"


def test_a_cast_reads_every_weight_so_and_multiplies_as_traced() -> None:
    trace = traced(small_models.llama())
    found = products(trace, stored_dtypes(trace, H100, "bf16"))
    assert {size.dtype for size in found.values()} == {"fp32"}
    assert found["lm_head"].weight_bytes == 2 * found["lm_head"].n * found["lm_head"].k


def test_a_chosen_cache_is_read_so() -> None:
    trace = traced(small_models.llama())
    found = kernel_shapes(trace, H100, "graph", stored_dtypes(trace, H100, kv_dtype="fp8"))
    attentions = [size for each in found for size in each if isinstance(size, Attention)]
    assert {size.kv_dtype for size in attentions} == {"fp8"}
    assert stored_dtypes(trace, H100) == StoredDtypes()


@pytest.mark.parametrize("wrong", [{"weight_dtype": "int3"}, {"kv_dtype": "int4"}])
def test_a_dtype_that_does_not_exist_is_one_line(wrong: dict[str, str]) -> None:
    with pytest.raises(InvalidValue, match="one of") as caught:
        stored_dtypes(traced(small_models.llama()), H100, **wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", [H100, accelerators.find("H200-SXM-141GB")])
def test_packed_experts_take_no_less_than_memory_needs_to_read_them(device: Accelerator) -> None:
    """All 256 of a layer, one token each: blocks of scales change that little."""
    trace = traced(small_models.mixtral(), FP8)
    stored = stored_dtypes(trace, device)
    found = [size for path, size in multiplied(trace, stored) if path.endswith("experts")]
    wide = [replace(size, m=1, n=4096, k=7168, groups=256) for size in found]
    assert wide
    for size in wide:
        least = size.weight_bytes / (device.bandwidth_bytes_per_s or 1)
        assert estimate(size, device, calibration(), cold=True).seconds > 0.9 * least
