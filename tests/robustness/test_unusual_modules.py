"""What odd modules ended in before it was mended: one small case for each cause."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import llmsim_magic as llmsim
from llmsim_magic.capture.meta import partial_evaluation
from llmsim_magic.simulate.report import Report
from tests.helpers import small_models
from tests.helpers.cache_names import cache_keyword, cache_of
from tests.helpers.global_state import assert_state_unchanged
from tests.helpers.modules import module_kinds
from tests.helpers.modules.arguments import INPUTS
from tests.helpers.modules.forwards import BODIES
from tests.helpers.modules.valid_modules import SOUND, Many, _inference, linear, with_forward
from tests.helpers.outcomes import check_outcome
from tests.helpers.real_forward import really_run

accelerate = pytest.importorskip("accelerate")
peft = pytest.importorskip("peft")

X = torch.rand(2, 6, 8)


def error_line(module: nn.Module, inputs: Any = X) -> str:
    with assert_state_unchanged(module):
        line = check_outcome(lambda: llmsim.trace(module, inputs=inputs))
    assert isinstance(line, str)
    return line


# loops that only data ends


@pytest.mark.parametrize(
    "name", ["until", "while not", "while number", "until token", "until list", "until shorter"]
)
def test_a_loop_that_only_data_ends_is_refused_with_its_line(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial_evaluation, "MAX_ASSUMPTIONS", 50)
    line = error_line(with_forward(BODIES[name])())
    assert "forwards.py:" in line
    assert "depends on the data more than 50 times" in line


def test_a_loop_that_never_ends_is_refused_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_evaluation, "MAX_READS", 50)

    class Waits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("left", torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            while self.left.item() > 0:
                x = x + 1
            return x

    line = error_line(Waits())
    assert "test_unusual_modules.py:" in line
    assert "read a known value more than 50 times" in line


def test_many_parts_may_each_ask_for_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_evaluation, "MAX_ASSUMPTIONS", 50)

    class Asks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.sum() > 0 else x

    module = nn.Sequential(*(Asks() for _ in range(60)))
    report = llmsim.trace(module, inputs=X)
    assert report.trace.notes[-1].endswith("(in 60 modules)")


# what a forward raises


class Speechless(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


def test_an_exception_that_cannot_be_told_is_named() -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        raise Speechless

    assert error_line(with_forward(body)()).endswith("Speechless: no message")


# threads


def test_modules_that_run_in_a_thread_are_not_left_out_in_silence() -> None:
    line = error_line(with_forward(BODIES["thread"])())
    assert line.startswith("lin runs in a thread")


# copies


def test_a_part_that_hands_itself_over_as_its_copy_gets_no_hooks_of_ours() -> None:
    assert "its copy" in error_line(nn.Sequential(linear(), module_kinds.KINDS["keeps"]()))


@pytest.mark.parametrize("kind", ["keeps", "gives nothing"])
def test_a_copy_that_is_none_is_refused(kind: str) -> None:
    assert "its copy" in error_line(module_kinds.KINDS[kind]())


@pytest.mark.parametrize(
    "kind",
    [
        "contains itself",
        "unmade",
        "unequal",
        "knows",
        "config that raises",
        "eval that raises",
        "modules that raise",
        "odd modules",
        "lazy",
    ],
)
def test_a_module_whose_own_code_fails_while_it_is_copied_is_one_line(kind: str) -> None:
    assert "cannot be copied without its weights" in error_line(module_kinds.KINDS[kind]())


def test_a_name_that_raises_or_cannot_be_shown_is_the_classs_name_in_one_line() -> None:
    assert module_kinds.KINDS["name that raises"]()(X) is not None
    assert (
        llmsim.trace(module_kinds.KINDS["name that raises"](), inputs=X).trace.model.name == "Odd"
    )
    line = error_line(module_kinds.KINDS["odd class name"](), inputs=())
    assert line.startswith("<b>")


def test_text_that_no_encoding_takes_does_not_reach_the_record() -> None:
    module = nn.Sequential(linear())
    module[0].note = "\ud800"
    trace = llmsim.trace(module, inputs=X).trace
    assert type(trace).from_json(trace.to_json()) == trace


@pytest.mark.parametrize("kind", ["sparse weight", "csr weight", "sparse buffer"])
def test_sparse_tensors_are_not_taken_for_dense_ones(kind: str) -> None:
    assert "cannot be represented without its values" in error_line(module_kinds.KINDS[kind]())


def test_a_sparse_input_is_not_taken_for_a_dense_one() -> None:
    assert "cannot be represented without its values" in error_line(linear(), INPUTS["sparse"]())


def test_tensors_of_a_class_of_their_own_are_said_to_be_taken_for_plain_ones() -> None:
    report = llmsim.trace(module_kinds.KINDS["marked weight"](), inputs=X)
    assert any("tensors of class Marked" in note for note in report.trace.notes)


def test_what_torch_jit_compiled_is_refused_wherever_it_stands() -> None:
    module = nn.Sequential(linear(), torch.jit.script(linear()))
    assert "torch.jit compiled it" in error_line(module)
    assert "torch.jit compiled it" in error_line(torch.jit.trace(linear(), X))


# compiled parts


def test_a_compiled_part_is_traced_as_what_it_was_made_of_and_compiles_nothing() -> None:
    def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
        raise AssertionError("compiled")

    plain = nn.Sequential(linear(), nn.GELU())
    module = nn.Sequential(torch.compile(plain[0], backend=backend), plain[1])
    with assert_state_unchanged(module):
        report = llmsim.trace(module, inputs=X)
    assert report.ops.equals(llmsim.trace(plain, inputs=X).ops)


# who asks


def test_what_the_caller_holds_is_no_part_of_the_record() -> None:
    module = nn.Sequential(linear(), nn.GELU())
    wanted = llmsim.trace(module, inputs=X).trace
    mine = [torch.rand(7), torch.eye(3).to_sparse()]
    assert llmsim.trace(module, inputs=X).trace == wanted
    assert len(mine) == 2


def test_a_part_compiled_in_its_place_does_not_run_in_place_of_its_copy() -> None:
    """The copying of a parametrized module hands on what was compiled for the module itself."""
    module = SOUND["spectral norm"]()
    module.compile(backend="eager")
    with assert_state_unchanged(module):
        report = llmsim.trace(module, inputs=X)
    plain = llmsim.trace(SOUND["spectral norm"](), inputs=X)
    assert report.ops.flops.equals(plain.ops.flops)


# functions that refer to the module


def test_a_forward_put_in_the_place_of_another_runs_the_copy_and_leaves_the_module() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = linear()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.lin(x)

    module = Counts()
    old = module.forward

    def forward(x: Tensor, *, times: int = 2) -> Tensor:
        return forward(x, times=0) if times > 2 else old(x) * times

    module.forward = forward
    with assert_state_unchanged(module):
        report = llmsim.trace(module, inputs=X)
    assert module.calls == 0
    assert report.ops.params.sum() == 8 * 8 + 8
    assert report.ops.path.tolist() == ["lin", ""]


def test_a_dispatched_module_that_moves_itself_moves_its_copy() -> None:
    """Accelerate puts a function in the place of `to`, which calls that of the module itself."""
    module = accelerate.dispatch_model(
        with_forward(BODIES["to meta"])(), {"": "cpu"}, force_hooks=True
    )
    with assert_state_unchanged(module):
        check_outcome(lambda: llmsim.trace(module, inputs=X))


# layers


def test_a_layer_that_holds_one_part_thrice_is_not_taken_for_one_that_holds_it_once() -> None:
    class Runs(nn.Module):
        def __init__(self, parts: list[nn.Module]) -> None:
            super().__init__()
            self.parts = nn.ModuleList(parts)

        def forward(self, x: Tensor) -> Tensor:
            for part in self.parts:
                x = part(x)
            return x

    module = Runs([Runs([linear()]), Runs([linear()] * 3)])
    report = llmsim.trace(module, inputs=X)
    assert report.modules.calls["parts.1.parts.0"] == 3
    assert report.summary.value["flops"] == 4 * (2 * 12 * 8 * 8)


def test_a_list_of_layers_with_gaps_runs_the_layers_that_it_has() -> None:
    class Gaps(nn.Module):
        def __init__(self, *parts: nn.Module | None) -> None:
            super().__init__()
            self.parts = nn.ModuleList(parts)
            self.named = nn.ModuleDict({"one": linear(), "none": None})

        def forward(self, x: Tensor) -> Tensor:
            for part in (*self.parts, *self.named.values()):
                x = x if part is None else part(x)
            return x

    module = Gaps(linear(), None, linear(), None, Gaps(linear(), None), Gaps(None, linear()))
    with assert_state_unchanged(module):
        report = llmsim.trace(module, inputs=X)
    assert report.summary.value["flops"] == 7 * (2 * 12 * 8 * 8)
    assert report.ops.path.tolist() == [
        "parts.0",
        "parts.2",
        "parts.4.parts.0",
        "parts.4.named.one",
        "parts.5.parts.1",
        "parts.5.named.one",
        "named.one",
    ]
    assert [(each.path, each.of) for each in report.trace.replays] == [("parts.2", "parts.0")]


# inference mode


@pytest.mark.parametrize("phase", ["prefill", "decode", "train"])
def test_a_caller_in_inference_mode_gets_the_same_trace(phase: str) -> None:
    model = small_models.build("llama")
    wanted = llmsim.trace(model, context=5, phase=phase).trace
    with torch.inference_mode():
        assert llmsim.trace(model, context=5, phase=phase).trace == wanted
        config = llmsim.trace(small_models.llama(), context=6, phase=phase).trace
    assert llmsim.trace(small_models.llama(), context=6, phase=phase).trace == config


def test_layers_that_are_handed_tensors_of_inference_mode_are_each_run() -> None:
    first = with_forward(lambda self, x: _inference(self.lin, x))()
    module = nn.Sequential(first, Many(linear))
    assert llmsim.trace(module, inputs=X).summary.value["flops"] == 4 * (2 * 12 * 8 * 8)


def test_layers_that_are_handed_known_values_of_inference_mode_are_each_run() -> None:
    """Positions are computed for real, and a tensor of inference mode counts no writes."""

    class Picks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = linear()

        def forward(self, x: Tensor, positions: Tensor) -> Tensor:
            return self.lin(x)[:, positions]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Picks() for _ in range(3)])

        @torch.inference_mode()
        def forward(self, x: Tensor) -> Tensor:
            positions = torch.arange(x.shape[1])
            for layer in self.layers:
                x = layer(x, positions)
            return x

    assert llmsim.trace(Net(), inputs=X).summary.value["flops"] == 3 * (2 * 12 * 8 * 8)
    with torch.inference_mode():
        assert llmsim.trace(Net(), inputs=X).summary.value["flops"] == 3 * (2 * 12 * 8 * 8)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_forward_that_sets_inference_mode_has_the_trace_of_one_that_does_not(phase: str) -> None:
    model = small_models.build("llama")
    wanted = llmsim.trace(model, context=5, phase=phase)
    kind = type(model)
    model.__class__ = type("Frozen", (kind,), {"forward": torch.inference_mode()(kind.forward)})
    report = llmsim.trace(model, context=5, phase=phase)
    assert report.ops.drop(columns="source").equals(wanted.ops.drop(columns="source"))


# kernels


def test_a_reshape_in_place_is_a_view() -> None:
    report = llmsim.trace(
        with_forward(lambda self, x: self.lin(x).unsqueeze_(0).squeeze_(0))(), inputs=X
    )
    assert report.ops.op.tolist() == ["Linear"]
    assert report.kernels.is_view[report.kernels.kernel.str.contains("squeeze_")].all()


def test_marks_for_the_profiler_are_no_operators() -> None:
    assert llmsim.trace(nn.DataParallel(linear()), inputs=X).ops.op.tolist() == ["Linear"]


# weights that are elsewhere

OFFLOADS: dict[str, Callable[[nn.Module, Any], nn.Module]] = {
    "offload": lambda model, folder: accelerate.cpu_offload(
        model, execution_device=torch.device("cpu")
    ),
    "disk": lambda model, folder: accelerate.disk_offload(
        model, folder, execution_device=torch.device("cpu")
    ),
    "dispatch": lambda model, folder: accelerate.dispatch_model(
        model, {"": "cpu"}, force_hooks=True
    ),
}


@pytest.mark.parametrize("offload", OFFLOADS.values(), ids=OFFLOADS)
@pytest.mark.parametrize("phase", ["prefill", "decode", "train"])
def test_a_model_whose_weights_accelerate_moves_is_traced_as_one_that_holds_them(
    offload: Callable[[nn.Module, Any], nn.Module], phase: str, tmp_path: Any
) -> None:
    """Its head is tied to its embedding, which an offload takes apart."""
    wanted = llmsim.trace(small_models.build("qwen3"), context=5, phase=phase)
    model = offload(small_models.build("qwen3"), tmp_path)
    for file in tmp_path.glob("*.dat"):
        file.unlink()  # no weight is opened
    with assert_state_unchanged(model):
        report = llmsim.trace(model, context=5, phase=phase)
    assert report.ops.equals(wanted.ops)
    assert report.summary.value["parameters"] == wanted.summary.value["parameters"]
    assert any("hooks of your module were not run" in note for note in report.trace.notes)


def test_copying_an_lstm_whose_weights_are_elsewhere_leaves_its_own_list_of_them() -> None:
    """Torch's own copying of it writes the list anew, with what stands in for the weights."""
    module = accelerate.cpu_offload(SOUND["lstm"](), execution_device=torch.device("cpu"))
    before = module(X)
    with assert_state_unchanged(module):
        llmsim.trace(module, inputs=X)
    assert torch.equal(module(X), before)


