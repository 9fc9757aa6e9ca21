"""The memory of training steps: derived by hand, and equal to that of real steps."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import transformers
from transformers import PretrainedConfig

import llmsim_magic as llmsim
from llmsim_magic.analyses.allocations.step_allocations import Alive, step_allocations
from llmsim_magic.records.trace.recorded import (
    Kernel,
    Operator,
    Pass,
    Record,
    Role,
    Storage,
    Tensor,
)
from llmsim_magic.records.trace.trace import ModelInfo, Parameter, Trace
from llmsim_magic.records.trace.training import Training
from llmsim_magic.records.trace.workload import Workload
from tests.helpers.real_step import real_steps

KIB = 1024
BATCH, CONTEXT = 2, 64
SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES, num_key_value_heads=2),
    "qwen3": lambda: transformers.Qwen3Config(
        **SIZES, num_key_value_heads=2, head_dim=64),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=512, n_positions=128, n_embd=256, n_layer=3, n_head=4,
        bos_token_id=1, eos_token_id=2, loss_type="ForCausalLM",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    ),
}  # fmt: skip


def _kernel(
    operator: int, outputs: Sequence[int], inputs: Sequence[int] = (), frees: Sequence[int] = ()
) -> Kernel:
    out = tuple(outputs)
    return Kernel(
        "k", operator, tuple(inputs), out, out, False, False, False, 0, frees=tuple(frees)
    )


def _step(*, accumulate: int = 1) -> Trace:
    """One linear layer by hand: each tensor is its storage, of whole blocks of the small pool.

    | kernel | pass | makes | frees |
    |---|---|---|---|
    | 0 | forward | h, 8 KiB, which backward needs | |
    | 1 | forward | t, 2 KiB | |
    | 2 | forward | loss, 1 KiB | t |
    | 3 | backward | d, 16 KiB | |
    | 4 | backward | gradient of w, 4 KiB | d, h, loss |
    | 5 | optimizer | u, 3 KiB | u, and the gradient by `zero_grad` |
    """
    sizes: list[tuple[int, Role]] = [
        (4, "parameter"), (1, "input"), (8, "activation"), (2, "activation"), (1, "activation"),
        (16, "activation"), (4, "gradient"), (8, "optimizer"), (3, "activation"),
    ]  # fmt: skip
    w, x, h, t, loss, d, gradient, state, u = range(len(sizes))
    parts: list[Pass] = ["forward", "backward", "optimizer"]
    written = (gradient, d) if accumulate > 1 else (d,)
    record = Record(
        storages=tuple(Storage(size * KIB, role, None) for size, role in sizes),
        tensors=tuple(
            Tensor((size * KIB,), "uint8", 1, place, 0, (1,))
            for place, (size, _) in enumerate(sizes)
        ),
        kernels=(
            _kernel(0, [h], [w, x]),
            _kernel(0, [t], [h]),
            _kernel(0, [loss], [t], [t]),
            _kernel(1, [d], [loss]),
            _kernel(1, [gradient], [h, *written], [d, h, loss]),
            _kernel(2, [u], [gradient, state], [u, gradient]),
        ),
        operators=tuple(Operator("fc", "Linear", "module", (), (), None, part=p) for p in parts),
        calls=(),
        results=(),
    )
    return Trace(
        model=ModelInfo(
            name="m", class_name="M", model_type=None, head="", attention=None, dtype="uint8",
            origin="",
        ),
        workload=Workload("train", accumulate, 1),
        modules=(),
        parameters=(Parameter(
            name="w", owner="fc", shape=(4 * KIB,), dtype="uint8", itemsize=1, trainable=True,
            is_buffer=False, tied_to=None,
        ),),
        recorded=record,
        replays=(),
        cache=(),
        notes=(),
        versions={},
        training=Training(accumulate=accumulate),
    )  # fmt: skip


def _kib(alive: Alive) -> dict[str, float]:
    return {name: nbytes / KIB for name, nbytes in alive._asdict().items()}


def test_each_pass_of_a_small_step_takes_what_is_derived_by_hand() -> None:
    found = step_allocations(_step())
    # The first step has w and x, 5 KiB, before it; the states of 8 KiB appear in the optimizer.
    first = {name: (b.peak / KIB, b.after / KIB) for name, b in found.first.stages.items()}
    assert first == {
        "forward": (5 + 8 + 2 + 1, 5 + 8 + 1),
        "backward": (5 + 8 + 1 + 16 + 4, 5 + 4),
        "optimizer": (5 + 4 + 8 + 3, 5 + 4 + 8),
    }
    steady = {name: (b.peak / KIB, b.after / KIB) for name, b in found.steady.stages.items()}
    assert steady == {
        "forward": (13 + 11, 13 + 9),
        "backward": (13 + 9 + 16 + 4, 13 + 4),
        "optimizer": (13 + 4 + 3, 13 + 4),
    }


def test_the_peak_has_its_kernel_and_parts() -> None:
    peak = step_allocations(_step()).steady.peak
    assert (peak.kernel, peak.operator, peak.part) == (4, 1, "backward")
    assert _kib(peak.alive) == {
        "parameters": 4, "gradients": 4, "optimizer": 8, "saved": 8 + 1, "temporaries": 1 + 16,
    }  # fmt: skip
    assert peak.alive.total == 42 * KIB


def test_gradients_of_earlier_micro_batches_exist_from_the_start() -> None:
    once, often = step_allocations(_step()), step_allocations(_step(accumulate=2))
    before, after = (each.moments[0] for each in (once, often))
    assert (before.alive.gradients, after.alive.gradients) == (0, 4 * KIB)
    assert often.steady.stages["forward"].peak == once.steady.stages["forward"].peak + 4 * KIB
    assert often.steady.stages["backward"].peak == once.steady.stages["backward"].peak


def test_one_small_segment_holds_the_small_step() -> None:
    found = step_allocations(_step())
    assert found.first.reserved == found.steady.reserved == 2 * 2**20


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, foreach=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, foreach=True),
    "sgd_momentum": lambda parameters: torch.optim.SGD(parameters, momentum=0.9, foreach=True),
}
WAYS: dict[str, Training] = {
    "plain": Training(),
    "checkpointing": Training(checkpointing=True),
    "accumulated": Training(accumulate=2),
    "sgd": Training(optimizer="sgd"),
    "sgd_momentum": Training(optimizer="sgd_momentum"),
}
_QUICK = [("llama", "plain"), ("llama", "checkpointing"), ("llama", "accumulated")]
_SLOW = [("llama", "sgd"), ("llama", "sgd_momentum"), ("gpt2", "plain"), ("qwen3", "checkpointing")]
CASES = [*_QUICK, *(pytest.param(*each, marks=pytest.mark.slow) for each in _SLOW)]


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning")  # renamed
@pytest.mark.parametrize(("name", "way"), CASES)
def test_steps_take_what_real_ones_take(name: str, way: str) -> None:
    """In blocks, after each pass and at its peak, in the first step and in the second."""
    config, training = CONFIGS[name](), WAYS[way]
    of = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    config.architectures = [of.__name__]
    config._attn_implementation = "eager"
    config.use_cache = False
    trace = llmsim.trace(
        config, phase="train", batch=BATCH * training.accumulate, context=CONTEXT, attn="eager",
        dtype="float32", **training.changed,
    ).trace  # fmt: skip
    found = step_allocations(trace)
    model = of(config).train()
    if training.checkpointing:
        model.gradient_checkpointing_enable()
    ids = torch.arange(BATCH * CONTEXT).reshape(BATCH, CONTEXT) % 500 + 3
    optimizer = OPTIMIZERS[training.optimizer](model.parameters())
    keywords = {"input_ids": ids, "labels": ids.clone()}
    real = real_steps(model, keywords, optimizer, training.accumulate)
    assert [found.first.stages, found.steady.stages] == real
