"""Runs a training step with real weights, and compares the trace of the step with it."""

import copy
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count

from llmsim_magic.capture.configs.resolve import ConfigSource
from llmsim_magic.capture.kernels.tensors import tensors_in
from llmsim_magic.capture.modalities.signature import nested_configs
from llmsim_magic.capture.models.meta_model import MetaModel, from_config
from llmsim_magic.capture.train.loss import classes_with_loss, loss_of, training_inputs
from llmsim_magic.capture.train.step import run_step
from llmsim_magic.capture.train.trainable import trainable
from llmsim_magic.records.errors import CannotTrace, InvalidValue, describe
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.training import Training
from llmsim_magic.records.trace.unroll import unroll
from llmsim_magic.records.trace.workload import Workload
from tests.helpers.real_forward import OF_OUR_OWN, with_data

LossFunction = Callable[[Any], torch.Tensor]
# What a step draws at random: a trace and a real step would not drop the same.
RANDOM = re.compile(r"drop|mask_\w+_prob|noise|jitter")


def _attention_backward_flops(
    gradient: torch.Size,
    query: torch.Size,
    key: torch.Size,
    value: torch.Size,
    *rest: Any,
    **_: Any,
) -> int:
    heads = query[:2]
    return sdpa_backward_flop_count(gradient, query, (*heads, *key[2:]), (*heads, *value[2:]))


def _grouped_flops(one: torch.Size, other: torch.Size, *rest: Any, **_: Any) -> int:
    # Each row of `one`, or each column where a derivative sums over rows, meets one group.
    return 2 * math.prod(one[-2:]) * other[-1]


