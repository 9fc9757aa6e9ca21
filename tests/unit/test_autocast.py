"""Autocast on meta: what torch's autocast does to the same calls on CUDA."""

import re
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from torch.overrides import _get_current_function_mode_stack
from torch.testing._internal.autocast_test_lists import AutocastTestLists
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from llmsim_magic.capture.autocast.autocast import AutocastMode
from llmsim_magic.capture.autocast.autocast_policies import POLICIES
from llmsim_magic.capture.configs.resolve import ConfigSource
from llmsim_magic.capture.meta.evaluation_modes import evaluating_partially
from llmsim_magic.capture.models.meta_model import from_config
from llmsim_magic.capture.train.step import run_step
from llmsim_magic.records.trace.training import Training
from llmsim_magic.records.trace.workload import Workload
from tests.helpers import small_models

BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32
LISTS = AutocastTestLists("cpu")  # of torch's own tests of CUDA autocast


@contextmanager
def autocast_on_meta() -> Iterator[None]:
    """Let regions act on tensors on meta."""
    mode = AutocastMode()
    with mode.following_regions(), mode:
        yield


@contextmanager
def autocasting(dtype: torch.dtype) -> Iterator[None]:
    """As `torch.autocast("cuda", dtype)` on a CUDA device."""
    stack = _get_current_function_mode_stack()
    is_followed = any(isinstance(mode, AutocastMode) for mode in stack)
    with nullcontext() if is_followed else autocast_on_meta(), torch.autocast("cpu", dtype):
        yield


def meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, dict):
        return {name: meta(item) for name, item in value.items()}
    return type(value)(map(meta, value)) if isinstance(value, (tuple, list)) else value


def empty(*shape: int, dtype: torch.dtype = FLOAT32, requires_grad: bool = False) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=requires_grad)


class NotedCasts(TorchDispatchMode):
    """Notes the casts that run."""

    def __init__(self) -> None:
        super().__init__()
        self._casts: list[Any] = []

    @property
    def count(self) -> int:
        return len(self._casts)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            self._casts.append(weakref.ref(out.untyped_storage()))
        return out

    def living(self) -> list[bool]:
        """Whether each cast made so far is alive."""
        return [storage() is not None for storage in self._casts]


def run_backward(loss: Tensor) -> None:
    """Backward with the function modes on, as in a traced step."""
    gradient = torch.ones_like(loss)
    _engine_run_backward((loss,), (gradient,), False, False, (), True, True)


# which operators


