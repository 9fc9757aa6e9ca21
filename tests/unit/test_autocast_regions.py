"""Regions of autocast in a model's own code act as on a CUDA device, whatever the machine has."""

import warnings
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.utils.generic import maybe_autocast

import llmsim_magic as llmsim
from llmsim_magic.records.errors import CannotTrace
from llmsim_magic.records.trace.trace import Trace
from tests.helpers.global_state import assert_state_unchanged

BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32
OFF = False
DTYPES = {FLOAT16: "float16", BFLOAT16: "bfloat16", FLOAT32: "float32"}
Forward = Callable[["Part", Tensor], Tensor]


class Part(nn.Module):
    """A layer that a forward uses as it likes."""

    def __init__(self, body: Forward, dtype: torch.dtype = FLOAT32) -> None:
        super().__init__()
        self.lin, self.body = nn.Linear(8, 8, bias=False, dtype=dtype), body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def inside(make: Callable[[Tensor], Any]) -> Forward:
    """A forward that runs its layer in a region."""

    def forward(part: Part, x: Tensor) -> Tensor:
        with make(x):
            out: Tensor = part.lin(x)
        return out

    return forward


def traced(module: nn.Module, x: Tensor | None = None, phase: str = "prefill") -> Trace:
    x = torch.ones(2, 8) if x is None else x
    if phase == "train":
        return llmsim.trace(
            module, phase="train", inputs=x, loss=lambda out: out.float().sum(), precision="fp32"
        ).trace
    return llmsim.trace(module, inputs=x).trace


def product_dtypes(trace: Trace, part: str | None = None) -> list[str]:
    """The dtypes in which the matmuls of a pass run, in order."""
    record = trace.unrolled
    return [
        record.tensors[kernel.outputs[0]].dtype
        for kernel, found in zip(record.kernels, record.kernel_parts, strict=True)
        if part in (None, found) and kernel.flops
    ]


# ways to open a region


with warnings.catch_warnings():  # that there is no CUDA device
    warnings.simplefilter("ignore")

    @torch.autocast("cuda", dtype=BFLOAT16)
    def decorated(part: Part, x: Tensor) -> Tensor:
        out: Tensor = part.lin(x)
        return out

    @torch.cuda.amp.autocast()
    def decorated_in_float16(part: Part, x: Tensor) -> Tensor:
        out: Tensor = part.lin(x)
        return out

    @torch.cuda.amp.autocast(enabled=OFF)
    def decorated_off(part: Part, x: Tensor) -> Tensor:
        out: Tensor = part.lin(x)
        return out

    @torch.autocast("cuda", BFLOAT16, False)
    def decorated_off_by_place(part: Part, x: Tensor) -> Tensor:
        out: Tensor = part.lin(x)
        return out


def on_a_stack(part: Part, x: Tensor) -> Tensor:
    region = torch.autocast("cuda", BFLOAT16) if part.lin.bias is None else nullcontext()
    with ExitStack() as stack:
        stack.enter_context(region)
        out: Tensor = part.lin(x)
    return out


def of_a_helper(part: Part, x: Tensor) -> Tensor:
    def region(device: str) -> Any:
        return torch.autocast(device, dtype=BFLOAT16)

    with region(x.device.type), torch.autocast(x.device.type):
        out: Tensor = part.lin(x)
    return out


