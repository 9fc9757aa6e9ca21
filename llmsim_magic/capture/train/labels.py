"""Labels that a model's own loss may read: by its signature, its config and its output's shapes."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

import torch
from torch.utils._pytree import tree_map

from llmsim_magic.capture.inputs.other_inputs import OTHER_INPUTS
from llmsim_magic.capture.kernels.tensors import named_tensors
from llmsim_magic.capture.meta.evaluation_modes import evaluating_partially
from llmsim_magic.capture.meta.snapshot import restored
from llmsim_magic.capture.modalities.model_inputs import ModelInputs
from llmsim_magic.capture.modalities.signature import (
    META,
    HuggingFaceModel,
    InputSpec,
    is_encoder_decoder,
    parameters,
)
from llmsim_magic.capture.modalities.text import token_ids
from llmsim_magic.records.trace.workload import Workload

_LABELS = "labels"
_LOSS = "loss"
_MASK = "attention_mask"
_DECODER_TOKENS = "decoder_input_ids"
_NAME = re.compile(
    r"^(?!input_|box_|router_)(\w+_)?labels?$|^targets?(_values)?$|^return_loss$"
    r"|^(start|end)_positions$|^bool_masked_pos$|^future_(values|observed_mask)$"
)
_PIXELS = ("pixel_values", "pixel_values_videos")
_OBJECTS = 8  # marked in each image
_OUTPUTS = 8  # whose shapes are looked at
_STATES = re.compile(r"^(past_key_values|hidden_states|attentions)|_(hidden_states|attentions)\.")
Labels = dict[str, Any]
Shape = tuple[int, ...]


def label_names(forward: Callable[..., Any]) -> list[str]:
    """The keywords of a forward that its loss compares the output with, or that ask for a loss."""
    return [name for name in parameters(forward) if _NAME.search(name)]


def computes_loss(forward: Callable[..., Any]) -> bool:
    """Whether a forward is annotated to return a loss; if it is not annotated, takes labels."""
    returned = inspect.signature(forward).return_annotation
    kinds = [each for each in (returned, *get_args(returned)) if dataclasses.is_dataclass(each)]
    if not kinds:
        return bool(label_names(forward))
    return any(field.name == _LOSS for each in kinds for field in dataclasses.fields(each))


@dataclass(frozen=True)
class LabelChoices:
    """Inputs of a model with labels, the likeliest first.

    Args:
        model: The model on the meta device.
        workload: Sequences, and their tokens.
        keywords: The inputs without labels.
        notes: For the report.
    """

    model: HuggingFaceModel
    workload: Workload
    keywords: Mapping[str, Any]
    notes: Sequence[str] = ()

    def likeliest(self) -> Iterator[ModelInputs]:
        """Yield the inputs with token ids as labels, for a model that generates text."""
        if _LABELS in self._names and self._generates:
            for make in self._token_labels():
                for decoder in self._decoder_inputs():
                    yield self._inputs({_LABELS: make()}, decoder)

    def others(self) -> Iterator[ModelInputs]:
        """Yield the inputs with other labels, and last without, for a model with its own target."""
        others = [name for name in self._names if name != _LABELS]
        for mask in self._masks():
            for make in self._labels() if _LABELS in self._names else ():
                for names in (others, []) if others else ([],):
                    for decoder in self._decoder_inputs():
                        labels = {_LABELS: make()} | self._other_labels(names)
                        yield self._inputs(labels, decoder, mask)
            for is_float in (False, True) if others else ():
                yield self._inputs(self._other_labels(others, is_float=is_float), mask)
        yield self._inputs()

    @cached_property
    def runs_without_labels(self) -> bool:
        """Whether the forward runs on the inputs alone."""
        return self._output is not None

    def _inputs(self, *added: Labels) -> ModelInputs:
        keywords = dict(self.keywords)
        for each in added:
            keywords |= each
        given = {name: value for name, value in keywords.items() if value is not None}
        return ModelInputs(given, list(self.notes))

    def _masks(self) -> Iterator[Labels]:
        """No mask, then one of all places: a loss may count by it how long each sample is."""
        yield {}
        tensors = (each for each in self.keywords.values() if isinstance(each, torch.Tensor))
        main = next(tensors, None)
        accepted = parameters(self.model.forward)
        if self._names and _MASK in accepted and _MASK not in self.keywords and main is not None:
            yield {_MASK: torch.ones(main.shape[:2], dtype=torch.long)}

    # labels

    def _labels(self) -> Iterator[Callable[[], Any]]:
        """Ways to make `labels` of the shapes of the output; to predicted boxes belong objects."""
        if "pred_boxes" in self._outputs:
            yield self._objects
        for shaped in dict.fromkeys(self._shapes()):
            yield shaped.make
        if not self._generates:
            yield from self._token_labels()

    def _token_labels(self) -> Iterator[Callable[[], Any]]:
        tokens = self.keywords.get("input_ids")
        if is_encoder_decoder(self.model):
            yield self._decoder_tokens
        elif isinstance(tokens, torch.Tensor) and not tokens.is_floating_point():
            yield tokens.clone

    def _decoder_tokens(self) -> torch.Tensor:
        return token_ids(self.model, self.workload.batch, self._target_length)

    def _shapes(self) -> Iterator["_Shaped"]:
        """Shapes of label tensors, the likeliest first."""
        for name, shape in self._outputs.items():
            classes, values = self._class_labels(shape), _value_labels(shape)
            if "logits" in name and not self._is_regression:
                yield from (*classes, *values)
            else:
                yield from (*values, *classes)
        batch = self.workload.batch
        yield from (_classes(batch), _Shaped((batch,), torch.float32), _classes(batch, 1))

    def _class_labels(self, shape: Shape) -> Iterator["_Shaped"]:
        """A class for each place of scores: in the last dimension, or the second of an image."""
        if len(shape) >= 4:
            if self._pixels is not None:
                yield _classes(shape[0], *self._pixels)
            yield _classes(shape[0], *shape[2:])
        if len(shape) == 3:
            yield _classes(shape[0], min(shape[1], self.workload.context))  # a transcript
        if len(shape) >= 2:
            yield _classes(*shape[:-1])
        yield _classes(shape[0])

    def _objects(self) -> list[dict[str, torch.Tensor]]:
        """Objects marked in each image, for a model that predicts boxes `[batch, queries, 4]`."""
        batch, queries = self._outputs["pred_boxes"][:2]
        count = min(_OBJECTS, queries)
        one = {
            "class_labels": torch.zeros(count, dtype=torch.long),
            "boxes": torch.full((count, 4), 0.5),
        }
        if "pred_masks" in self._outputs and self._pixels is not None:
            one["masks"] = torch.zeros(count, *self._pixels)
        return [{name: value.clone() for name, value in one.items()} for _ in range(batch)]

    # other keywords

    def _other_labels(self, names: Sequence[str], *, is_float: bool = False) -> Labels:
        return {name: self._other_label(name, is_float=is_float) for name in names}

    def _other_label(self, name: str, *, is_float: bool) -> Any:
        batch = self.workload.batch
        if name == "return_loss":
            return True
        if name in OTHER_INPUTS:
            return OTHER_INPUTS[name](InputSpec(self.model, batch, self.workload.context))
        if name == "future_observed_mask":
            return torch.ones_like(self._other_label("future_values", is_float=True), device="cpu")
        if name == "class_labels":
            return [_classes(_OBJECTS).make() for _ in range(batch)]
        if name == "mask_labels":
            return [torch.zeros(_OBJECTS, *(self._pixels or (1, 1))) for _ in range(batch)]
        compared = self._compared_output(name)
        if compared is None:
            return (_Shaped((batch,), torch.float32) if is_float else _classes(batch)).make()
        shape = self._outputs[compared]
        if is_float:
            return _Shaped(shape, torch.float32).make()
        return _classes(*(shape[:-1] if "logits" in compared else shape)).make()

    def _compared_output(self, name: str) -> str | None:
        """The name of the output whose name begins like that of a label, if there is one."""
        stem = name.removesuffix("s").removesuffix("_label").removesuffix("_position")
        return next((each for each in self._outputs if stem in each), None)

    def _decoder_inputs(self) -> Iterator[Labels]:
        """None where the model makes the decoder's tokens of the labels; or as many as labels."""
        if not is_encoder_decoder(self.model):
            yield {}
            return
        yield {_DECODER_TOKENS: None}
        yield {_DECODER_TOKENS: self._decoder_tokens()}
        yield {}

    # what is known about the model

    @cached_property
    def _names(self) -> list[str]:
        return label_names(self.model.forward)

    @cached_property
    def _generates(self) -> bool:
        return bool(self.model.can_generate())

    @cached_property
    def _is_regression(self) -> bool:
        kind = getattr(self.model.config, "problem_type", None)
        count = getattr(self.model.config, "num_labels", None)
        return kind in ("regression", "multi_label_classification") or count == 1

    @cached_property
    def _pixels(self) -> tuple[int, int] | None:
        """Height and width of the images, if there are any."""
        found = (self.keywords.get(name) for name in _PIXELS)
        image = next((each for each in found if isinstance(each, torch.Tensor)), None)
        if image is None or image.dim() < 4:
            return None
        return int(image.shape[-2]), int(image.shape[-1])

    @cached_property
    def _target_length(self) -> int:
        """Tokens that the decoder reads: as many as the encoder, or as it has positions for."""
        longest = getattr(self.model.config, "max_target_positions", None)
        context = self.workload.context
        return context if longest is None else min(context, int(longest))

    @cached_property
    def _output(self) -> Mapping[str, Shape] | None:
        """Shapes of what a forward without labels returns, by name; None if it fails."""
        return _output_shapes(self.model, self.keywords)

    @cached_property
    def _outputs(self) -> dict[str, Shape]:
        """Those of the first outputs, scores before others."""
        found = self._output or {}
        ordered = sorted(found.items(), key=lambda pair: "logits" not in pair[0])
        return dict(ordered[:_OUTPUTS])