def registered() -> set[str]:
    """The operators that CUDA autocast of the installed torch acts on."""
    return set(torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCUDA"))


def header_policies() -> dict[str, str]:
    """The policies in the header that the installed torch was built from."""
    path = Path(torch.__file__).parent / "include/ATen/autocast_mode.h"
    lists = re.findall(r"#define AT_FORALL_(\w+)\(_\)(.*?)\n\n", path.read_text(), re.DOTALL)
    found = {}
    for macro, body in lists:
        for name, overload in re.findall(r"^  _\((\w+)(?:, (\w+))?\)", body, re.MULTILINE):
            found[f"{name}.{overload}" if overload else name] = macro
        for name in re.findall(r'"([\w.]+)"', body):
            found[name] = macro
    return found


def test_policies_are_those_of_the_header_of_torch() -> None:
    macros = {
        "lower_precision": "LOWER_PRECISION_FP",
        "float32": "FP32",
        "float32_by_argument": "FP32_SET_OPT_DTYPE",
        "float32_by_overload": "DIFFERENT_REDISPATCH_SIGNATURE",
        "promote": "PROMOTE",
    }
    header = header_policies()
    of_macros = {name for name, macro in header.items() if macro in macros.values()}
    assert len(of_macros) > 100
    differing = {
        name: header[name]
        for name in of_macros
        if macros.get(POLICIES.get(name, "")) != header[name]
    }
    assert not differing


def test_every_operator_that_cuda_autocasts_has_a_policy() -> None:
    without = {name.removeprefix("aten::") for name in registered()} - POLICIES.keys()
    assert without <= {"_cudnn_rnn"}  # which `torch._VF.lstm` calls on CUDA alone


# dtypes of single operators, by the lists of torch's tests

MATMULS = ("torch_fp16", "nn_fp16", "linalg_fp16", "methods_fp16")
REDUCTIONS = ("torch_fp32", "nn_fp32", "methods_fp32")
# Of the entry for einsum, the equation does not fit the matrices; the others have no meta kernel
# in every torch that is supported.
UNUSABLE = {"einsum", "_convolution", "cudnn_convolution", "cudnn_convolution_transpose", "pdist"}


def cases(*names: str) -> list[Any]:
    return [
        pytest.param(name, *case, id=f"{name}-{case[0]}-{number}")
        for name in names
        for number, case in enumerate(getattr(LISTS, name))
        if case[0] not in UNUSABLE
    ]


def result_dtype(name: str, op: str, args: Any, keywords: Any, dtype: torch.dtype) -> Any:
    place: Any = {"nn": torch._C._nn, "methods": Tensor}.get(name.partition("_")[0], torch)
    called = getattr(place, op, None) or getattr(torch.linalg, op.removeprefix("linalg_"), None)
    if called is None:
        called = getattr(torch.ops.aten, op)
    with autocasting(dtype):
        output = called(*meta(args), **keywords)
    return output[0].dtype if isinstance(output, tuple) else output.dtype


@pytest.mark.filterwarnings("ignore:torch.chain_matmul is deprecated")
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16])
@pytest.mark.parametrize(("name", "op", "args"), cases(*MATMULS))
def test_matmuls_run_in_the_lower_precision(
    name: str, op: str, args: Any, dtype: torch.dtype
) -> None:
    assert result_dtype(name, op, args, {}, dtype) is dtype


@pytest.mark.parametrize("case", [each.values for each in cases(*REDUCTIONS)], ids=itemgetter(1))
def test_sums_and_losses_run_in_float32(case: Any) -> None:
    name, op, args, *keywords = case
    if op == "rms_norm" and "aten::rms_norm" not in registered():
        pytest.skip("this torch has no policy for rms_norm")
    assert result_dtype(name, op, args, *(keywords or [{}]), FLOAT16) is FLOAT32


@pytest.mark.filterwarnings("ignore:Using torch.cross without")
@pytest.mark.parametrize(("name", "op", "args"), cases("torch_need_autocast_promote"))
def test_operators_of_two_dtypes_run_in_the_wider(name: str, op: str, args: Any) -> None:
    assert result_dtype(name, op, args, {}, FLOAT16) is FLOAT32


@pytest.mark.parametrize(
    ("op", "args", "expected"),
    [
        pytest.param(*case, id=case[0])
        for case in LISTS.torch_expect_builtin_promote
        if case[0] != "equal"  # returns a value
    ],
)
def test_operators_that_promote_themselves_still_do(
    op: str, args: Any, expected: torch.dtype
) -> None:
    assert result_dtype("torch", op, args, {}, FLOAT16) is expected


def test_a_third_dtype_cannot_be_promoted() -> None:
    with autocasting(BFLOAT16), pytest.raises(RuntimeError, match="Unexpected floating ScalarType"):
        torch.dot(empty(3, dtype=FLOAT16), empty(3, dtype=BFLOAT16))


def test_an_explicit_dtype_is_respected() -> None:
    x = empty(2, 3, dtype=BFLOAT16)
    with autocasting(BFLOAT16):
        assert x.softmax(-1, dtype=torch.float64).dtype is torch.float64
        assert x.softmax(-1, BFLOAT16).dtype is BFLOAT16
        assert x.sum(dtype=BFLOAT16).dtype is BFLOAT16
        assert torch.cumsum(x, 0, dtype=FLOAT16).dtype is FLOAT16
        assert x.norm(dtype=torch.float64).dtype is torch.float64
        assert x.softmax(-1).dtype is x.sum().dtype is x.norm().dtype is FLOAT32


