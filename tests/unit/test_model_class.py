"""The class that is built where transformers lacks the declared one, and what is suggested."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import transformers
from torch import nn

import llmsim_magic as llmsim
from llmsim_magic.__main__ import main
from llmsim_magic.capture.models.model_class import check_has_forward, model_constructor
from llmsim_magic.records.errors import CannotTrace
from tests.helpers import small_models

CONTEXT = 4


def t5() -> transformers.T5Config:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return transformers.T5Config(vocab_size=64, decoder_start_token_id=0, **sizes)


def bert() -> transformers.BertConfig:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    return transformers.BertConfig(vocab_size=64, num_hidden_layers=2, **sizes)


def declaring(config: Any, *classes: str) -> Any:
    config.architectures = list(classes)
    return config


def headless_only() -> Any:
    """A config that no auto class lists but `AutoModel`."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = transformers.CLIPTextConfig(vocab_size=64, num_hidden_layers=2, **sizes)
    return declaring(config, "CLIPTextForCausalLM")


class UnlistedConfig(transformers.LlamaConfig):
    """A config that transformers has no class for."""

    model_type = "unlisted"


@pytest.mark.parametrize(
    ("config", "declared", "built"),
    [
        (small_models.llama, "LLaMA_ForCausalLM", "LlamaForCausalLM"),
        (small_models.llama, "Llama_Model", "LlamaModel"),
        (small_models.llama, "FormerLlamaForCausalLM", "LlamaForCausalLM"),
        (small_models.llama, "FormerForSequenceClassification", "LlamaForSequenceClassification"),
        (small_models.llama, "FormerLlama", "LlamaModel"),
        (t5, "T5WithLMHeadModel", "T5ForConditionalGeneration"),
        (bert, "BertForPreTrainingOfOld", "BertForMaskedLM"),
        (bert, "BertEncoderOnly", "BertModel"),
    ],
)
def test_the_class_that_replaces_a_declared_one_is_built_and_named(
    config: Any, declared: str, built: str
) -> None:
    report = llmsim.trace(declaring(config(), declared), context=CONTEXT)
    assert report.trace.model.class_name == built
    version = transformers.__version__
    assert f"{built} is built instead of '{declared}', which transformers {version} lacks" in (
        report.trace.notes
    )


@pytest.mark.parametrize(
    ("config", "declared", "built"),
    [
        (small_models.llama, "LlamaForTokenClassificationV2", "LlamaForTokenClassification"),
        (small_models.llama, "LlamaForExtractiveQuestionAnswering", "LlamaForQuestionAnswering"),
        (small_models.llama, "LlamaForRewardModel", "LlamaForSequenceClassification"),
        (small_models.llama, "ChatLMForRewardModel", "LlamaForSequenceClassification"),
        (small_models.llama, "LlamaReranker", "LlamaForSequenceClassification"),
        (bert, "BertForSentimentClassification", "BertForSequenceClassification"),
        (small_models.vit, "ViTForAgeClassification", "ViTForImageClassification"),
    ],
)
def test_a_class_of_another_task_is_replaced_by_one_of_that_task(
    config: Any, declared: str, built: str
) -> None:
    """A vocabulary head would count parameters that the checkpoint does not have."""
    report = llmsim.trace(declaring(config(), declared))
    assert report.trace.model.class_name == built
    embedding, *others = report.trace.parameters
    assert all(parameter.shape != embedding.shape for parameter in others)


@pytest.mark.parametrize(
    ("config", "declared", "built"),
    [
        (small_models.llama, "LlamaForEmbedding", "LlamaModel"),
        (bert, "BertForSTS", "BertModel"),
        (t5, "T5WithPoolingHead", "T5Model"),
    ],
)
def test_a_class_of_a_task_that_transformers_lacks_loses_its_head_and_a_note_says_so(
    config: Any, declared: str, built: str
) -> None:
    report = llmsim.trace(declaring(config(), declared), context=CONTEXT)
    assert report.trace.model.class_name == built
    version = transformers.__version__
    assert (
        f"{built} is built instead of '{declared}', which transformers {version} lacks; its head "
        "is not counted"
    ) in report.trace.notes


