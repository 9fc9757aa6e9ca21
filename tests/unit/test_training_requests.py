"""What a training step is asked with: legal options, and one line for each mistake."""

from typing import Any

import pytest
import transformers

import llmsim_magic as llmsim
from llmsim_magic.notebook.arguments import UsageMistake, parse, parse_line
from llmsim_magic.records.errors import LlmsimError
from tests.helpers import small_models

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
        ({"zero": 5, "dp": 2}, ("zero", "0, 1, 2, 3", "5")),
        ({"zero": "stage3", "dp": 2}, ("zero must be one of", "did you mean 3?")),
        ({"zero": True, "dp": 2}, ("zero must be one of", "True")),
        ({"optimizer": "adamw8bit"}, ("did you mean adamw_8bit?",)),
        ({"optimizer": "PagedAdamW8bit"}, ("did you mean paged_adamw_8bit?",)),
        ({"optimizer": "8bit-lion"}, ("did you mean lion_8bit?",)),
        ({"optimizer": "adamw_bnb8bit"}, ("did you mean adamw_8bit?",)),
        ({"precision": "BF16"}, ("did you mean bf16?",)),
        ({"precision": "float32"}, ("did you mean fp32?",)),
        ({"precision": "bf16-mixed"}, ("did you mean amp?",)),
        ({"checkpointing": "full"}, ("checkpointing must be True or False", "full")),
        ({"batch": 3, "accumulate": 2}, ("batch 3", "2 micro-batches", "such as 4")),
        ({"accumulate": 0}, ("accumulate", "from 1")),
        ({"optimizer": "adamwww"}, ("optimizer", "adamw", "adamwww")),
        ({"precision": "fp8"}, ("precision", "bf16, fp32, amp", "fp8")),
        ({"precision": "bf16", "dtype": "float16"}, ("dtype", "precision='bf16'", "leave one")),
        ({"tp": 2, "lora": "r=2"}, ("tp=2 cannot be combined with lora", "dp and zero")),
        ({"ep": 2, "qlora": True}, ("ep=2 cannot be combined with lora or qlora",)),
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
        ("gpt2 --phase train --zero ZeRO-2 --dp 2", "did you mean 2?"),
        ("gpt2 --phase train --zero3 --dp 2", "did you mean --zero 3?"),
        ("gpt2 --phase train --dp8", "did you mean --dp 8?"),
        ("gpt2 --phase trian", "did you mean train?"),
        ("gpt2 --phase train --optimizer adamw-8bits", "did you mean adamw_8bit?"),
        ("gpt2 --phase train --precision mixed", "did you mean amp?"),
        ("gpt2 --phase train --checkpointing true", "write --checkpointing alone"),
        ("gpt2 --phase train --checkpointing=false", "leave --checkpointing out"),
        ("gpt2 --phase train --gradient-checkpointing", "did you mean --checkpointing?"),
        ("gpt2 --phase train --lora rank=8", "did you mean r?"),
        ("gpt2 --phase train --lora r=8,target_modules=c_attn", "did you mean targets?"),
        ("gpt2 --attn spda", "did you mean sdpa?"),
        ("gpt2 --dtype bflot16", "did you mean bfloat16?"),
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


@pytest.mark.parametrize(
    "typed",
    [
        "--lora r=16,targets=c_attn+c_proj gpt2",
        "gpt2 --lora 'r=16, targets=c_attn,c_proj'",
        "gpt2 --lora r=16,targets=c_attn,c_proj",
        "gpt2 --lora 'r=16 targets=c_attn+c_proj'",
        "gpt2 --lora r=16 targets=c_attn+c_proj",
        "--lora r=16, targets=c_attn, c_proj --batch 2 gpt2",
        "--lora r = 16 , targets = c_attn + c_proj --memory gpt2",
        "gpt2 --lora=r=16 targets=c_attn,c_proj",
        "gpt2 --lora 16,targets=c_attn,c_proj",
    ],
)
def test_adapters_are_read_as_people_type_them(typed: str) -> None:
    request = parse_line(f"{typed} --phase train").request
    assert request.model == "gpt2"
    assert request.training.lora == "r=16,targets=c_attn+c_proj"


@pytest.mark.parametrize("typed", ["--hardware H100, A100 gpt2", "gpt2 --hardware H100 ,A100"])
def test_a_list_may_have_spaces(typed: str) -> None:
    request = parse_line(typed).request
    assert request.model == "gpt2"
    assert len(request.deployment.hardware) == 2


@pytest.mark.parametrize(
    ("name", "head"), [("gpt2", "GPT2LMHeadModel"), ("bert-base-uncased", "BertForMaskedLM")]
)
def test_a_model_without_its_head_says_which_to_train(name: str, head: str) -> None:
    text = _message(llmsim.trace, name, base=True, **STEP)
    assert f"leave base out to train {head}" in text


def test_packing_one_sequence_says_that_it_does_nothing() -> None:
    config = small_models.CONFIGS["llama"]()
    alone = llmsim.trace(config, packed=True, batch=2, accumulate=2, **STEP)
    plain = llmsim.trace(config, batch=2, accumulate=2, **STEP)
    assert any(note.startswith("packed has no effect here") for note in alone.notes)
    assert alone.memory.equals(plain.memory)
    several = llmsim.trace(config, packed=True, batch=4, accumulate=2, **STEP)
    assert not any("no effect" in note for note in several.notes)


@pytest.mark.parametrize(
    ("device", "precision", "other"), [("T4", "bf16", "fp32"), ("Gaudi 2", "fp32", "bf16")]
)
def test_a_refused_precision_is_not_recommended(device: str, precision: str, other: str) -> None:
    with pytest.raises(LlmsimError, match=f"choose precision {other}"):
        llmsim.trace("gpt2", phase="train", precision=precision, hardware=device)