def test_float64_and_integers_are_not_cast() -> None:
    wide, whole = empty(2, 2, dtype=torch.float64), empty(2, 2, dtype=torch.int64)
    with autocasting(BFLOAT16):
        assert (wide @ wide).dtype is torch.float64
        assert wide.exp().dtype is wide.sum().dtype is wide.norm().dtype is torch.float64
        assert whole.sum().dtype is torch.int64


def test_calls_in_place_or_into_a_tensor_are_not_cast() -> None:
    x, out = empty(2, 2), empty(2, 2)
    with autocasting(BFLOAT16):
        assert torch.mm(x, x, out=out).dtype is FLOAT32
        assert empty(2, 2, dtype=BFLOAT16).exp_().dtype is BFLOAT16


def test_a_loss_that_is_unsafe_to_autocast_is_refused() -> None:
    with autocasting(BFLOAT16), pytest.raises(RuntimeError, match="unsafe to autocast"):
        nn.BCELoss()(empty(2), empty(2))


# functions of torch that call other operators, as CPU autocast runs them where its lists agree

LABELS = torch.zeros(2, dtype=torch.int64)
COMPOSITES: dict[str, Callable[[Any, Tensor], Any]] = {
    "linear": lambda m, x: m.linear(x),
    "matmul operator": lambda m, x: x @ x.mT,
    "matmul method": lambda m, x: x.matmul(x.mT),
    "einsum": lambda m, x: torch.einsum("bti,bsi->bts", x, x),
    "conv by name": lambda m, x: F.conv1d(x, x[..., :3], padding="same"),
    "conv": lambda m, x: F.conv1d(x, x),
    "baddbmm": lambda m, x: torch.baddbmm(x @ x.mT, x, x.mT),
    "multi-head attention": lambda m, x: m.attention(x, x, x)[0],
    "attention": lambda m, x: F.scaled_dot_product_attention(x, x, x),
    "masked attention": lambda m, x: F.scaled_dot_product_attention(x, x, x, x @ x.mT),
    "cross entropy": lambda m, x: F.cross_entropy(m.linear(x)[:, 0], LABELS.to(x.device)),
    "smoothed": lambda m, x: F.cross_entropy(
        m.linear(x)[:, 0], LABELS.to(x.device), label_smoothing=0.1
    ),
    "mse": lambda m, x: F.mse_loss(m.linear(x), x),
    "bilinear": lambda m, x: F.bilinear(x, x, m.bilinear.weight, m.bilinear.bias),
    "gelu": lambda m, x: F.gelu(m.linear(x)),
    "residual": lambda m, x: m.linear(x) + x,
    "concatenated": lambda m, x: torch.cat([m.linear(x), x]),
    "encoder layer": lambda m, x: m.encoder(x),
    "vmap of linear": lambda m, x: torch.vmap(m.linear)(x),
    "vmap of matmul": lambda m, x: torch.vmap(lambda y: y @ y.mT)(x),
    "vmap of sum": lambda m, x: torch.vmap(lambda y: (y @ y.mT).float().sum())(x),
    "functional call": lambda m, x: torch.func.functional_call(
        m.linear, dict(m.linear.named_parameters()), (x,)
    ),
}


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.bilinear = nn.Bilinear(8, 8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


@pytest.mark.parametrize("name", COMPOSITES)
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16])
def test_composites_are_as_under_cpu_autocast(name: str, dtype: torch.dtype) -> None:
    composite, parts, x = COMPOSITES[name], Parts(), torch.randn(2, 5, 8)
    with torch.autocast("cpu", dtype):
        expected = composite(parts, x).dtype
    with autocasting(dtype):
        assert composite(parts.to("meta"), x.to("meta")).dtype is expected


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: F.interpolate(x, scale_factor=2, mode="linear"), FLOAT32),
        (lambda x: F.interpolate(x, scale_factor=2, mode="nearest"), FLOAT32),
        (lambda x: F.normalize(x), FLOAT32),
        (lambda x: torch.linalg.norm(x, dim=-1), FLOAT32),
        (lambda x: F.layer_norm(x, (8,)), FLOAT32),
        (lambda x: F.group_norm(x, 1), FLOAT32),
        (lambda x: F.pairwise_distance(x, x), FLOAT32),
        (lambda x: F.cross_entropy(x[0], x[0]), FLOAT32),
        (lambda x: F.nll_loss(x[:, 0], LABELS.to("meta")), FLOAT32),
        (lambda x: F.instance_norm(x), BFLOAT16),
        (lambda x: F.silu(x), BFLOAT16),
        (lambda x: x.mean(), BFLOAT16),
        (lambda x: x**2, FLOAT32),
        (lambda x: 2**x, FLOAT32),
        (lambda x: x.square(), FLOAT32),  # calls `pow`
        (lambda x: F.multi_head_attention_forward(*attention_arguments(x))[1], FLOAT32),
    ],
)
def test_functions_of_lower_precision(
    function: Callable[[Tensor], Tensor], expected: torch.dtype
) -> None:
    with autocasting(BFLOAT16):
        assert function(empty(2, 5, 8, dtype=BFLOAT16)).dtype is expected