# adapters

ADAPTERS: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    "dora": lambda: peft.LoraConfig(r=4, target_modules=["q_proj"], use_dora=True),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3),
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=3),
}


def adapted(name: str) -> Any:
    config = ADAPTERS[name]()
    config.task_type = "CAUSAL_LM"
    return peft.get_peft_model(small_models.build("llama"), config).eval()


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_model_with_adapters_is_traced_with_them(name: str) -> None:
    model = adapted(name)
    with assert_state_unchanged(model):
        report = llmsim.trace(model, batch=small_models.BATCH, context=small_models.CONTEXT)
    ids = small_models.tokens(model, small_models.CONTEXT)
    assert report.summary.value["flops"] == really_run(model, input_ids=ids).flops
    assert report.summary.value["parameters"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["lora", "dora", "ia3"])
def test_a_decode_step_of_a_model_with_adapters_reads_the_cache(name: str) -> None:
    model = adapted(name)
    given = {"input_ids": small_models.tokens(model, small_models.CONTEXT), "use_cache": True}
    cache = {cache_keyword(model.get_base_model()): cache_of(model(**given))}
    with assert_state_unchanged(model):
        report = llmsim.trace(
            model, phase="decode", batch=small_models.BATCH, context=small_models.CONTEXT
        )
    seen = really_run(model, input_ids=small_models.tokens(model, 1), **cache)
    assert report.summary.value["flops"] == seen.flops


