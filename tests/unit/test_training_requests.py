"""What a training step is asked with: legal options, and one line for each mistake."""

from typing import Any

import pytest
import transformers

import llmsim_magic as llmsim
from llmsim_magic.notebook.arguments import UsageMistake, parse, parse_line
from llmsim_magic.records.errors import LlmsimError

STEP: dict[str, Any] = {"phase": "train", "context": 4}


def _message(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises((LlmsimError, UsageMistake)) as caught:
        call(*arguments, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"zero": 3}, ("zero=3", "dp=N")),
        ({"zero": 5, "dp": 2}, ("zero", "0, 1, 2 or 3", "5")),
        ({"batch": 3, "accumulate": 2}, ("batch 3", "2 micro-batches", "such as 4")),
        ({"accumulate": 0}, ("accumulate", "from 1")),
        ({"optimizer": "adamwww"}, ("optimizer", "adamw", "adamwww")),
        ({"precision": "fp8"}, ("precision", "bf16, fp32, amp", "fp8")),
        ({"precision": "bf16", "dtype": "float16"}, ("dtype", "precision='bf16'", "leave one")),
        ({"runtime": "vllm"}, ("runtime must be transformers", "does not train")),
        ({"kv_dtype": "fp8"}, ("kv_dtype fp8", "keeps no cache", "leave it out")),
        ({"weight_dtype": "int4"}, ("weight_dtype int4", "precision", "leave it out")),
    ],
)
def test_a_mistake_in_a_step_is_one_line(options: dict[str, Any], parts: tuple[str, ...]) -> None:
    text = _message(llmsim.trace, "gpt2", **STEP | options)
    assert all(part in text for part in parts)


@pytest.mark.parametrize("device", ["V100", "T4"])
@pytest.mark.parametrize("precision", ["bf16", "amp"])
def test_a_device_without_a_precision_is_refused(device: str, precision: str) -> None:
    text = _message(llmsim.trace, "gpt2", precision=precision, hardware=device, **STEP)
    assert f"precision {precision} cannot run on {device}" in text
    assert "choose precision fp32" in text


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"optimizer": "sgd"}, "optimizer"),
        ({"precision": "amp"}, "precision"),
        ({"checkpointing": True}, "checkpointing"),
        ({"accumulate": 2}, "accumulate"),
        ({"packed": True}, "packed"),
        ({"dp": 2}, "dp"),
        ({"lora": "r=16"}, "lora"),
    ],
)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_options_of_training_are_of_training_alone(
    options: dict[str, Any], name: str, phase: str
) -> None:
    text = _message(llmsim.trace, "gpt2", phase=phase, **options)
    assert text.startswith(f"{name} has no effect without phase train")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("gpt2 --checkpointing", "checkpointing has no effect without phase train"),
        ("gpt2 --phase prefill,train", "--phase must be one of prefill, decode, both, train"),
        ("gpt2 --phase train --zero 7", "--zero must be one of 0, 1, 2, 3"),
        ("gpt2 --phase train --zero 2", "dp=N"),
        ("gpt2 --phase train --accumulate 3 --batch 4", "batch 4 cannot be divided"),
        ("gpt2 --phase train --runtime vllm --memory", "runtime must be transformers"),
        ("gpt2 --phase train --kv-dtype fp8 --memory", "kv_dtype fp8 has no effect"),
    ],
)
def test_a_mistake_in_a_line_is_one_line(line: str, part: str) -> None:
    assert part in _message(parse_line, line)


def test_a_line_asks_for_a_step() -> None:
    words = "gpt2 --phase train --batch 4 --optimizer sgd --precision amp --checkpointing"
    request = parse([*words.split(), "--accumulate", "2", "--dp", "8", "--zero", "3"]).request
    training = request.build.training
    assert training is not None
    assert training.changed == {
        "optimizer": "sgd", "precision": "amp", "checkpointing": True, "accumulate": 2,
        "dp": 8, "zero": 3,
    }  # fmt: skip
    assert request.training is training
    assert [str(each) for each in request.workloads] == ["train, batch 4 × context 128"]


def test_phases_of_inference_are_not_swept_beside_training() -> None:
    text = _message(llmsim.sweep, "gpt2", phase=["train", "decode"])
    assert "phase train cannot be combined with other phases" in text
    text = _message(llmsim.sweep, "gpt2", phase="train", batch=[2, 3], accumulate=2)
    assert "batch 3 cannot be divided into 2 micro-batches" in text


def test_a_model_without_checkpointing_says_so() -> None:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1],
        architectures=["ResNetForImageClassification"],
    )  # fmt: skip
    text = _message(llmsim.trace, config, phase="train", checkpointing=True)
    assert "does not support gradient checkpointing; leave it out" in text
