"""A live module whose weights are quantised is refused by its library and the way that works."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import llmsim_magic as llmsim

X = torch.zeros(2, 64)


def line(module: nn.Module) -> str:
    with pytest.raises(llmsim.LlmsimError) as caught:
        llmsim.trace(module, inputs=X)
    return str(caught.value)


def real(library: str, make: Callable[[], nn.Module]) -> Any:
    return pytest.param(library, make, id=f"{library}-{make.__name__}")


def linear_4bit() -> nn.Module:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    return bitsandbytes.nn.Linear4bit(64, 64, compute_dtype=torch.float32).to("cpu")


def linear_8bit() -> nn.Module:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    return bitsandbytes.nn.Linear8bitLt(64, 64, has_fp16_weights=False).to("cpu")


def int8_weights() -> nn.Module:
    quantization = pytest.importorskip("torchao.quantization")
    module = nn.Sequential(nn.Linear(64, 64))
    quantization.quantize_(module, quantization.Int8WeightOnlyConfig())
    return module[0]


def hqq_linear() -> nn.Module:
    hqq = pytest.importorskip("hqq.core.quantize")
    config = hqq.BaseQuantizeConfig(nbits=4, group_size=64)
    return hqq.HQQLinear(nn.Linear(64, 64), config, compute_dtype=torch.float32, device="cpu")


def dynamically_quantised() -> nn.Module:
    module = nn.Sequential(nn.Linear(64, 64))
    return torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, torch.qint8)[0]


def bit_linear() -> nn.Module:
    bitnet = pytest.importorskip("transformers.integrations.bitnet")
    return bitnet.BitLinear(64, 64, bias=False)


def fp8_linear() -> nn.Module:
    return pytest.importorskip("transformers.integrations.finegrained_fp8").FP8Linear(64, 64)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("library", "make"),
    [
        real("bitsandbytes", linear_4bit),
        real("bitsandbytes", linear_8bit),
        real("torchao", int8_weights),
        real("HQQ", hqq_linear),
        real("torch.ao", dynamically_quantised),
        real("transformers", bit_linear),
        real("transformers", fp8_linear),
    ],
)
def test_a_quantised_layer_of_a_library_is_refused_by_its_path_and_library(
    library: str, make: Callable[[], nn.Module]
) -> None:
    message = line(nn.Sequential(nn.ReLU(), make()))
    assert message.startswith("Sequential: 1 is quantised (")
    assert f" of {library})" in message
    assert "before it is quantised" in message


@pytest.mark.parametrize(
    ("module", "library"),
    [
        ("awq.modules.linear.gemm", "AutoAWQ"),
        ("gptqmodel.nn_modules.qlinear.torch", "GPTQModel"),
        ("optimum.quanto.nn.qlinear", "optimum-quanto"),
    ],
)
def test_a_library_is_known_by_the_module_of_a_class_or_of_its_base(
    module: str, library: str
) -> None:
    base = type("QuantLinear", (nn.Linear,), {"__module__": module})
    derived = type("Mine", (base,), {"__module__": __name__})
    assert f" of {library})" in line(base(64, 64))
    assert f" of {library})" in line(derived(64, 64))


class Packed(nn.Module):
    """Eight 4-bit weights in each integer, as GPTQ and AWQ store them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.register_buffer("qweight", torch.zeros(inputs // 8, outputs, dtype=torch.int32))
        self.register_buffer("scales", torch.ones(1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        shifts = torch.arange(0, 32, 4)[:, None]
        codes = (self.qweight[:, None] >> shifts & 15).flatten(0, 1)
        return x @ (codes * self.scales)


def test_several_weights_in_one_integer_are_not_counted_as_one() -> None:
    assert Packed(64, 32)(X).shape == (2, 32)
    assert "(Packed)" in line(Packed(64, 32))


class Narrow(torch.Tensor):
    """Says that it is float32 and holds int8."""

    @staticmethod
    def __new__(cls, codes: Tensor) -> "Narrow":
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes: Tensor) -> None:
        self.codes = codes

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes)
        raise NotImplementedError(func)


def test_a_tensor_that_holds_fewer_bytes_than_it_says_is_refused() -> None:
    module = nn.Linear(64, 64)
    codes = torch.zeros(64, 64, dtype=torch.int8)
    module.weight = nn.Parameter(Narrow(codes), requires_grad=False)
    assert "(Narrow)" in line(nn.Sequential(module))


def test_a_model_of_transformers_is_sent_to_its_config_which_traces() -> None:
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=64,
        quantization_config={"quant_method": "awq", "bits": 4, "group_size": 64},
    )
    model = transformers.LlamaForCausalLM(config)
    model.model.layers[0].mlp.up_proj = Packed(64, 64)
    with pytest.raises(llmsim.LlmsimError, match=r"mlp\.up_proj is quantised .* model\.config"):
        llmsim.trace(model, context=8)
    plain = sum(each.numel() for each in transformers.LlamaForCausalLM(config).parameters())
    assert llmsim.trace(model.config, context=8).summary.value["parameters"] == plain


class Int8(nn.Module):
    """One element for each weight: counted as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 64, 32
        self.register_buffer("weight", torch.zeros(32, 64, dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.to(x.dtype).t()


@pytest.mark.filterwarnings("ignore")
def test_what_trains_for_quantisation_or_converts_its_weights_itself_is_traced() -> None:
    assert llmsim.trace(Int8(), inputs=X).summary.value["flops"] == 2 * 2 * 32 * 64
    module = nn.Sequential(nn.Linear(64, 32)).train()
    module.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    torch.ao.quantization.prepare_qat(module, inplace=True)
    assert llmsim.trace(module, inputs=X).summary.value["flops"] == 2 * 2 * 32 * 64
