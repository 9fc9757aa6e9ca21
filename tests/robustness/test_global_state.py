"""A trace leaves the model, torch and Python unchanged, however it ends."""

import copy
import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

import llmsim_magic as llmsim
from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.simulate.cache import session_cache
from tests.helpers.cache_names import cache_keyword
from tests.helpers.global_state import assert_state_unchanged, plain

transformers = pytest.importorskip("transformers")

SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 96,
    "max_position_embeddings": 64,
}


@pytest.fixture(autouse=True)
def traced_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace that is remembered would show nothing of what the one before left in the model."""
    monkeypatch.setattr(session_cache, "trace", lambda model, question, run: run())


@pytest.fixture(autouse=True)
def _no_mode_outlives_a_test() -> Iterator[None]:
    yield
    assert _get_current_function_mode_stack() == []
    assert _get_current_dispatch_mode_stack() == []


# modules to ask


class Block(nn.Module):
    """A bit of everything that a user may have in a module."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(12, 8)
        self.norm = nn.BatchNorm1d(8)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.lin = nn.Linear(8, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.emb.weight
        self.lin.bias.requires_grad_(False)
        self.register_buffer("table", torch.arange(8.0))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)
        self.plain = torch.full((8,), 2.0)
        self.notes = ["a", {"b": 1}]
        self.calls = 0
        self.seen: list[Any] = []
        self.train()
        self.norm.eval()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.notes.append("run")
        x = self.drop(self.act(self.norm(self.emb(ids))))
        self.seen.append(x)
        self.kept = x
        self.table.add_(1)
        self.scratch = torch.ones_like(self.table)
        self.register_buffer("late", self.table * 2)
        return self.head(self.lin(x) * self.plain + self.table)


class Fails(nn.Module):
    """Its inner module raises whatever it is told to, until told to no more."""

    raises: BaseException | None = None

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.inner = Raises()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(self.first(x).relu())


class Raises(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.last(x)
        if Fails.raises is not None:
            raise Fails.raises
        return y * 2


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException | None], None]:
    return lambda error: monkeypatch.setattr(Fails, "raises", error)


def _summed(output: Any) -> torch.Tensor:
    return output.sum()


FORWARD: dict[str, Any] = {}
TRAIN: dict[str, Any] = {"phase": "train", "loss": _summed}
in_both = pytest.mark.parametrize("way", [FORWARD, TRAIN], ids=["forward", "train"])
IDS = torch.tensor([1, 2, 3])
X = torch.ones(2, 4)


def small_llama() -> nn.Module:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))
    model.train()
    model.model.layers[0].eval()
    model.model.embed_tokens.weight.requires_grad_(False)
    return model


# a module that runs well


@in_both
def test_a_live_module_with_weights_is_left_exactly_as_it_was_found(way: dict[str, Any]) -> None:
    module = Block()
    module(IDS).sum().backward()
    with assert_state_unchanged(module):
        report = llmsim.trace(module, inputs=IDS, **way)
    assert len(report.ops) > 5


