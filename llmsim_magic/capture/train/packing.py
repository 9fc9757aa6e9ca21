"""Pack the sequences of a batch into one row, as trainers do to avoid padding."""

from collections.abc import Iterator

import torch

from llmsim_magic.capture.modalities.model_inputs import ModelInputs
from llmsim_magic.capture.modalities.signature import HuggingFaceModel, parameters
from llmsim_magic.records.errors import InvalidValue

_NOTE = (
    "packed: the sequences of a batch are one row, separated by their position ids; with sdpa "
    "each layer reads a mask of the whole row"
)
_NOTE_ON_ONE = (
    "packed has no effect here: each micro-batch is one sequence; choose a batch above accumulate"
)


def packed(model: HuggingFaceModel, candidates: Iterator[ModelInputs]) -> Iterator[ModelInputs]:
    """Yield the candidates with all tokens in one row, and positions that start again.

    Those of one sequence are left as they are, with a note.

    Args:
        model: The model on the meta device.
        candidates: Inputs with token ids `[batch, tokens]` and labels of the same shape.

    Raises:
        InvalidValue: The model takes no position ids, or has other inputs than tokens.
    """
    if "position_ids" not in parameters(model.forward):
        raise InvalidValue(
            f"packed cannot be applied to {type(model).__name__}, whose forward takes no "
            "position_ids; leave it out"
        )
    for inputs in candidates:
        ids, labels = inputs.keywords.get("input_ids"), inputs.keywords.get("labels")
        if ids is None or (labels is not None and labels.shape != ids.shape):
            continue
        tensors = {
            name: value
            for name, value in inputs.keywords.items()
            if isinstance(value, torch.Tensor)
        }
        if any(tensor.shape != ids.shape for tensor in tensors.values()):
            continue
        batch, tokens = ids.shape
        if batch == 1:
            yield ModelInputs(inputs.keywords, [*inputs.notes, _NOTE_ON_ONE])
            continue
        rows = {name: tensor.reshape(1, -1) for name, tensor in tensors.items()}
        positions = torch.arange(tokens).repeat(batch)[None]
        keywords = inputs.keywords | rows | {"position_ids": positions}
        keywords.pop("attention_mask", None)
        yield ModelInputs(keywords, [*inputs.notes, _NOTE])