WAYS: dict[str, tuple[Forward, torch.dtype]] = {
    "by name": (inside(lambda x: torch.autocast("cuda", dtype=BFLOAT16)), BFLOAT16),
    "default dtype": (inside(lambda x: torch.autocast("cuda")), FLOAT16),
    "of a tensor": (inside(lambda x: torch.autocast(x.device.type, BFLOAT16)), BFLOAT16),
    "of a tensor, default": (inside(lambda x: torch.autocast(x.device.type)), FLOAT16),
    "if on CUDA": (inside(lambda x: torch.autocast("cuda" if x.is_cuda else "xpu")), FLOAT16),
    "amp": (inside(lambda x: torch.amp.autocast("cuda", dtype=BFLOAT16)), BFLOAT16),
    "cuda.amp": (inside(lambda x: torch.cuda.amp.autocast()), FLOAT16),
    "cuda.amp, dtype": (inside(lambda x: torch.cuda.amp.autocast(dtype=BFLOAT16)), BFLOAT16),
    "enabled": (inside(lambda x: torch.autocast("cuda", BFLOAT16, enabled=not OFF)), BFLOAT16),
    "off": (inside(lambda x: torch.autocast("cuda", BFLOAT16, enabled=OFF)), FLOAT32),
    "cuda.amp, off": (inside(lambda x: torch.cuda.amp.autocast(enabled=OFF)), FLOAT32),
    "maybe": (inside(lambda x: maybe_autocast(x.device.type, dtype=BFLOAT16)), BFLOAT16),
    "maybe, off": (inside(lambda x: maybe_autocast(x.device.type, enabled=OFF)), FLOAT32),
    "decorator": (decorated, BFLOAT16),
    "decorator of cuda.amp": (decorated_in_float16, FLOAT16),
    "decorator, off": (decorated_off, FLOAT32),
    "decorator, off by place": (decorated_off_by_place, FLOAT32),
    "on a stack": (on_a_stack, BFLOAT16),
    "of a helper": (of_a_helper, BFLOAT16),
}
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.cuda.amp:FutureWarning")


@pytest.mark.parametrize("phase", ["prefill", "train"])
@pytest.mark.parametrize("way", WAYS)
def test_a_region_acts_however_it_is_opened(way: str, phase: str) -> None:
    body, expected = WAYS[way]
    part = Part(body)
    with assert_state_unchanged(part):
        trace = traced(part, phase=phase)
    assert set(product_dtypes(trace)) == {DTYPES[expected]}


def test_a_region_may_widen() -> None:
    part = Part(inside(lambda x: torch.autocast("cuda", dtype=FLOAT32)), BFLOAT16)
    assert product_dtypes(traced(part, torch.ones(2, 8, dtype=BFLOAT16))) == ["float32"]


def test_no_warning_says_that_there_is_no_device() -> None:
    body, _ = WAYS["by name"]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        traced(Part(body))
        traced(Part(body))
        assert not seen
        made = torch.autocast("cuda", dtype=BFLOAT16)
    is_available = torch.cuda.is_available()
    assert made._enabled is is_available
    assert len(seen) == (not is_available)


def test_a_warning_that_was_shown_before_hides_no_region() -> None:
    body, _ = WAYS["by name"]
    part = Part(body)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("default")
        part(torch.ones(2, 8))
        assert product_dtypes(traced(part)) == ["bfloat16"]


# nesting


def test_the_innermost_region_counts() -> None:
    def body(part: Part, x: Tensor) -> Tensor:
        with torch.autocast("cuda", dtype=BFLOAT16):
            a = part.lin(x)
            with torch.autocast("cuda", enabled=False):
                b = part.lin(x)
                with torch.autocast("cuda", dtype=FLOAT16):
                    c = part.lin(x)
                d = part.lin(x)
            with torch.autocast("cuda"):  # in the dtype of the region around it
                e = part.lin(x)
        return a + b + c + d + e + part.lin(x)

    expected = ["bfloat16", "float32", "float16", "float32", "bfloat16", "float32"]
    assert product_dtypes(traced(Part(body))) == expected


def casts(trace: Trace) -> list[tuple[str, str]]:
    """The dtypes from and to which the parameter is cast, in order."""
    record = trace.unrolled
    return [
        (record.tensors[kernel.inputs[0]].dtype, record.tensors[kernel.outputs[0]].dtype)
        for kernel in record.kernels
        if kernel.name.startswith("aten._to_copy")
        and record.storages[record.tensors[kernel.inputs[0]].storage].name == "lin.weight"
    ]


