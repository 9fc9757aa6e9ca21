"""The step of an optimizer on `meta` has the states, temporaries and kernels of a real step."""

import gc
import weakref
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.optimization import Adafactor

from llmsim_magic.capture.configs.resolve import ConfigSource
from llmsim_magic.capture.kernels.tensors import tensors_in
from llmsim_magic.capture.meta import partial_evaluation
from llmsim_magic.capture.meta.evaluation_modes import evaluating_partially
from llmsim_magic.capture.meta.isolation import isolated
from llmsim_magic.capture.meta.partial_evaluation import PartialEvaluation
from llmsim_magic.capture.models.meta_model import from_config
from llmsim_magic.capture.optimizers.host_values import take_step
from llmsim_magic.capture.optimizers.optimizers import (
    embedding_parameters,
    make_optimizer,
    state_bytes,
)
from llmsim_magic.capture.optimizers.published_optimizers import is_paged
from llmsim_magic.capture.record.recorder import Recorder
from llmsim_magic.capture.train.step import run_step
from llmsim_magic.records.errors import CannotTrace, InvalidValue
from llmsim_magic.records.trace.optimizers import OPTIMIZERS, optimizer_name
from llmsim_magic.records.trace.training import Training
from llmsim_magic.records.trace.workload import Workload
from tests.helpers import small_models
from tests.helpers.allocation_peak import Allocations

SHAPES = ((1600, 64), (64, 64), (2, 48, 32), (64, 64), (5000,), (64,), (1,))
TORCH = [name for name, said in OPTIMIZERS.items() if not said]
DTYPES = (torch.float32, torch.bfloat16)


def parameters(device: str = "meta", dtype: torch.dtype = torch.float32) -> list[Parameter]:
    made = [Parameter(torch.ones(shape, device=device, dtype=dtype)) for shape in SHAPES]
    for parameter in made:
        parameter.grad = torch.ones_like(parameter)
    return made


class Step:
    """An optimizer over parameters, stepped in the modes of an evaluation."""

    def __init__(
        self,
        name: str,
        trained: list[Parameter],
        embeddings: Collection[Parameter],
        evaluation: PartialEvaluation,
    ) -> None:
        self.evaluation, self.recorder = evaluation, Recorder({})
        with evaluation.reporting_to(self.recorder):
            self.optimizer = make_optimizer(name, trained, embeddings=embeddings)

    def take(self) -> list[str]:
        """Steps once and returns the names of the kernels."""
        first = len(self.recorder.kernels)
        with self.evaluation.reporting_to(self.recorder):
            take_step(self.optimizer, self.evaluation)
        return [call.kernel.name for call in self.recorder.kernels[first:]]


@contextmanager
def stepping(
    name: str, trained: list[Parameter], embeddings: Collection[Parameter] = ()
) -> Iterator[Step]:
    with isolated(), evaluating_partially() as evaluation:
        yield Step(name, trained, embeddings, evaluation)


def on_cpu(name: str, trained: list[Parameter]) -> Optimizer:
    """Torch's own optimizer, as a user builds it from its documentation."""
    if name == "muon":
        matrices = [each for each in trained if each.ndim == 2]
        rest = torch.optim.AdamW([each for each in trained if each.ndim != 2])
        rest.step()
        optimizer: Optimizer = torch.optim.Muon(matrices)
        optimizer.step()
        optimizer.state.update(rest.state)
        return optimizer
    kinds: dict[str, Any] = {kind.lower(): getattr(torch.optim, kind) for kind in dir(torch.optim)}
    kind, _, option = name.partition("_")
    options = {"": {}, "fused": {"fused": True}, "momentum": {"momentum": 0.9}}[option]
    optimizer = kinds[kind](trained, **options)
    optimizer.step()
    return optimizer


def real_state_bytes(optimizer: Optimizer) -> int:
    """The bytes of all states with a dimension: those without one are counters on the host."""
    return sum(each.nbytes for each in tensors_in([*optimizer.state.values()]) if each.dim())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TORCH)
def test_a_step_on_meta_keeps_the_states_that_a_real_step_keeps(
    name: str, dtype: torch.dtype
) -> None:
    real = on_cpu(name, parameters("cpu", dtype))
    with stepping(name, parameters(dtype=dtype)) as step:
        step.take()
        counters = 4 * len(SHAPES) if name == "adamw_fused" else 0  # on the device, unlike others
        assert state_bytes(step.optimizer) == real_state_bytes(real) + counters
        step.take()
        assert state_bytes(step.optimizer) == real_state_bytes(real) + counters


