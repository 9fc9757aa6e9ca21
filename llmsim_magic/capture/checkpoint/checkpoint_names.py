"""The names that a model's parameters have in its checkpoints, by its class's own key mapping."""

import contextlib
import importlib
from collections.abc import Iterable
from typing import Any

import torch


class CheckpointNames:
    """Names of parameters in checkpoints and in the built model.

    transformers renames parameters as it loads a checkpoint that was written with other names:
    `visual.blocks.0.attn.qkv.weight` becomes `model.visual.blocks.0.attn.qkv.weight`.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        """Read the key mapping of a model of transformers; other modules have none."""
        self._prefix = str(getattr(module, "base_model_prefix", "") or "")
        self._transforms = _key_mapping(module)
        self._reversed = list(_reversed(self._transforms))

    def in_model(self, name: str) -> str:
        """The name that a parameter of a checkpoint gets in the built model."""
        for transform in _in_order(self._transforms):
            name = _renamed(transform, name)
        return name

    def in_checkpoints(self, name: str) -> set[str]:
        """The names that a parameter of the built model may have in checkpoints, and its own.

        Checkpoints may have been saved with or without the prefix of the base model. Where experts
        are stored one by one, the name is that of the first.
        """
        found = {name}
        unprefixed = [each for each in self._reversed if not _changes_prefix(each)]
        for transforms in (self._reversed, unprefixed):
            old = name
            for transform in transforms:
                old = _renamed(transform, old)
            found.add(old.replace("*", "0"))
        if self._prefix:
            found |= {each.removeprefix(f"{self._prefix}.") for each in found}
        return found


def _key_mapping(module: torch.nn.Module) -> list[Any]:
    transformers = importlib.import_module("transformers")
    if not isinstance(module, transformers.PreTrainedModel):
        return []
    mapping = importlib.import_module("transformers.conversion_mapping")
    found: list[Any] = mapping.get_model_conversion_mapping(module, add_legacy=False)
    return found


def _in_order(transforms: Iterable[Any]) -> list[Any]:
    """Renamings, then conversions of values, as transformers applies them to a name."""
    return sorted(transforms, key=lambda transform: hasattr(transform, "operations"))


def _reversed(transforms: list[Any]) -> Iterable[Any]:
    """The transforms from the built model's names to a checkpoint's, as saving applies them."""
    for transform in reversed(_in_order(transforms)):
        with contextlib.suppress(Exception):  # an operation that has no inverse
            yield transform.reverse_transform()


def _renamed(transform: Any, name: str) -> str:
    renamed: str = transform.rename_source_key(name)[0]
    return renamed


def _changes_prefix(transform: Any) -> bool:
    return hasattr(transform, "prefix_to_add")