@pytest.mark.parametrize("phase", ["prefill", "train"])
@pytest.mark.parametrize(
    ("keeps", "regions", "expected"), [(True, 1, 1), (False, 1, 3), (True, 2, 2)]
)
def test_a_parameter_is_cast_once_in_a_region(
    keeps: bool, regions: int, expected: int, phase: str
) -> None:
    def body(part: Part, x: Tensor) -> Tensor:
        for _ in range(regions):
            with torch.autocast("cuda", dtype=BFLOAT16, cache_enabled=keeps):
                for _ in range(3 // regions):
                    x = part.lin(x)
        return x

    found = casts(traced(Part(body), phase=phase))
    assert found == [("float32", "bfloat16")] * expected


# what fails inside


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_autocast_is_as_before_after_a_failure_in_a_region(error: type[BaseException]) -> None:
    def body(part: Part, x: Tensor) -> Tensor:
        with torch.autocast("cuda", dtype=BFLOAT16), torch.autocast("cuda", enabled=False):
            raise error

    part = Part(body)
    with assert_state_unchanged(part), pytest.raises((CannotTrace, KeyboardInterrupt)):
        traced(part)
    assert product_dtypes(traced(Part(inside(lambda x: nullcontext())))) == ["float32"]


def test_a_region_that_is_never_left_ends_with_the_pass() -> None:
    def body(part: Part, x: Tensor) -> Tensor:
        region = torch.autocast("cuda", dtype=BFLOAT16)
        region.__enter__()
        out: Tensor = part.lin(x)
        return out

    part = Part(body)
    with assert_state_unchanged(part):
        assert product_dtypes(traced(part)) == ["bfloat16"]
    assert torch.autocast_increment_nesting() == 1
    assert torch.autocast_decrement_nesting() == 0
    assert not torch.is_autocast_enabled("ipu")
    assert product_dtypes(traced(Part(inside(lambda x: nullcontext())))) == ["float32"]


# backward


class Product(torch.autograd.Function):
    """A matmul whose derivative runs as its forward did."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda")
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradients[0] @ weight.T, x.T @ gradients[0]


class Float32Product(torch.autograd.Function):
    """A matmul that is in float32 whatever is around it."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda", cast_inputs=FLOAT32)
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradients[0] @ weight.T, x.T @ gradients[0]


@pytest.mark.parametrize(
    ("function", "expected"), [(Product, "bfloat16"), (Float32Product, "float32")]
)
def test_functions_with_a_derivative_of_their_own(function: Any, expected: str) -> None:
    def body(part: Part, x: Tensor) -> Tensor:
        with torch.autocast("cuda", dtype=BFLOAT16):
            out: Tensor = function.apply(part.lin(x), part.lin.weight)
        return out

    trace = traced(Part(body), phase="train")
    assert product_dtypes(trace, "forward") == ["bfloat16", expected]
    assert product_dtypes(trace, "backward")[:2] == [expected] * 2


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_region_around_a_checkpoint_is_opened_again(reentrant: bool) -> None:
    def body(part: Part, x: Tensor) -> Tensor:
        with torch.autocast("cuda", dtype=BFLOAT16):
            y = part.lin(x)
            out: Tensor = checkpoint(lambda y: part.lin(part.lin(y)), y, use_reentrant=reentrant)
        return out

    trace = traced(Part(body), phase="train")
    assert set(product_dtypes(trace)) == {"bfloat16"}
    # Without reentrance it stops once it has what backward reads.
    assert len(product_dtypes(trace, "recompute")) == (2 if reentrant else 1)


# layers that are replayed


class Layers(nn.Module):
    """Layers of which a region surrounds the first few."""

    def __init__(self, count: int, inner: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(count))
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        for place, layer in enumerate(self.layers):
            with torch.autocast("cuda", dtype=BFLOAT16, enabled=place < self.inner):
                x = layer(x.float())
        return x


@pytest.mark.parametrize("phase", ["prefill", "train"])
def test_layers_are_not_replayed_across_regions(phase: str) -> None:
    trace = traced(Layers(6, inner=3), phase=phase)
    found = product_dtypes(trace, "forward" if phase == "train" else None)
    assert found == ["bfloat16"] * 3 + ["float32"] * 3


