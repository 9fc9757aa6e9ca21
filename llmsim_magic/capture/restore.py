"""Undo what a forward pass changes beside its result."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from llmsim_magic.capture.tensors import tensors_in


@contextmanager
def as_it_was(model: torch.nn.Module, *, only_after_errors: bool = False) -> Iterator[None]:
    """Put back the model's attributes, buffers and collections, and the random generators.

    A model that is kept for the next question must give it the same answer.
    With `only_after_errors` a pass that succeeds keeps what it left in the model.
    """
    attributes = [(vars(module), dict(vars(module))) for module in model.modules()]
    held = [
        (value, _content(value))
        for _, before in attributes
        for value in before.values()
        if isinstance(value, (dict, list, set))
    ]
    tensors = [value for _, before in attributes for value in tensors_in(before) if _is_real(value)]
    tensors += [buffer for buffer in model.buffers() if _is_real(buffer)]
    contents = [(tensor, tensor.clone()) for tensor in tensors]
    dice = random.getstate()
    keep = False
    try:
        with torch.random.fork_rng(devices=[]):
            yield
        keep = only_after_errors
    finally:
        random.setstate(dice)
        if not keep:
            for now, before in attributes:
                _put_back(now, before)
            for value, content in held:
                _put_back(value, content)
            for tensor, content in contents:
                if not torch.equal(tensor, content):
                    tensor.data.copy_(content)


def _is_real(tensor: torch.Tensor) -> bool:
    return not tensor.is_meta and tensor.layout is torch.strided


def _content(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else list(value)


def _put_back(now: Any, before: Any) -> None:
    """The collection itself stays; what it holds is what it held."""
    now.clear()
    if isinstance(now, list):
        now.extend(before)
    else:
        now.update(before)
