"""A training step on meta: what is recorded, what ends when, and that replays are equal to runs."""

import gc
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import llmsim_magic as llmsim
from llmsim_magic.capture.configs.resolve import ConfigSource
from llmsim_magic.capture.models.meta_model import MetaModel, from_config
from llmsim_magic.capture.train.step import run_step
from llmsim_magic.capture.train.trainable import trainable
from llmsim_magic.records.errors import CannotTrace, InvalidValue
from llmsim_magic.records.trace.recorded import Operator, Record
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.training import PRECISION_DTYPES, Training
from llmsim_magic.records.trace.workload import Workload
from tests.helpers import small_models

DEEP: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: _with(small_models.gpt2(), n_layer=5),
    "llama": lambda: _with(small_models.llama(), num_hidden_layers=5),
    "bert": lambda: _with(small_models.bert(), num_hidden_layers=5),
    "neox": lambda: _with(small_models.gpt_neox(), num_hidden_layers=5),
}
WAYS = {
    "plain": Training(),
    "checkpointing": Training(checkpointing=True),
    "amp": Training(precision="amp"),
    "both": Training(precision="amp", checkpointing=True),
    "accumulated": Training(accumulate=2),
}


def _with(config: Any, **values: Any) -> Any:
    for name, value in values.items():
        setattr(config, name, value)
    return config


def _model(config: Any, training: Training) -> MetaModel:
    dtype = PRECISION_DTYPES.get(training.precision or "")
    return trainable(from_config(ConfigSource("model", config, "test"), dtype=dtype), training)


def _step(config: Any, training: Training | None = None, **given: Any) -> Trace:
    training = Training() if training is None else training
    return run_step(_model(config, training), Workload("train", 2, 8), training, **given)


def _of(record: Record, part: str) -> list[Operator]:
    return [operator for operator in record.operators if operator.part == part]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_replayed_step_is_the_one_that_ran(way: Training) -> None:
    config = DEEP["llama"]()
    assert _step(config, way).recorded == _step(config, way, replay=False).recorded


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("make", DEEP.values(), ids=DEEP)
def test_replayed_steps_are_those_that_ran(make: Callable[[], Any], way: Training) -> None:
    config = make()
    assert _step(config, way).recorded == _step(config, way, replay=False).recorded


def test_layers_inside_a_checkpoint_of_several_all_run() -> None:
    """Backward runs them again, so a layer that did not run would be recomputed as another."""
    from transformers import SwinConfig

    sizes = {"image_size": 32, "embed_dim": 8, "depths": [2, 6], "num_heads": [2, 2]}
    config = SwinConfig(**sizes, window_size=4, architectures=["SwinForImageClassification"])
    way = WAYS["checkpointing"]
    assert _step(config, way).recorded == _step(config, way, replay=False).recorded


def test_most_layers_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama import modeling_llama

    ran: list[Any] = []
    really = modeling_llama.LlamaMLP.forward
    monkeypatch.setattr(
        modeling_llama.LlamaMLP, "forward", lambda self, x: ran.append(x.shape) or really(self, x)
    )
    _step(DEEP["llama"]())
    assert len(ran) == 2


def test_every_tensor_of_a_step_ends_once_and_after_its_last_use() -> None:
    record = _step(DEEP["gpt2"](), WAYS["checkpointing"]).recorded
    ends: Counter[int] = Counter()
    last: dict[int, int] = {}
    for place, kernel in enumerate(record.kernels):
        for tensor in (*kernel.inputs, *kernel.outputs):
            last[record.tensors[tensor].storage] = place
    for place, kernel in enumerate(record.kernels):
        ends.update(kernel.frees)
        assert all(place >= last.get(storage, 0) for storage in kernel.frees)
    made = {
        number
        for number, storage in enumerate(record.storages)
        if storage.role in ("activation", "gradient")
    }
    assert made == {storage for storage in ends if storage in made}
    assert set(ends.values()) == {1}


def test_passes_follow_each_other_and_backward_names_its_forward() -> None:
    record = _step(DEEP["gpt2"](), WAYS["checkpointing"]).recorded
    parts = list(dict.fromkeys(operator.part for operator in record.operators))
    assert parts == ["forward", "backward", "recompute", "optimizer"]
    forward, recomputed = _of(record, "forward"), _of(record, "recompute")
    assert {(o.path, o.op) for o in recomputed} < {(o.path, o.op) for o in forward}
    for operator in _of(record, "backward"):
        assert operator.backward_of is not None
        of = record.operators[operator.backward_of]
        if operator.op in ("split", "view", "transpose"):  # a view is no operator of the forward
            assert of.part == "forward"
            continue
        assert (of.path, of.op, of.part) == (operator.path, operator.op, "forward")
    linears = [o.path for o in forward if o.op == "Conv1D"]
    assert Counter(linears) <= Counter(o.path for o in _of(record, "backward"))


def test_the_flops_of_backward_are_twice_those_of_matmuls_forward() -> None:
    record = _step(DEEP["llama"]()).recorded
    flops: Counter[str] = Counter()
    for kernel in record.kernels:
        operator = None if kernel.operator is None else record.operators[kernel.operator]
        if operator is not None and operator.op == "Linear" and kernel.flops:
            flops[operator.part] += kernel.flops
    assert flops["backward"] == 2 * flops["forward"] > 0


def test_each_trained_parameter_has_a_gradient_of_its_size() -> None:
    trace = _step(DEEP["llama"]())
    gradients = {s.name: s.nbytes for s in trace.recorded.storages if s.role == "gradient"}
    own = {p.name: p.nbytes for p in trace.parameters if p.tied_to is None and not p.is_buffer}
    assert gradients == own
    states = Counter({s.name: s.nbytes for s in trace.recorded.storages if s.role == "optimizer"})
    assert states.total() == 2 * sum(own.values())