# models of transformers, as under CPU autocast, whose casts are the same there: no `pow`

SPECIAL: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2}


def gpt2() -> transformers.PreTrainedModel:
    """Reorders and widens its scores in a region that is off."""
    config = transformers.GPT2Config(
        vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4,
        reorder_and_upcast_attn=True, attn_implementation="eager", activation_function="relu",
        **SPECIAL,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def nemotron() -> transformers.PreTrainedModel:
    """Casts the inputs of its layer norms itself, in a region that is off."""
    config = transformers.NemotronConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
        attn_implementation="eager", hidden_act="relu", **SPECIAL,
    )  # fmt: skip
    return transformers.NemotronForCausalLM(config)


class Wrapped(nn.Module):
    """A model whose owner wrote a region around it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        with torch.autocast(ids.device.type, dtype=BFLOAT16):
            out: Tensor = self.model(ids, use_cache=False).logits
        return out


@pytest.mark.parametrize("make", [gpt2, nemotron])
def test_models_of_transformers_run_as_under_cpu_autocast(
    make: Callable[[], transformers.PreTrainedModel],
) -> None:
    module, seen = Wrapped(make()), list[str]()

    def note(_: nn.Module, args: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor):
            seen.append(str(first.dtype).removeprefix("torch."))

    leaves = [part for part in module.modules() if not [*part.children()]]
    hooks = [part.register_forward_hook(note) for part in leaves]
    ids = torch.arange(12).reshape(2, 6)
    torch.set_autocast_enabled("cuda", True)  # which models ask for on a CUDA device
    try:
        module.eval()(ids)
    finally:
        torch.set_autocast_enabled("cuda", False)
    for hook in hooks:
        hook.remove()
    trace = llmsim.trace(module, inputs=ids).trace
    tensors = trace.tensors
    paths = {name for name, part in module.named_modules() if not [*part.children()]}
    found = [
        tensors[operator.outputs[0]].dtype
        for operator in trace.operators
        if operator.path in paths and operator.outputs
    ]
    assert found == seen
    assert {"bfloat16", "float32"} == set(seen)


def test_a_region_that_a_module_makes_when_it_is_built_acts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Half(transformers.models.llama.modeling_llama.LlamaMLP):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.region = torch.autocast("cuda", dtype=FLOAT16)

        def forward(self, x: Tensor) -> Tensor:
            with self.region:
                return super().forward(x)

    monkeypatch.setattr(transformers.models.llama.modeling_llama, "LlamaMLP", Half)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=4, dtype="float32", architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    trace = llmsim.trace(config, context=8).trace
    inner = [
        trace.tensors[operator.outputs[0]].dtype
        for operator in trace.operators
        if operator.path.endswith("_proj")
    ]
    assert inner == (["float32"] * 4 + ["float16"] * 3) * 3


# memory


class Stack(nn.Module):
    """Equal layers in one region, or in one each."""

    def __init__(self, *, is_one: bool, keeps: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(6))
        self.is_one, self.keeps = is_one, keeps

    def region(self) -> Any:
        return torch.autocast("cuda", dtype=BFLOAT16, cache_enabled=self.keeps)

    def forward(self, x: Tensor) -> Tensor:
        with self.region() if self.is_one else nullcontext():
            for layer in self.layers:
                with self.region():
                    x = layer(x)
        return x


@pytest.mark.parametrize(
    ("is_one", "keeps", "casts_alive"), [(True, True, 6), (True, False, 1), (False, True, 1)]
)
def test_casts_fill_memory_until_their_region_ends(
    *, is_one: bool, keeps: bool, casts_alive: int
) -> None:
    module = Stack(is_one=is_one, keeps=keeps)
    report = llmsim.trace(module, inputs=torch.ones(1, 64, dtype=BFLOAT16))
    of_cast = 2 * 64 * 64
    activations = report.memory.loc["activations", "bytes"]
    small = 4 * 512  # hidden states, in the blocks of the allocator
    assert of_cast * casts_alive <= activations <= of_cast * casts_alive + small