COUNTED = OF_OUR_OWN | {
    torch.ops.aten._grouped_mm: _grouped_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


@dataclass(frozen=True)
class RealStep:
    """What a real forward and backward did.

    `gradients` are names of parameters that have one; `saved_bytes` those of storages that
    autograd keeps, each once and parameters aside.
    """

    flops: int
    gradients: frozenset[str]
    saved_bytes: int


def without_randomness(config: Any) -> Any:
    """A copy of a config in which nothing is dropped or masked at random."""
    config = copy.deepcopy(config)
    for _, each in nested_configs(config):
        for name, value in list(vars(each).items()):
            if RANDOM.search(name) and isinstance(value, float):
                setattr(each, name, 0.0)
    return config


def _drop_nothing(model: torch.nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0


def meta_model_of(config: Any, *, checkpointing: bool = False, attention: str | None) -> MetaModel:
    """The model of a config in training mode, in float32."""
    source = ConfigSource(type(config).__name__, config, "config object")
    made = from_config(source, dtype="float32", attention=attention)
    _drop_nothing(made.module)
    return trainable(made, Training(checkpointing=checkpointing))


def real_model_of(meta_model: MetaModel, config: Any, *, attention: str | None) -> Any:
    """The same model on the CPU, with random weights."""
    torch.manual_seed(0)
    options = {} if attention is None else {"attn_implementation": attention}
    kind: Any = type(meta_model.module)
    model: Any = kind._from_config(copy.deepcopy(config), dtype=torch.float32, **options)
    _drop_nothing(model)
    model.train()
    if getattr(meta_model.module, "is_gradient_checkpointing", False):
        newer = getattr(model, "activation_checkpointing_enable", None)
        (newer or model.gradient_checkpointing_enable)()
    return model


def real_step(model: torch.nn.Module, keywords: Any, loss: LossFunction | None) -> RealStep:
    """Run forward and backward of a model on the CPU, by kernels whose FLOPs are counted."""
    own = {each.untyped_storage().data_ptr() for each in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def saving(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    counter = FlopCounterMode(display=False, custom_mapping=COUNTED)
    with counter, torch.backends.mkldnn.flags(enabled=False):
        with torch.autograd.graph.saved_tensors_hooks(saving, lambda tensor: tensor):
            found = loss_of(model(**with_data(keywords)), loss, model)
        found.backward()
    return RealStep(
        counter.get_total_flops(),
        frozenset(name for name, each in model.named_parameters() if each.grad is not None),
        sum(storage.nbytes() for storage in kept.values()),
    )


def first_real_step(
    meta_model: MetaModel, model: torch.nn.Module, workload: Workload, loss: LossFunction | None
) -> RealStep:
    """A real step on the first inputs that run."""
    errors = []
    for inputs in training_inputs(meta_model.module, workload, loss):
        try:
            return real_step(copy.deepcopy(model), inputs.keywords, loss)
        except Exception as error:
            errors.append(error)
    raise errors[0]


def traced_step(trace: Trace) -> RealStep:
    """The same of a trace."""
    recorded = unroll(trace.recorded, trace.replays)
    saved = {
        recorded.tensors[index].storage
        for operator in recorded.operators
        for index in operator.saved
    }
    storages = recorded.storages
    return RealStep(
        sum(kernel.flops or 0 for kernel in recorded.kernels),
        frozenset(each.name for each in storages if each.role == "gradient" and each.name),
        sum(storages[each].nbytes for each in saved if storages[each].role != "parameter"),
    )


def differences(real: RealStep, ours: RealStep) -> Iterator[tuple[str, str]]:
    """What a trace says otherwise than a real step."""
    if ours.flops != real.flops:
        yield "flops", f"{ours.flops}, really {real.flops}"
    if ours.gradients != real.gradients:
        more, less = ours.gradients - real.gradients, real.gradients - ours.gradients
        yield "gradients", f"too many {sorted(more)[:3]}, too few {sorted(less)[:3]}"
    if ours.saved_bytes != real.saved_bytes:
        yield "saved", f"{ours.saved_bytes}, really {real.saved_bytes}"


def mean_of_output(output: Any) -> torch.Tensor:
    """The mean of all floating-point tensors of an output that depend on parameters."""
    found = [
        each.real.mean() if each.is_complex() else each.float().mean()
        for each in tensors_in(output)
        if each.requires_grad
    ]
    return torch.stack(found).mean()


def with_own_loss(config: Any) -> Iterator[Any]:
    """The config, then copies that declare another class whose forward takes labels."""
    yield config
    for found in classes_with_loss(config):
        made = copy.deepcopy(config)
        made.architectures = [found]
        yield made


@dataclass(frozen=True)
class SmallStep:
    """A step of a config, with attention written out where the model can."""

    config: Any
    batch: int
    context: int
    loss: LossFunction | None = None

    def _meta_model(self, attention: str | None, *, checkpointing: bool = False) -> MetaModel:
        return meta_model_of(self.config, checkpointing=checkpointing, attention=attention)

    @property
    def workload(self) -> Workload:
        """Its size."""
        return Workload("train", self.batch, self.context)

    def trace(self, attention: str | None = None, *, checkpointing: bool = False) -> Trace:
        """The trace of the step."""
        meta_model = self._meta_model(attention, checkpointing=checkpointing)
        options = Training(checkpointing=checkpointing)
        return run_step(meta_model, self.workload, options, loss=self.loss)

    def checkpointed(self) -> str:
        """Whether it traces with checkpointing; `none` where the class does not support it."""
        try:
            self.trace(checkpointing=True)
        except InvalidValue:
            return "none"
        except Exception as error:
            return describe(error)
        return "yes"

    def held(self, limit: int) -> dict[str, str]:
        """How a real step differs, and one with checkpointing; of at most `limit` parameters."""
        row = self._compared(limit)
        try:
            found = self._compared(limit, checkpointing=True)
        except InvalidValue:
            return row
        return row | {"checkpointing_flops": found.get("train_flops", "")}

    def _compared(self, limit: int, *, checkpointing: bool = False) -> dict[str, str]:
        attention: str | None = "eager"
        try:
            meta_model = self._meta_model(attention, checkpointing=checkpointing)
        except CannotTrace:
            attention = None
            meta_model = self._meta_model(attention, checkpointing=checkpointing)
        count = sum(parameter.numel() for parameter in meta_model.module.parameters())
        if count > limit:
            return {"train_flops": f"no real step: {count} parameters"}
        try:
            model = real_model_of(meta_model, self.config, attention=attention)
            real = first_real_step(meta_model, model, self.workload, self.loss)
        except Exception as error:
            return {"train_flops": f"no real step: {describe(error)}"[:300]}
        ours = traced_step(self.trace(attention, checkpointing=checkpointing))
        same = dict.fromkeys(("flops", "gradients", "saved"), "equal")
        return {
            f"train_{name}": text for name, text in (same | dict(differences(real, ours))).items()
        }
