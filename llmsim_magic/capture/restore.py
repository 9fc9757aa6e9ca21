"""Undo what a forward pass changes beside its result."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def as_it_was(model: torch.nn.Module) -> Iterator[None]:
    """Put back the model's attributes, buffers and collections, and the random generators.

    A model that is kept for the next question must give it the same answer.
    """
    attributes = [(vars(module), dict(vars(module))) for module in model.modules()]
    held = [
        (value, _content(value))
        for _, before in attributes
        for value in before.values()
        if isinstance(value, (dict, list, set))
    ]
    dice = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(dice)
        for now, before in attributes:
            _put_back(now, before)
        for value, content in held:
            _put_back(value, content)


def _content(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else list(value)


def _put_back(now: Any, before: Any) -> None:
    """The collection itself stays; what it holds is what it held."""
    now.clear()
    if isinstance(now, list):
        now.extend(before)
    else:
        now.update(before)
