"""Labels that are made for a model's own loss, by its signature and the shapes of its output."""

from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from llmsim_magic.capture.configs.resolve import ConfigSource
from llmsim_magic.capture.models.meta_model import MetaModel, from_config
from llmsim_magic.capture.train.loss import classes_with_loss
from llmsim_magic.capture.train.step import run_step
from llmsim_magic.capture.train.trainable import trainable
from llmsim_magic.records.errors import CannotTrace
from llmsim_magic.records.trace.recorded import Storage
from llmsim_magic.records.trace.training import Training
from llmsim_magic.records.trace.workload import Workload
from tests.helpers import small_models

BATCH, CONTEXT = 2, 8


def _model(config: Any, class_name: str, **keys: Any) -> MetaModel:
    config.architectures = [class_name]
    for name, value in keys.items():
        setattr(config, name, value)
    return trainable(from_config(ConfigSource("model", config, "test")), Training())


def _labels(model: MetaModel) -> dict[str, Storage]:
    """The inputs of a step that hold labels."""
    trace = run_step(model, Workload("train", BATCH, CONTEXT), Training())
    inputs = {each.name: each for each in trace.recorded.storages if each.role == "input"}
    return {name: each for name, each in inputs.items() if name and name not in ("input_ids",)}


LONG, FLOAT = 8, 4  # bytes
TEXT: dict[str, tuple[str, dict[str, Any], dict[str, int]]] = {
    "a class for each token": (
        "BertForTokenClassification",
        {"num_labels": 3},
        {"labels": BATCH * CONTEXT * LONG},
    ),
    "a class for each sequence": (
        "BertForSequenceClassification",
        {"num_labels": 3},
        {"labels": BATCH * LONG},
    ),
    "a number for each sequence": (
        "BertForSequenceClassification",
        {"num_labels": 1},
        {"labels": BATCH * FLOAT},
    ),
    "several classes for each sequence": (
        "BertForSequenceClassification",
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        {"labels": BATCH * 3 * FLOAT},
    ),
    "a span": (
        "BertForQuestionAnswering",
        {},
        {"start_positions": BATCH * LONG, "end_positions": BATCH * LONG},
    ),
    "tokens and the next sentence": (
        "BertForPreTraining",
        {},
        {"labels": BATCH * CONTEXT * LONG, "next_sentence_label": BATCH * LONG},
    ),
}


@pytest.mark.parametrize(("class_name", "keys", "wanted"), TEXT.values(), ids=TEXT)
def test_labels_of_text(class_name: str, keys: dict[str, Any], wanted: dict[str, int]) -> None:
    found = _labels(_model(small_models.bert(), class_name, **keys))
    assert {name: each.nbytes for name, each in found.items()} == wanted


def test_a_map_has_a_class_for_each_pixel_of_its_image() -> None:
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], decoder_hidden_size=8, num_labels=4
    )
    found = _labels(_model(config, "SegformerForSemanticSegmentation"))
    height, width = 224, 224
    assert found["labels"].nbytes == BATCH * height * width * LONG


def test_a_transcript_has_no_more_tokens_than_the_context() -> None:
    config = transformers.Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=[16] * 7,
        vocab_size=20,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        mask_time_prob=0.0,
    )
    found = _labels(_model(config, "Wav2Vec2ForCTC"))
    assert found["labels"].nbytes == BATCH * CONTEXT * LONG


def test_pairs_of_text_and_image_ask_for_a_loss() -> None:
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    config = transformers.CLIPConfig(
        text_config={**small, "num_attention_heads": 2, "vocab_size": 50},
        vision_config={**small, "num_attention_heads": 2, "image_size": 32, "patch_size": 16},
    )
    trace = run_step(_model(config, "CLIPModel"), Workload("train", BATCH, CONTEXT), Training())
    assert {each.part for each in trace.recorded.operators} >= {"forward", "backward"}


def test_a_class_without_a_loss_names_one_that_has_it() -> None:
    model = _model(small_models.vit(), "ViTModel")
    with pytest.raises(CannotTrace, match="ViTForImageClassification") as caught:
        run_step(model, Workload("train", BATCH, CONTEXT), Training())
    assert "loss=" in str(caught.value)


def test_a_class_whose_output_has_a_loss_is_found_without_labels() -> None:
    assert "ViTMAEForPreTraining" in classes_with_loss(transformers.ViTMAEConfig())
    assert "ViTMAEModel" not in classes_with_loss(transformers.ViTMAEConfig())


class Picky(PreTrainedModel):
    """Runs without labels, and wants some that nothing tells of."""

    config_class = transformers.BertConfig
    main_input_name = "input_ids"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embed = torch.nn.Embedding(config.vocab_size, 4)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, labels: Any = None) -> ModelOutput:
        logits = self.embed(input_ids)
        if labels is not None:
            raise ValueError("labels lack the weather")
        return ModelOutput(logits=logits)


def test_a_loss_that_fails_is_told_from_a_model_that_fails() -> None:
    from llmsim_magic.capture.models.live_model_copy import copy_without_weights

    model = trainable(copy_without_weights(Picky(small_models.bert()), "picky"), Training())
    with pytest.raises(CannotTrace, match=r"its own loss does not.*lack the weather"):
        run_step(model, Workload("train", BATCH, CONTEXT), Training())


given_labels: list[type] = []  # a trace leaves no attribute of a model changed


class Detects(PreTrainedModel):
    """Predicts three boxes, and refuses what is not objects with boxes."""

    config_class = transformers.BertConfig
    main_input_name = "input_ids"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embed = torch.nn.Embedding(config.vocab_size, 3 * 4)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, labels: Any = None) -> ModelOutput:
        boxes = self.embed(input_ids).mean(1).unflatten(-1, (3, 4))
        loss = None
        if labels is not None:
            given_labels.append(type(labels))
            if not isinstance(labels, list):
                raise IndexError("too many indices")
            count = len(labels[0]["boxes"])
            loss = sum((boxes[n, :count] - each["boxes"]).sum() for n, each in enumerate(labels))
        return ModelOutput(loss=loss, logits=boxes, pred_boxes=boxes)


def test_a_model_that_predicts_boxes_is_given_objects_first() -> None:
    from llmsim_magic.capture.models.live_model_copy import copy_without_weights

    model = trainable(copy_without_weights(Detects(small_models.bert()), "detects"), Training())
    trace = run_step(model, Workload("train", BATCH, CONTEXT), Training())
    assert {each.part for each in trace.recorded.operators} >= {"forward", "backward"}
    assert set(given_labels) == {list}