@in_both
def test_a_live_module_still_computes_and_learns_as_before(way: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    wanted = module(X)
    llmsim.trace(module, inputs=X, **way)
    found = module(X)
    assert torch.equal(found, wanted)
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("phase", ["prefill", "decode", "train"])
def test_a_live_huggingface_model_is_left_exactly_as_it_was_found(phase: str) -> None:
    model = small_llama()
    with assert_state_unchanged(model):
        report = llmsim.trace(model, context=5, phase=phase)
    assert len(report.ops) > 20


def test_a_sweep_leaves_a_live_model_as_it_was_found() -> None:
    model = small_llama()
    with assert_state_unchanged(model):
        llmsim.sweep(model, batch=[1, 2], context=[3, 5])


def test_the_flags_of_a_training_model_come_back_and_the_trace_is_of_inference() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    report = llmsim.trace(module, inputs=X)
    assert module.training
    assert module[1].training
    assert "aten.bernoulli_.float" not in set(report.kernels.kernel)
    assert report.ops.bytes_written.tolist() == [2 * 4 * 4, 0]


@in_both
def test_a_module_that_counts_its_own_calls_gives_the_same_trace_each_time(
    way: dict[str, Any],
) -> None:
    module = Block()
    first = llmsim.trace(module, inputs=IDS, **way).trace
    assert llmsim.trace(module, inputs=IDS, **way).trace == first
    assert module.calls == 0
    assert module.seen == []
    assert not hasattr(module, "kept")


def test_the_inputs_given_are_only_looked_at() -> None:
    class Greedy(nn.Module):
        def forward(self, x: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
            x.relu_()
            options["mask"].zero_()
            options["found"] = x
            return x * options["mask"]

    x, mask = torch.randn(3, 3), torch.ones(3, 3)
    inputs = {"x": x, "options": {"mask": mask}}
    before = plain(inputs)
    llmsim.trace(Greedy(), inputs=inputs)
    assert plain(inputs) == before


def test_a_cache_given_as_an_input_is_not_filled_or_moved() -> None:
    """The user's own cache is the user's: no meta tensor may end up in it."""
    model = small_llama().eval()
    cache = transformers.DynamicCache()
    with suppress(LlmsimError):  # to refuse such an input is legal; to change it is not
        llmsim.trace(model, inputs={"input_ids": IDS[None], cache_keyword(model): cache})
    assert cache.get_seq_length() == 0
    assert not [
        value
        for layer in cache.layers
        for value in vars(layer).values()
        if isinstance(value, torch.Tensor) and value.is_meta
    ]


# the user's own hooks


@in_both
def test_the_users_hooks_stay_and_are_not_run(way: dict[str, Any]) -> None:
    ran: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: ran.append(name)

    module = Block()
    for part in (module, module.lin):
        part.register_forward_hook(note("forward"))
        part.register_forward_hook(note("forward, keywords"), with_kwargs=True)
        part.register_forward_hook(note("always"), always_call=True)
        part.register_forward_pre_hook(note("before"))
        part.register_forward_pre_hook(note("before, keywords"), with_kwargs=True)
        part.register_full_backward_hook(note("backward"))
        part.register_full_backward_pre_hook(note("before backward"))
        part.register_state_dict_post_hook(note("state"))
        part.register_state_dict_pre_hook(note("before state"))
        part.register_load_state_dict_pre_hook(note("before load"))
        part.register_load_state_dict_post_hook(note("load"))
    module.emb.weight.register_hook(note("gradient"))
    with assert_state_unchanged(module):
        llmsim.trace(module, inputs=IDS, **way)
    assert ran == []
    module(IDS)
    assert "forward" in ran
    assert "before" in ran
    assert "always" in ran


@in_both
def test_a_hook_that_cannot_be_copied_is_left_alone(way: dict[str, Any]) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.seen: list[Any] = []

        def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
            self.seen.append(output)

    module, hook = nn.Sequential(nn.Linear(4, 4)), Recorder()
    module[0].register_forward_hook(hook)
    with assert_state_unchanged(module):
        llmsim.trace(module, inputs=X, **way)
    assert hook.seen == []


@in_both
def test_a_handle_taken_before_a_trace_still_removes_its_hook(way: dict[str, Any]) -> None:
    module = nn.Sequential(nn.Linear(4, 4))
    handle = module[0].register_forward_hook(lambda *args: None)
    llmsim.trace(module, inputs=X, **way)
    assert len(module[0]._forward_hooks) == 1
    handle.remove()
    assert len(module[0]._forward_hooks) == 0


# random numbers


class Noisy(nn.Module):
    """Draws on every generator that a forward may draw on."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.lin(x) + torch.randn_like(x)
        return y.bernoulli()


class NoisyOnTheHost(nn.Module):
    """The same with numbers drawn by torch on the CPU, or by Python."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.draw = draw

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin(x) * self.draw()


def test_a_forward_that_draws_noise_for_its_tensors_moves_no_generator() -> None:
    module = Noisy()
    with assert_state_unchanged(module):
        llmsim.trace(module, inputs=X)


@in_both
@pytest.mark.parametrize(
    "draw", [lambda: torch.rand(()).item(), random.random], ids=["torch", "python"]
)
def test_a_forward_that_draws_on_the_host_leaves_the_generator_where_it_was(
    draw: Callable[[], float], way: dict[str, Any]
) -> None:
    module = NoisyOnTheHost(draw)
    with assert_state_unchanged(module):
        llmsim.trace(module, inputs=X, **way)


# a forward that raises

RAISED = [
    (ValueError("the gate\nis shut"), ["ValueError: the gate", "is shut"]),
    (RuntimeError("shapes disagree"), ["RuntimeError: shapes disagree"]),
    (AttributeError("no such part"), ["AttributeError: no such part"]),
    (AssertionError(), ["AssertionError"]),
    (StopIteration("spent"), ["StopIteration: spent"]),
    (KeyError("missing key"), ["KeyError", "missing key"]),
    (ZeroDivisionError("x" * 5000), ["ZeroDivisionError: x"]),
]


@in_both
@pytest.mark.parametrize(("error", "words"), RAISED, ids=[type(e).__name__ for e, _ in RAISED])
def test_an_exception_of_the_forward_is_one_line_that_names_it_and_leaves_nothing(
    error: Exception,
    words: list[str],
    failing: Callable[[BaseException | None], None],
    way: dict[str, Any],
) -> None:
    module = Fails()
    wanted = llmsim.trace(module, inputs=X, **way).trace
    failing(error)
    with assert_state_unchanged(module), pytest.raises(LlmsimError) as caught:
        llmsim.trace(module, inputs=X, **way)
    line = str(caught.value)
    assert all(word in line for word in words)
    assert "Fails" in line
    assert "\n" not in line
    assert len(line) < 500
    assert caught.value.__cause__ is error
    failing(None)
    assert llmsim.trace(module, inputs=X, **way).trace == wanted


@in_both
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interrupt_goes_through_as_it_is_and_leaves_nothing(
    error: type[BaseException], failing: Callable[[BaseException | None], None], way: dict[str, Any]
) -> None:
    module = Fails()
    wanted = llmsim.trace(module, inputs=X, **way).trace
    failing(error())
    with assert_state_unchanged(module), pytest.raises(error):
        llmsim.trace(module, inputs=X, **way)
    failing(None)
    assert llmsim.trace(module, inputs=X, **way).trace == wanted


class Uncopyable:
    """An attribute whose copy raises."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __deepcopy__(self, memo: dict[int, Any]) -> "Uncopyable":
        raise self.error


@in_both
def test_a_module_that_cannot_be_copied_is_one_line_and_left_as_found(way: dict[str, Any]) -> None:
    module = nn.Sequential(nn.Linear(4, 4))
    module.extra = Uncopyable(TypeError("cannot pickle 'lock' object"))
    with (
        assert_state_unchanged(module),
        pytest.raises(LlmsimError, match="cannot pickle 'lock'") as caught,
    ):
        llmsim.trace(module, inputs=X, **way)
    assert "\n" not in str(caught.value)


@in_both
def test_an_interrupt_while_the_module_is_copied_goes_through_and_leaves_nothing(
    way: dict[str, Any],
) -> None:
    module = nn.Sequential(nn.Linear(4, 4))
    module.extra = Uncopyable(KeyboardInterrupt())
    with assert_state_unchanged(module), pytest.raises(KeyboardInterrupt):
        llmsim.trace(module, inputs=X, **way)


@pytest.mark.parametrize(
    "inputs", [torch.ones(2, 5), (), {"y": X}, (X, X, X), {"x": None}, {"x": "text"}]
)
def test_inputs_that_do_not_fit_are_one_line_and_leave_nothing(inputs: Any) -> None:
    module = nn.Sequential(nn.Linear(4, 4))
    with assert_state_unchanged(module), pytest.raises(LlmsimError) as caught:
        llmsim.trace(module, inputs=inputs)
    assert "\n" not in str(caught.value)


# modes of the user's own


class Passing(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class PassingKernels(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@in_both
@pytest.mark.parametrize("raises", [False, True], ids=["runs", "raises"])
@pytest.mark.parametrize(
    "mode",
    [
        nullcontext,
        Passing,
        PassingKernels,
        torch.no_grad,
        torch.enable_grad,
        torch.inference_mode,
        lambda: torch.device("cpu"),
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    ],
    ids=[
        "none",
        "function",
        "dispatch",
        "no_grad",
        "enable_grad",
        "inference",
        "device",
        "autocast",
    ],
)
def test_a_mode_that_the_user_is_in_still_stands_and_alone(
    mode: Callable[[], AbstractContextManager[Any]],
    raises: bool,
    failing: Callable[[BaseException | None], None],
    way: dict[str, Any],
) -> None:
    module = Fails()
    failing(ValueError("no") if raises else None)
    outcome = pytest.raises(LlmsimError) if raises else nullcontext()
    with mode(), assert_state_unchanged(module), outcome:
        llmsim.trace(module, inputs=X, **way)


# models that are kept by name


@pytest.fixture
def named(tmp_path: Path) -> str:
    """A model that the package builds itself, from a folder, and keeps for the next question."""
    config = transformers.LlamaConfig(**SMALL, architectures=["LlamaForCausalLM"])
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    return str(tmp_path)


@pytest.mark.parametrize("phase", ["prefill", "decode", "train"])
@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt()])
def test_the_next_trace_of_a_name_is_whole_after_one_that_was_cut_short(
    named: str, error: BaseException, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama import modeling_llama

    wanted = llmsim.trace(named, context=5, phase=phase).trace
    met: list[nn.Module] = []

    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        met.append(self)
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(modeling_llama.LlamaMLP, "forward", forward)
        kind = LlmsimError if isinstance(error, Exception) else type(error)
        with assert_state_unchanged(), pytest.raises(kind):
            llmsim.trace(named, context=5, phase=phase)
    assert met
    assert llmsim.trace(named, context=5, phase=phase).trace == wanted


@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt()])
def test_a_build_that_was_cut_short_leaves_nothing_and_the_next_one_is_whole(
    named: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama import modeling_llama

    def build(self: nn.Module, config: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(modeling_llama.LlamaMLP, "__init__", build)
        kind = LlmsimError if isinstance(error, Exception) else type(error)
        with (
            assert_state_unchanged(),
            pytest.raises(kind, match="boom" if kind is LlmsimError else None),
        ):
            llmsim.trace(named, context=5, dtype="bfloat16")
    with assert_state_unchanged():
        report = llmsim.trace(named, context=5, dtype="bfloat16")
    assert set(report.ops.dtype[report.ops.kind == "module"]) <= {"bfloat16", "float32"}
    assert len(report.ops) > 20


def test_a_name_gives_the_same_trace_whatever_was_asked_in_between(named: str) -> None:
    wanted = llmsim.trace(named, context=5).trace
    llmsim.trace(named, context=9, batch=3)
    llmsim.trace(named, context=7, phase="decode")
    llmsim.trace(named, context=5, attn="eager")
    llmsim.sweep(named, batch=[1], context=[2, 5])
    assert llmsim.trace(named, context=5).trace == wanted


@pytest.mark.parametrize("live", [False, True], ids=["name", "live"])
def test_a_model_that_keeps_state_between_passes_gives_the_same_trace_again(
    tmp_path: Path, live: bool
) -> None:
    """LongRoPE stores its long frequencies in the module at its first pass (Phi-3, Phi-4-mini)."""
    rope = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "rope_theta": 1e4,
        "original_max_position_embeddings": 16,
    }
    config = transformers.LlamaConfig(
        **SMALL, rope_parameters=rope, architectures=["LlamaForCausalLM"]
    )
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    model = transformers.LlamaForCausalLM(config) if live else str(tmp_path)
    first = llmsim.trace(model, context=5).trace
    assert llmsim.trace(model, context=5).trace == first


# config objects


CONFIGS = [
    lambda: transformers.LlamaConfig(**SMALL),
    lambda: transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=32),
    lambda: transformers.LlamaConfig(
        **SMALL,
        dtype="float16",
        architectures=["LlamaForCausalLM"],
        attn_implementation="eager",
        quantization_config={"quant_method": "fp8", "weight_block_size": [16, 16]},
    ),
]


@pytest.mark.parametrize("build", CONFIGS, ids=["plain", "gpt2", "quantised"])
@pytest.mark.parametrize(
    "options", [{}, {"phase": "decode"}, {"attn": "sdpa", "dtype": "bfloat16"}, {"base": True}]
)
def test_a_config_object_is_not_changed(build: Callable[[], Any], options: dict[str, Any]) -> None:
    config = build()
    before, attributes = copy.deepcopy(config.to_dict()), plain(copy.deepcopy(vars(config)))
    with assert_state_unchanged():
        llmsim.trace(config, context=5, **options)
    assert config.to_dict() == before
    assert plain(vars(config)) == attributes


def test_a_config_that_transformers_refuses_is_one_line_and_not_changed() -> None:
    config = transformers.LlamaConfig(**SMALL)
    config.hidden_act = "no such function"
    before = copy.deepcopy(config.to_dict())
    with pytest.raises(LlmsimError) as caught:
        llmsim.trace(config, context=5)
    assert "no such function" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert config.to_dict() == before