@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_a_decode_step_after_a_learned_prompt_is_the_one_that_generate_makes(name: str) -> None:
    """The prompt stands in the cache, so that the base model reads the next token alone."""
    model = adapted(name)
    given = {"input_ids": small_models.tokens(model, small_models.CONTEXT), "use_cache": True}
    cache = {cache_keyword(model.base_model): cache_of(model(**given))}
    with assert_state_unchanged(model):
        report = llmsim.trace(
            model, phase="decode", batch=small_models.BATCH, context=small_models.CONTEXT
        )
    seen = really_run(model.base_model, input_ids=small_models.tokens(model, 1), **cache)
    assert report.summary.value["flops"] == seen.flops


def test_a_lock_or_a_thread_that_a_module_holds_is_one_line() -> None:
    module = linear()
    module.lock = threading.Lock()
    assert "cannot pickle" in error_line(module)


# inputs


def test_a_huge_input_of_whole_numbers_is_not_copied_out() -> None:
    ids = INPUTS["whole, expanded far"]()
    answer = check_outcome(lambda: llmsim.trace(nn.Identity(), inputs=ids))
    assert isinstance(answer, Report)


@pytest.mark.parametrize("name", ["nested", "jagged", "other: keys", "other: deep", "other: lock"])
def test_inputs_that_cannot_be_copied_are_one_line(name: str) -> None:
    assert error_line(linear(), INPUTS[name]()).startswith("inputs ")


@pytest.mark.parametrize("shape", [(0, 2, 6, 8), (2, 2, 0, 8)])
def test_causal_attention_over_nothing_skips_nothing(shape: tuple[int, ...]) -> None:
    def attend(self: Any, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)

    report = llmsim.trace(with_forward(attend)(), inputs=torch.rand(shape))
    assert report.ops.flops.tolist() == [0]
    assert report.ops.causal_skippable_flops.tolist() == [0]


@pytest.mark.parametrize("bias", [False, True])
def test_a_matmul_of_two_dtypes_is_refused_as_every_device_does(bias: bool) -> None:
    line = error_line(nn.Linear(8, 8, bias=bias), X.double())
    assert "a matmul of float32 and float64" in line


def test_autocast_may_give_a_matmul_two_dtypes() -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.lin(x.bfloat16())

    assert llmsim.trace(with_forward(body)(), inputs=X).summary.value["flops"] == 2 * 12 * 8 * 8