def attention_arguments(x: Tensor) -> tuple[Any, ...]:
    """Self-attention of width 8 with one head, which returns its scores: their softmax."""
    weight, bias = empty(24, 8), empty(24)
    return x, x, x, 8, 1, weight, bias, None, None, False, 0.0, empty(8, 8), empty(8)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: torch.einsum("bti->bit", x), BFLOAT16),
        (lambda x: torch.inner(x, x), FLOAT32),  # calls `tensordot`, which promotes
        (lambda x: torch.outer(x[0, 0], x[0, 0]), FLOAT32),
        (lambda x: F.cosine_similarity(x, x), FLOAT32),
        (lambda x: x + x.to(BFLOAT16), FLOAT32),
        (lambda x: F.embedding(LABELS.to("meta"), x[0]), FLOAT32),
    ],
)
def test_functions_of_float32(function: Callable[[Tensor], Tensor], expected: torch.dtype) -> None:
    with autocasting(BFLOAT16):
        assert function(empty(2, 5, 8)).dtype is expected


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_run_in_float16_as_by_cudnn(layer: type[nn.RNNBase]) -> None:
    recurrent = layer(8, 4).to("meta")
    with evaluating_partially(with_gradients=True), autocasting(BFLOAT16):
        assert recurrent(empty(3, 2, 8))[0].dtype is FLOAT16


# casts that are kept


def test_a_parameter_is_cast_once_in_the_outermost_region() -> None:
    linear, x = nn.Linear(4, 4, device="meta"), empty(2, 4, dtype=BFLOAT16)
    with NotedCasts() as noted, autocasting(BFLOAT16):
        linear(x)
        with autocasting(BFLOAT16), torch.autocast("cpu", BFLOAT16):
            linear(x)
        linear(x)
    assert noted.count == 2  # weight and bias
    with NotedCasts() as again, autocasting(BFLOAT16):
        linear(x)
    assert again.count == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: empty(4, 4),
        lambda: empty(4, 4, requires_grad=True) * 2,
        lambda: empty(4, 4, requires_grad=True).view(4, 4),
        lambda: empty(4, 4, requires_grad=True, dtype=FLOAT16),
    ],
    ids=["no gradient", "no leaf", "view", "no float32"],
)
def test_other_tensors_are_cast_at_each_use(make: Callable[[], Tensor]) -> None:
    weight, x = make(), empty(2, 4, dtype=BFLOAT16)
    with NotedCasts() as noted, autocasting(BFLOAT16):
        F.linear(x, weight)
        F.linear(x, weight)
    assert noted.count == 2


def test_without_its_cache_autocast_casts_at_each_use() -> None:
    linear, x = nn.Linear(4, 4, bias=False, device="meta"), empty(2, 4)
    uncached = torch.autocast("cpu", BFLOAT16, cache_enabled=False)
    with NotedCasts() as noted, autocasting(BFLOAT16), uncached:
        linear(x)
        linear(x)
    assert noted.count == 4