@pytest.mark.parametrize("declared", ["LlamaForCausalLM", "LlamaModel"])
def test_a_declared_class_that_exists_is_built_without_a_note(declared: str) -> None:
    trace = llmsim.trace(declaring(small_models.llama(), declared), context=CONTEXT).trace
    assert trace.model.class_name == declared
    assert not any("instead of" in note for note in trace.notes)


def test_the_first_declared_class_that_exists_is_built() -> None:
    config = declaring(small_models.llama(), "Unknown", "LlamaModel")
    assert llmsim.trace(config, context=CONTEXT).trace.model.class_name == "LlamaModel"


def test_a_config_that_declares_nothing_gets_the_class_with_a_head() -> None:
    config = declaring(small_models.llama())
    assert llmsim.trace(config, context=CONTEXT).trace.model.class_name == "LlamaForCausalLM"


@pytest.mark.parametrize("declared", ["LlamaForCausalLM", "Unknown"])
def test_base_builds_the_class_without_a_head(declared: str) -> None:
    config = declaring(small_models.llama(), declared)
    trace = llmsim.trace(config, context=CONTEXT, base=True).trace
    assert trace.model.class_name == "LlamaModel"


def test_base_is_suggested_where_it_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(headless_only().to_dict()))
    line = [str(tmp_path), "--context", str(CONTEXT)]
    assert main(line) != 0
    assert "--base builds the model without that head" in capsys.readouterr().err
    assert main([*line, "--base"]) == 0
    assert "CLIPTextModel" in capsys.readouterr().out


@pytest.mark.parametrize("has_remote_code", [False, True])
def test_base_is_not_suggested_where_no_class_would_be_built(has_remote_code: bool) -> None:
    config = declaring(UnlistedConfig(), "UnlistedForCausalLM")
    with pytest.raises(CannotTrace) as caught:
        model_constructor(config, "owner/name", base=False, has_remote_code=has_remote_code)
    line = str(caught.value)
    assert "'UnlistedForCausalLM', which transformers" in line
    assert "--base" not in line
    assert ("--trust-remote-code runs the code of its repository" in line) == has_remote_code
    assert ("a newer transformers may have it" in line) != has_remote_code
    with pytest.raises(CannotTrace, match="no model class for 'UnlistedConfig'"):
        model_constructor(config, "owner/name", base=True, has_remote_code=has_remote_code)


def test_a_repository_with_code_has_its_code_named_beside_the_class_that_is_built() -> None:
    config = declaring(small_models.llama(), "OwnForCausalLM")
    chosen = model_constructor(config, "owner/name", base=False, has_remote_code=True)
    assert chosen.instead_of.endswith("; --trust-remote-code runs the code of its repository")


def test_a_part_of_a_larger_model_is_refused_by_name() -> None:
    with pytest.raises(llmsim.LlmsimError, match="no model class for 'SamPrompt") as it:
        llmsim.trace(transformers.SamPromptEncoderConfig())
    assert "trace the larger model instead" in str(it.value)


def bark() -> transformers.BarkConfig:
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_size": 16, "input_vocab_size": 64}
    sizes |= {"output_vocab_size": 64, "block_size": 32}
    parts = ("semantic_config", "coarse_acoustics_config", "fine_acoustics_config")
    return transformers.BarkConfig(**{part: dict(sizes) for part in parts})


def test_a_model_without_a_forward_names_parts_and_each_can_be_traced() -> None:
    config = bark()
    with pytest.raises(llmsim.LlmsimError, match="BarkModel has no forward") as caught:
        llmsim.trace(config)
    keys = re.findall(r"trace\(config\.(\w+)\)", str(caught.value))
    assert {"semantic_config", "coarse_acoustics_config"} <= set(keys)
    for key in keys:
        assert len(llmsim.trace(getattr(config, key), context=CONTEXT).ops)


def test_a_model_without_a_forward_names_no_part_that_cannot_run() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = small_models.llama()
            self.part = nn.Linear(2, 2)

    with pytest.raises(CannotTrace) as caught:
        check_has_forward(Parts(), "owner/name")
    assert str(caught.value) == (
        "owner/name: Parts has no forward, because its parts run one after the other"
    )
