"""Token ids for the text input."""

import itertools

import torch

from llmsim_magic.capture.modalities.signature import HuggingFaceModel, nested_configs


def plain_token_id(model: HuggingFaceModel) -> int:
    """The smallest token id that is not a special token of the config."""
    special: set[int] = set()
    for _, config in nested_configs(model.config):
        for name, value in vars(config).items():
            if name.endswith(("_token_id", "_token_index")):
                special.update(value if isinstance(value, list) else [value])
    return next(token_id for token_id in itertools.count() if token_id not in special)


def token_ids(model: HuggingFaceModel, batch: int, count: int) -> torch.Tensor:
    """Token ids `[batch, count]` with known values on the host, without special tokens."""
    return torch.full((batch, count), plain_token_id(model), dtype=torch.long)
