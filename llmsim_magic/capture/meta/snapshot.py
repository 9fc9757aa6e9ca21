"""Restore what a forward pass changes besides its result: attributes and small tensors."""

import operator
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from llmsim_magic.capture.kernels.rng import preserved_rng
from llmsim_magic.capture.kernels.tensors import tensors_in

_INTERNAL = frozenset(vars(torch.nn.Module())) - {"_buffers"}


class ChangedAttribute(NamedTuple):
    """An attribute of a module, or its buffers: the value now, and the saved one."""

    module: torch.nn.Module
    name: str
    value: Any
    saved: Any


class Snapshot:
    """The attributes, collections and tensor values of modules, to be restored after a pass.

    Args:
        modules: All modules whose state may change. Tensors on `meta` are not saved.
    """

    def __init__(self, modules: Iterable[torch.nn.Module]) -> None:
        self._states = {module: _ModuleState(module) for module in modules}

    def restore(self, modules: Iterable[torch.nn.Module]) -> bool:
        """Restore modules, so that the next pass starts from the same state.

        If one of them has changed, all modules of the snapshot are restored, since a module may
        also change others: some models register hooks on their layers.

        Args:
            modules: The modules that ran.

        Returns:
            Whether any of them had changed.
        """
        ran = [module for module in modules if module in self._states]
        changed = any(self._states[module].restore() for module in ran)
        if changed:
            for state in self._states.values():
                state.restore()
        return changed

    def changed(self, modules: Iterable[torch.nn.Module]) -> Iterator[ChangedAttribute]:
        """Yield the attributes and buffers of modules that are not as they were saved."""
        for module in modules:
            if module in self._states:
                for name, value, saved in self._states[module].changed():
                    yield ChangedAttribute(module, name, value, saved)


class _ModuleState:
    """The saved state of one module."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._attributes = vars(module)
        self._saved = dict(self._attributes)
        self._collections = [
            (value, _copy(value))
            for value in self._saved.values()
            if isinstance(value, (dict, list, set))
        ]
        self._tensors = [
            (tensor, tensor.clone()) for tensor in tensors_in(self._saved) if _has_values(tensor)
        ]

    def restore(self) -> bool:
        """Restore everything; returns whether anything had changed."""
        changed = _restore(self._attributes, self._saved)
        for collection, saved in self._collections:
            changed |= _restore(collection, saved)
        for tensor, values in self._tensors:
            if not torch.equal(tensor, values):
                if tensor.shape != values.shape:  # the forward resized it in place
                    tensor.resize_(values.shape)
                tensor.data.copy_(values)
                changed = True
        return changed

    def changed(self) -> Iterator[tuple[str, Any, Any]]:
        """Yield each attribute that differs: its name, its value and the saved one."""
        copies = {id(value): saved for value, saved in self._collections}
        for name, value in self._attributes.items():
            if name in _INTERNAL:
                continue
            saved = self._saved.get(name)
            if value is saved:
                saved = copies.get(id(value))
                if saved is None or _is_identical(value, saved):
                    continue
            yield name, value, saved


@contextmanager
def restored(model: torch.nn.Module) -> Iterator[None]:
    """Restore the state of a model and the random generators on exit."""
    snapshot = Snapshot(model.modules())
    try:
        with preserved_rng():
            yield
    finally:
        snapshot.restore(model.modules())


@contextmanager
def restored_attributes(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Restore the attributes of modules on exit; copying an `nn.LSTM`, for one, changes them."""
    saved = [(vars(module), dict(vars(module))) for module in modules]
    try:
        yield
    finally:
        for attributes, before in saved:
            _restore(attributes, before)


def _has_values(tensor: torch.Tensor) -> bool:
    return not tensor.is_meta and tensor.layout is torch.strided


def _copy(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else list(value)


def _restore(collection: Any, saved: Any) -> bool:
    """Restores a collection in place; returns whether it had changed."""
    if _is_identical(collection, saved):
        return False
    collection.clear()
    if isinstance(collection, list):
        collection.extend(saved)
    else:
        collection.update(saved)
    return True


def _is_identical(now: Any, saved: Any) -> bool:
    """Whether two collections hold the same objects."""
    if isinstance(now, dict):
        return now.keys() == saved.keys() and all(now[key] is saved[key] for key in saved)
    return len(now) == len(saved) and all(map(operator.is_, now, saved))