@pytest.mark.parametrize("name", [name for name in TORCH if not name.endswith("_fused")])
def test_the_kernels_are_those_that_torch_selects_for_a_gpu(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stepping(name, parameters()) as step:
        ours = [step.take(), step.take()]
    devices = lambda: ["cuda", "meta"]  # noqa: E731
    monkeypatch.setattr(torch_optimizer, "_get_foreach_kernels_supported_devices", devices)
    with stepping(name, parameters()) as step:
        parts = getattr(step.optimizer, "_parts", [step.optimizer])
        groups = [group for part in parts for group in part.param_groups]
        for group in groups:
            group["foreach"] = None  # torch's default: it selects at each step
        assert [step.take(), step.take()] == ours


def test_parameters_of_another_class_are_updated_one_by_one() -> None:
    class Special(Parameter):
        pass

    trained = [*parameters(), Special(torch.ones(8, device="meta"))]
    trained[-1].grad = torch.ones(8, device="meta")
    with stepping("adamw", trained) as step:
        assert not any("foreach" in kernel for kernel in step.take())


def peaks_beyond(name: str, trained: list[Parameter]) -> tuple[int, int]:
    """The most bytes that the first and the second step hold beyond those held afterwards.

    Nothing is recorded: a recorder holds each storage.
    """
    peaks = []
    with isolated(), Allocations() as seen, evaluating_partially() as evaluation:
        optimizer = make_optimizer(name, trained)
        for _ in range(2):
            seen.peak = seen.alive
            take_step(optimizer, evaluation)
            peaks.append(seen.peak - seen.alive)
        assert seen.alive == state_bytes(optimizer)
    return peaks[0], peaks[1]


@pytest.mark.parametrize(
    ("name", "temporaries"),
    [
        ("adamw", 1),  # the roots of the second moments
        ("adam", 1),
        ("adamw_fused", 0),
        ("sgd", 0),
        ("sgd_momentum", 0),
        ("adamw_8bit", 0),
        ("paged_adamw_32bit", 0),
        ("lion_8bit", 0),
    ],
)
def test_a_step_holds_temporaries_of_all_parameters_where_foreach_makes_them(
    name: str, temporaries: int
) -> None:
    trained = parameters(dtype=torch.bfloat16)
    of_all = temporaries * sum(parameter.nbytes for parameter in trained)
    assert peaks_beyond(name, trained) == (of_all, of_all)


def test_lion_holds_three_temporaries_of_one_parameter_and_the_update_before() -> None:
    trained = [Parameter(torch.ones(100, device="meta")) for _ in range(3)]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    assert peaks_beyond("lion", trained) == (4 * 400, 4 * 400)


def test_adamw_peaks_as_on_an_h100() -> None:
    """Qwen3-0.6B in bfloat16 on an H100: 2 × 1,192,099,840 bytes of states, 1 × more at the peak.

    Measured by torch 2.11's allocator in the first step: 6,071,725,056 bytes at most, and
    4,879,610,880 after it. The allocator rounds each tensor up to 512 bytes.
    """
    config = AutoConfig.for_model(
        "qwen3",
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    trained = [*model.parameters()]
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    whole = sum(parameter.nbytes for parameter in trained)
    assert whole == 2 * 596_049_920
    assert peaks_beyond("adamw", trained) == (whole, whole)
    measured = 6_071_725_056 - 4_879_610_880
    assert whole <= measured <= whole + 512 * len(trained)


def bytes_by_bitsandbytes(states: int, bits: int, *, paged: bool) -> int:
    """What `Optimizer1State` and `Optimizer2State` of bitsandbytes allocate on the device."""
    total, has_codebooks = 0, False
    for parameter in parameters():
        elements = parameter.numel()
        is_quantized = bits == 8 and elements >= 4096
        if not paged or elements < 100_000:
            total += states * elements * (1 if is_quantized else 4)
        if is_quantized:
            total += states * 4 * ((elements + 255) // 256)
            has_codebooks = True
    return total + has_codebooks * states * 256 * 4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("adamw_8bit", bytes_by_bitsandbytes(2, 8, paged=False)),
        ("paged_adamw_8bit", bytes_by_bitsandbytes(2, 8, paged=True)),
        ("paged_adamw_32bit", bytes_by_bitsandbytes(2, 32, paged=True)),
        ("lion_8bit", bytes_by_bitsandbytes(1, 8, paged=False)),
    ],
)
def test_states_of_bitsandbytes_have_their_published_sizes(
    name: str, expected: int, dtype: torch.dtype
) -> None:
    with stepping(name, parameters(dtype=dtype)) as step:
        step.take()
        assert state_bytes(step.optimizer) == expected


def test_lion_keeps_one_state_in_the_dtype_of_the_parameter() -> None:
    trained = parameters(dtype=torch.bfloat16)
    with stepping("lion", trained) as step:
        step.take()
        assert state_bytes(step.optimizer) == sum(parameter.nbytes for parameter in trained)


@pytest.mark.parametrize("dtype", DTYPES)
def test_adafactor_of_transformers_keeps_the_states_of_a_real_step(dtype: torch.dtype) -> None:
    real = Adafactor(parameters("cpu", dtype), lr=1e-3, scale_parameter=False, relative_step=False)
    real.step()
    norms = 4 * len(SHAPES)  # `RMS`, which has no dimension and is on the device
    with stepping("transformers_adafactor", parameters(dtype=dtype)) as step:
        step.take()
        assert state_bytes(step.optimizer) == real_state_bytes(real) + norms
        keys = {frozenset(state) for state in real.state.values()}
        assert {frozenset(state) for state in step.optimizer.state.values()} == keys


def test_a_kernel_of_bitsandbytes_is_recorded_with_what_it_reads_and_writes() -> None:
    trained = [Parameter(torch.ones(64, 100, device="meta", dtype=torch.bfloat16))]
    trained[0].grad = torch.ones_like(trained[0])
    with stepping("adamw_8bit", trained) as step:
        step.take()
        assert step.take() == ["bitsandbytes.optimizer_update_8bit_blockwise.default"]
        table = step.recorder.table.tensors
        kernel = step.recorder.kernels[-1].kernel
        sizes = [(table[number].dtype, table[number].shape) for number in kernel.inputs]
    blocks, codebook = ("float32", (25,)), ("float32", (256,))
    state, half = ("uint8", (64, 100)), ("bfloat16", (64, 100))
    written = [half, state, state, blocks, blocks]
    assert sizes == [*written, half, codebook, codebook]
    assert kernel.writes == kernel.inputs[:5]


class OnDevice(Recorder):
    """Refuses kernels that no device runs."""

    def kernel(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        assert any(tensor.is_meta for tensor in tensors_in((args, kwargs, out))), func
        super().kernel(func, args, kwargs, out)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_kernels_on_step_counters_of_the_host_are_not_recorded(name: str) -> None:
    trained, recorder = parameters(), OnDevice({})
    with isolated(), evaluating_partially() as evaluation, evaluation.reporting_to(recorder):
        optimizer = make_optimizer(name, trained)
        take_step(optimizer, evaluation)
        take_step(optimizer, evaluation)
    assert recorder.kernels
    assert not evaluation.assumed


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_reads_each_gradient_and_writes_none(name: str) -> None:
    trained = parameters()
    gradients = [parameter.grad for parameter in trained]
    with stepping(name, trained) as step:
        step.take()
        step.take()
        table = step.recorder.table
        owned = {table.storage(gradient) for gradient in gradients if gradient is not None}
        read, written = set(), set()
        for call in step.recorder.kernels:
            read |= {table.tensors[index].storage for index in call.kernel.inputs}
            written |= {table.tensors[index].storage for index in call.kernel.writes}
    assert owned <= read
    assert not owned & written


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_holds_the_states_once_the_optimizer_is_gone(name: str) -> None:
    trained = parameters()
    gc.disable()
    try:
        with isolated(), evaluating_partially() as evaluation:
            optimizer = make_optimizer(name, trained)
            take_step(optimizer, evaluation)
            take_step(optimizer, evaluation)
            states = [weakref.ref(each) for each in tensors_in([*optimizer.state.values()])]
            del optimizer
            assert [state() for state in states] == [None] * len(states)
    finally:
        gc.enable()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_without_a_gradient_get_no_state(name: str) -> None:
    trained = parameters()
    frozen, unused = trained[1], trained[3]
    frozen.requires_grad_(False)
    unused.grad = None
    with stepping(name, trained) as step:
        step.take()
        state = step.optimizer.state
    assert frozen not in state
    assert not state.get(unused) or name == "adagrad"  # whose states come before any gradient


@pytest.mark.parametrize("limit", ["MAX_ASSUMPTIONS", "MAX_READS"])
def test_an_optimizer_may_read_more_values_than_a_model(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial_evaluation, limit, 2)
    with stepping("adafactor", parameters()) as step:
        step.take()
        assert not step.evaluation.notes()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_record_of_a_training_step_has_the_states_of_its_optimizer(name: str) -> None:
    config = small_models.qwen3()
    config.vocab_size = 2000  # of which states are paged
    source = ConfigSource("small", config, "a config")
    model = from_config(source, dtype="bfloat16")
    model.module.train()
    trace = run_step(model, Workload("train", 2, 8), Training(optimizer=name))
    bytes_of: Counter[str] = Counter()
    for storage in trace.recorded.storages:
        bytes_of[storage.role] += storage.nbytes
    trained = [*model.module.parameters()]
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    with stepping(name, trained, embedding_parameters(model.module)) as step:
        step.take()
        norms = 4 * len(trained) if name == "transformers_adafactor" else 0  # replaced unread
        assert bytes_of["optimizer"] == state_bytes(step.optimizer) - norms
        paged = [each for each in tensors_in([*step.optimizer.state.values()]) if is_paged(each)]
        assert bytes_of["host"] == sum(each.nbytes for each in paged)
        assert bool(paged) == name.startswith("paged")
    assert any(operator.part == "optimizer" for operator in trace.recorded.operators)
    assert not [note for note in trace.notes if "assumed" in note]
    said = [note for note in trace.notes if note.startswith("the optimizer is ")]
    assert bool(said) == bool(OPTIMIZERS[name])


def test_muon_leaves_embeddings_and_vectors_to_adamw() -> None:
    model = small_models.build("qwen3", "meta")
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    with isolated(), evaluating_partially() as evaluation:
        embeddings = embedding_parameters(model)
        optimizer = make_optimizer("muon", model.parameters(), embeddings=embeddings)
        take_step(optimizer, evaluation)
    for path, parameter in model.named_parameters():
        is_hidden_matrix = path.endswith("_proj.weight")
        assert ("momentum_buffer" in optimizer.state[parameter]) == is_hidden_matrix, path


def test_hooks_of_the_user_do_not_see_the_step() -> None:
    seen: list[Any] = []
    before = torch_optimizer.register_optimizer_step_pre_hook(lambda *given: seen.append(1))
    after = torch_optimizer.register_optimizer_step_post_hook(lambda *given: seen.append(2))
    try:
        with stepping("sgd", parameters()) as step:
            step.take()
        assert not seen
        torch.optim.SGD(parameters()).step()
        assert seen == [1, 2]
    finally:
        before.remove()
        after.remove()


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("AdamW", "adamw"),
        ("adamw-8bit", "adamw_8bit"),
        ("adamw_torch_fused", "adamw_fused"),
        ("adamw_bnb_8bit", "adamw_8bit"),
        ("SGD", "sgd"),
    ],
)
def test_names_of_classes_and_of_the_trainer_are_known(given: str, name: str) -> None:
    assert optimizer_name(given) == name


@pytest.mark.parametrize(("given", "nearest"), [("adamw8bit", "adamw_8bit"), ("muonn", "muon")])
def test_an_unknown_name_is_refused_with_the_nearest_first(given: str, nearest: str) -> None:
    with pytest.raises(InvalidValue) as error:
        optimizer_name(given)
    line = str(error.value)
    assert line.startswith(f"optimizer must be one of {nearest}, ")
    assert line.endswith(f", not '{given}'; did you mean {nearest}?")
    assert all(name in line for name in OPTIMIZERS)


@pytest.mark.parametrize("given", [None, 3, "", "x" * 10_000, object()])
def test_what_is_no_name_is_refused_in_one_line(given: Any) -> None:
    with pytest.raises(InvalidValue, match=r"^optimizer must be one of .*, not "):
        optimizer_name(given)


def test_a_model_without_trained_parameters_is_refused() -> None:
    frozen = nn.Linear(2, 2, device="meta").requires_grad_(False)
    with pytest.raises(CannotTrace, match="no parameter requires a gradient"):
        make_optimizer("adamw", frozen.parameters())