def test_frozen_parameters_have_none() -> None:
    training = Training()
    meta_model = _model(DEEP["llama"](), training)
    frozen = meta_model.module.model.embed_tokens.weight
    frozen.requires_grad_(requires_grad=False)
    trace = run_step(trainable(meta_model, training), Workload("train", 2, 8), training)
    names = {s.name for s in trace.recorded.storages if s.role == "gradient"}
    assert "model.embed_tokens.weight" not in names
    assert "model.layers.0.mlp.up_proj.weight" in names


def test_dropout_keeps_a_byte_an_element() -> None:
    config = _with(DEEP["gpt2"](), resid_pdrop=0.1)
    record = _step(config).recorded
    masks = {
        record.tensors[tensor].dtype
        for operator in record.operators
        if operator.op == "Dropout"
        for tensor in operator.saved
    }
    assert masks == {"bool"}


def test_the_derivative_of_silu_is_one_kernel() -> None:
    """As on a GPU; torch has a formula for it by six others."""
    names = Counter(kernel.name for kernel in _step(DEEP["llama"]()).recorded.kernels)
    assert names["aten.silu_backward.default"] == 5
    assert not names["aten.sigmoid.default"]


def test_attention_is_one_kernel_with_a_backward_of_its_own() -> None:
    config = _with(DEEP["llama"](), dtype=torch.bfloat16)
    names = Counter(kernel.name for kernel in _step(config).recorded.kernels)
    assert names["aten.scaled_dot_product_attention.default"] == 5
    assert names["aten._scaled_dot_product_flash_attention_backward.default"] == 5
    assert not names["aten._softmax.default"]


def test_the_last_micro_batch_adds_to_the_gradients_of_the_others() -> None:
    config = DEEP["llama"]()
    one, two = _step(config, Training()), _step(config, Training(accumulate=2))
    count = sum(not p.is_buffer and p.tied_to is None for p in one.parameters)

    def sums(trace: Trace) -> int:
        return sum(
            kernel.name == "aten.add_.Tensor"
            and trace.recorded.storages[trace.recorded.tensors[kernel.writes[0]].storage].role
            == "gradient"
            for kernel in trace.recorded.kernels
        )

    assert (sums(one), sums(two)) == (0, count)
    assert two.recorded.operators[0].inputs
    assert two.workload.batch == 2


class Transposed(nn.Module):
    """Its weight, and therefore the weight's gradient, is not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(96, 64).t())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "lion_8bit", "paged_adamw_32bit"])
def test_an_optimizer_that_copies_a_gradient_copies_that_of_backward(optimizer: str) -> None:
    record = llmsim.trace(
        Transposed(),
        inputs=(torch.ones(4, 64),),
        loss=lambda output: output.sum(),
        phase="train",
        optimizer=optimizer,
    ).trace.recorded
    storages, tensors = record.storages, record.tensors
    copy = next(
        kernel
        for kernel, part in zip(record.kernels, record.kernel_parts, strict=True)
        if part == "optimizer" and not kernel.is_view
    )
    (gradient,) = {storages[tensors[number].storage] for number in copy.inputs}
    assert (copy.name, gradient.role, gradient.name) == ("aten.clone.default", "gradient", "weight")
    (made,) = copy.writes
    assert tensors[made].strides == (96, 1)
    assert tensors[copy.inputs[0]].storage in copy.frees
    update = record.kernels[-1]
    assert made in update.inputs


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    assert Training(accumulate=4).micro_batch(8) == 2
    with pytest.raises(InvalidValue, match=r"give a multiple of 3, such as 9$"):
        Training(accumulate=3).micro_batch(8)


def test_a_step_leaves_nothing_behind() -> None:
    meta_model = _model(DEEP["llama"](), Training())
    before = {name: p.requires_grad for name, p in meta_model.module.named_parameters()}
    versions = set(vars(meta_model.module))
    for _ in range(2):
        trace = run_step(meta_model, Workload("train", 2, 8), Training())
    again = run_step(meta_model, Workload("train", 2, 8), Training())
    assert again == trace
    parameters = dict(meta_model.module.named_parameters())
    assert {name: p.requires_grad for name, p in parameters.items()} == before
    assert all(p.grad is None for p in parameters.values())
    assert set(vars(meta_model.module)) == versions
    assert gc.isenabled()
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_a_failed_step_leaves_no_gradient() -> None:
    meta_model = _model(DEEP["llama"](), Training())

    def fail(output: Any) -> torch.Tensor:
        raise ValueError("no such loss")

    with pytest.raises(CannotTrace, match="no such loss"):
        run_step(meta_model, Workload("train", 2, 8), Training(), loss=fail)
    assert all(p.grad is None for p in meta_model.module.parameters())
    assert gc.isenabled()


def test_packed_sequences_are_one_row() -> None:
    packed = _step(DEEP["llama"](), Training(packed=True))
    first = packed.recorded.operators[0]
    assert packed.recorded.tensors[first.inputs[0]].shape == (1, 16)


def test_packing_needs_position_ids() -> None:
    with pytest.raises(InvalidValue, match="takes no position_ids"):
        _step(small_models.t5(), Training(packed=True))


def test_what_cannot_be_checkpointed_is_refused() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(2, 2)

    from llmsim_magic.capture.models.live_model_copy import copy_without_weights

    with pytest.raises(InvalidValue, match="does not support gradient checkpointing"):
        trainable(copy_without_weights(Plain(), "Plain"), Training(checkpointing=True))