def test_casts_end_with_the_region_unless_backward_needs_them() -> None:
    linear, x = nn.Linear(4, 4, device="meta"), empty(2, 4, dtype=BFLOAT16)
    with NotedCasts() as noted:
        with autocasting(BFLOAT16):
            linear(x)
            assert noted.living() == [True, True]
        assert noted.living() == [False, False]
        with autocasting(BFLOAT16):
            out = linear(x.requires_grad_())
        assert noted.living()[2:] == [True, False]  # of the weight alone
        run_backward(out.sum())
        assert noted.living()[2:4] == [False, False]
    gradient = linear.weight.grad
    assert gradient is not None
    assert gradient.dtype is FLOAT32


# regions


def test_a_region_that_is_off_casts_nothing() -> None:
    linear, x = nn.Linear(4, 4, device="meta"), empty(2, 4)
    with autocasting(BFLOAT16):
        for device in ("cpu", "cuda"):
            with torch.autocast(device, enabled=False):
                assert linear(x).dtype is FLOAT32
                assert not torch.is_autocast_enabled()
                assert F.scaled_dot_product_attention(x, x, x).dtype is FLOAT32
                with torch.autocast("cpu", FLOAT16):
                    assert (x @ x.T).dtype is FLOAT16
            assert linear(x).dtype is BFLOAT16


def test_model_code_that_asks_sees_autocast() -> None:
    from transformers.utils.generic import maybe_autocast

    def turned_off(tensor: Tensor) -> torch.dtype:
        kind = tensor.device.type
        with maybe_autocast(device_type=kind, enabled=False):
            return (tensor @ tensor).dtype

    def asked(tensor: Tensor) -> torch.dtype | None:
        kind = tensor.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None

    def cast(tensor: Tensor) -> torch.dtype:
        kind = tensor.device.type
        return torch.amp.autocast_mode._cast((tensor,), kind, torch.get_autocast_dtype(kind))[
            0
        ].dtype

    def own_kind(tensor: Tensor) -> str:
        return tensor.device.type

    x = empty(2, 2)
    with autocasting(BFLOAT16):
        assert turned_off(x) is FLOAT32
        assert asked(x) is cast(x) is BFLOAT16
        assert torch.is_autocast_enabled()
        assert torch.get_autocast_dtype("cuda") is BFLOAT16
        assert own_kind(x) == "meta"


def test_autocast_is_off_again_after_an_error() -> None:
    def state() -> Any:
        stack = [type(mode) for mode in _get_current_function_mode_stack()]
        devices = ("cpu", "cuda", "ipu", "xpu")
        return stack, [
            (torch.is_autocast_enabled(each), torch.get_autocast_dtype(each)) for each in devices
        ]

    linear, x, before = nn.Linear(4, 4, device="meta"), empty(2, 4), state()
    noted = NotedCasts()

    def fail() -> None:
        with noted, autocast_on_meta(), autocasting(FLOAT16):
            linear(x)
            with torch.autocast("cpu", enabled=False):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert state() == before
    assert torch.autocast_increment_nesting() == 1
    assert torch.autocast_decrement_nesting() == 0
    assert linear(x).dtype is FLOAT32
    assert not any(noted.living())


def test_the_callers_own_autocast_is_as_before() -> None:
    x = torch.ones(2, 2)
    with torch.autocast("cpu", BFLOAT16), torch.autocast("cpu", FLOAT16):
        with autocasting(BFLOAT16):
            assert (x.to("meta") @ x.to("meta")).dtype is BFLOAT16
        assert (x @ x).dtype is FLOAT16
        assert (x.to("meta") @ x.to("meta")).dtype is FLOAT32


def test_other_threads_are_not_cast() -> None:
    found: list[torch.dtype] = []
    x = empty(2, 2)
    with autocasting(BFLOAT16):
        thread = threading.Thread(target=lambda: found.append((x @ x).dtype))
        thread.start()
        thread.join()
    assert found == [FLOAT32]


# checkpointing


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.norm(x)).relu()


