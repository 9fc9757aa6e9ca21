"""Undo what a forward pass changes beside its result."""

import operator
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from llmsim_magic.capture.kernels.rng import preserved_rng
from llmsim_magic.capture.kernels.tensors import tensors_in


class Snapshot:
    """What modules hold beside their weights: attributes, collections, and tensors with values."""

    def __init__(self, modules: Iterable[torch.nn.Module]) -> None:
        self._held = {module: _Held(module) for module in modules}

    def restore(self, modules: Iterable[torch.nn.Module]) -> bool:
        """Put back what these held, so that they answer the next question as they did the last.

        Whether anything was otherwise.

        Where any of them had changed, so may those have that were only reached into: a model
        that hangs hooks on its layers notes that it did.
        """
        ran = [module for module in modules if module in self._held]
        changed = any(self._held[module].restore() for module in ran)
        if changed:
            for held in self._held.values():
                held.restore()
        return changed


class _Held:
    """What one module held."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._now = vars(module)
        self._then = dict(self._now)
        self._collections = [
            (value, _content(value))
            for value in self._then.values()
            if isinstance(value, (dict, list, set))
        ]
        self._tensors = [
            (tensor, tensor.clone()) for tensor in tensors_in(self._then) if _is_real(tensor)
        ]

    def restore(self) -> bool:
        """Put all back; whether anything was otherwise."""
        changed = _put_back(self._now, self._then)
        for value, content in self._collections:
            changed |= _put_back(value, content)
        for tensor, content in self._tensors:
            if not torch.equal(tensor, content):
                tensor.data.copy_(content)
                changed = True
        return changed


@contextmanager
def restored(model: torch.nn.Module) -> Iterator[None]:
    """Put back all that a model holds, and the random generators."""
    snapshot = Snapshot(model.modules())
    try:
        with preserved_rng():
            yield
    finally:
        snapshot.restore(model.modules())


@contextmanager
def unchanged(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Put back the attributes of modules that code of their own changes, as an LSTM's copying."""
    held = [(vars(module), dict(vars(module))) for module in modules]
    try:
        yield
    finally:
        for now, then in held:
            _put_back(now, then)


def _is_real(tensor: torch.Tensor) -> bool:
    return not tensor.is_meta and tensor.layout is torch.strided


def _content(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else list(value)


def _put_back(now: Any, then: Any) -> bool:
    """The collection itself stays; what it holds is what it held. Whether it was otherwise."""
    if _alike(now, then):
        return False
    now.clear()
    if isinstance(now, list):
        now.extend(then)
    else:
        now.update(then)
    return True


def _alike(now: Any, then: Any) -> bool:
    """Whether two collections hold the very same."""
    if isinstance(now, dict):
        return now.keys() == then.keys() and all(now[key] is then[key] for key in then)
    return len(now) == len(then) and all(map(operator.is_, now, then))