@dataclass(frozen=True)
class _Shaped:
    """The shape and dtype of labels."""

    shape: Shape
    dtype: torch.dtype

    def make(self) -> torch.Tensor:
        """The first class; values that are compared with are unknown, as those of the output."""
        if self.dtype.is_floating_point:
            return torch.empty(self.shape, dtype=self.dtype, device=META)
        return torch.zeros(self.shape, dtype=self.dtype)


def _classes(*shape: int) -> _Shaped:
    return _Shaped(shape, torch.long)


def _value_labels(shape: Shape) -> Iterator[_Shaped]:
    """A number for each number of the output."""
    if len(shape) > 1 and shape[-1] == 1:
        yield _Shaped(shape[:-1], torch.float32)
    yield _Shaped(shape, torch.float32)


def _output_shapes(model: HuggingFaceModel, keywords: Mapping[str, Any]) -> dict[str, Shape] | None:
    """Shapes of the floating-point tensors that a forward on `meta` returns; None if it fails."""
    given = tree_map(_fresh, dict(keywords))
    try:
        with restored(model), evaluating_partially():
            output = model(**given)
    except Exception:  # as of one that wants labels
        return None
    named = named_tensors("", dict(output) if isinstance(output, Mapping) else output)
    found = {name.removeprefix("."): tensor for name, tensor in named}
    return {
        name: tuple(tensor.shape)
        for name, tensor in found.items()
        if tensor.is_floating_point() and tensor.dim() and not _STATES.search(name)
    }


def _fresh(value: Any) -> Any:
    is_known = isinstance(value, torch.Tensor) and not value.is_meta
    return value.clone() if is_known else value