# A layer called without a positional tensor: torch takes its device for CUDA.
@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("how", ["reentrant", "not reentrant", "by keyword"])
def test_recomputed_layers_run_in_the_same_precision(how: str) -> None:
    block, x = Block().to("meta"), empty(2, 8, requires_grad=True)
    seen: list[Any] = []
    block.up.register_forward_hook(
        lambda *given: seen.append((given[-1].dtype, torch.is_autocast_enabled()))
    )
    with autocast_on_meta():
        with autocasting(BFLOAT16):
            if how == "by keyword":
                out = checkpoint(block, x=x, use_reentrant=False)
            else:
                out = checkpoint(block, x, use_reentrant=how == "reentrant")
        run_backward(out.sum())
        assert not torch.is_autocast_enabled("ipu")
    assert seen == [(BFLOAT16, True)] * 2
    gradient = block.up.weight.grad
    assert gradient is not None
    assert gradient.dtype is FLOAT32


def test_casts_of_a_recomputed_layer_end_with_its_region() -> None:
    class Unneeded(Block):
        """Backward needs no cast of the weight."""

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                bias = self.up(x)
            return x * x + bias

    block, x = Unneeded().to("meta"), empty(2, 8, requires_grad=True)
    alive: list[list[bool]] = []
    with autocast_on_meta(), NotedCasts() as noted:
        with autocasting(BFLOAT16):
            out = checkpoint(block, x, use_reentrant=False)
            alive.append(noted.living())
        alive.append(noted.living())
        x.register_hook(lambda gradient: alive.append(noted.living()))
        run_backward(out.sum())
    # In the region, the casts of weight, bias and input are kept: all are leaves.
    assert alive == [[True] * 3, [False] * 3, [False] * 6]


# whole models


@contextmanager
def noted_dtypes(model: nn.Module) -> Iterator[dict[str, Any]]:
    """The dtypes of what each module returns."""
    found: dict[str, Any] = {}

    def note(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            values = output if isinstance(output, (tuple, list)) else [output]
            found[path] = [value.dtype for value in values if isinstance(value, Tensor)]

        return hook

    hooks = [module.register_forward_hook(note(path)) for path, module in model.named_modules()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


# What CUDA runs in float32 and the CPU does not: `pow` inside GPT-2's activation, and a layer norm
# of an activation.
IN_FLOAT32 = {
    "gpt2": ("transformer.h.0.mlp.act", "transformer.h.1.mlp.act"),
    "bert": ("cls.predictions.transform", "cls.predictions.transform.LayerNorm"),
}


@pytest.mark.parametrize("name", ["qwen3", "llama", "gpt2", "bert", "t5", "mixtral", "gemma2"])
def test_modules_return_what_they_do_under_cpu_autocast(name: str) -> None:
    real, traced = small_models.build(name).train(), small_models.build(name, "meta").train()
    inputs = small_models.prefill_inputs(name, real)
    if name == "t5":
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with noted_dtypes(real) as expected, torch.autocast("cpu", BFLOAT16):
        real(**inputs, use_cache=False)
    with (
        noted_dtypes(traced) as found,
        evaluating_partially(with_gradients=True),
        autocasting(BFLOAT16),
    ):
        traced(**meta(inputs), use_cache=False)
    assert found == expected | {path: [FLOAT32] for path in IN_FLOAT32.get(name, ())}
    assert [BFLOAT16] in found.values()


def freed_after_loss(name: str, *, replay: bool) -> list[int]:
    """The sizes of what a training step frees once its forward has ended."""
    config = small_models.CONFIGS[name]()
    config.num_hidden_layers = 4  # of which the last two are replayed
    meta_model = from_config(ConfigSource(name, config, "a test"), dtype="float32")
    meta_model.module.train()
    workload = Workload(phase="train", batch=2, context=8)
    trace = run_step(meta_model, workload, Training(precision="amp"), replay=replay)
    record = trace.recorded
    loss = next(each for each in record.kernels if each.name == "aten.nll_loss_forward.default")
    return sorted(record.storages[number].nbytes for number in loss.frees)


@pytest.mark.parametrize("name", ["gpt2", "bert", "opt"])
def test_casts_of_replayed_layers_end_as_those_of_layers_that_run(name: str) -> None:
    """Backward needs no cast of a bias: it ends with the region, after the loss."""
    run = freed_after_loss(name, replay=False)
    assert len(run) > 4 * 4  # the biases of four layers
    assert freed_after_loss(name, replay=True) == run
