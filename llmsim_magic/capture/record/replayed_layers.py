"""Recording of replayed layers: spans of the layers they repeat, and pairs of tensors."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from llmsim_magic.capture.kernels.tensors import TensorTable
from llmsim_magic.capture.record.events import Event, KernelCall, LayerSpan, ModuleCall, ReplayCall
from llmsim_magic.capture.replay.layer_equality import Run
from llmsim_magic.capture.replay.replay import Replayed
from llmsim_magic.records.trace.recorded import Tensor

_KEEP_NOTHING = ("llmsim_magic.", "torch.")  # packages of hooks that keep no tensor for the model
_OWN_HOOKS = 2  # of every module: before and after its forward


class ReadInside(Exception):
    """Something reads a tensor inside a layer that others repeat, so that each has to run."""


class ReplayedLayers:
    """The layers that ran in a pass, and what was replayed of them.

    Args:
        table: The tensors of the pass.
    """

    def __init__(self, table: TensorTable) -> None:
        self.spans: dict[Run, LayerSpan] = {}
        self._table = table
        # Tensors are kept beside their numbers, so that no other tensor gets their id.
        self._numbers: dict[Run, dict[int, tuple[int, torch.Tensor]]] = {}
        self._called_outside: set[str] = set()  # layers that ran and modules outside any layer
        self._replayed: set[str] = set()

    def add_call(self, path: str) -> None:
        """Note a module that is called outside any layer, or a layer that runs."""
        self._called_outside.add(path)

    def add_replay(self, path: str) -> bool:
        """Note that a layer is replayed; returns whether it had not been called before."""
        is_first = path not in self._replayed and not any(
            called == path or called.startswith(f"{path}.") for called in self._called_outside
        )
        self._replayed.add(path)
        return is_first

    def tensor_pairs(self, replayed: Replayed) -> list[tuple[int, int]]:
        """Return the numbers of the run layer's tensors, each with its counterpart's.

        Counterparts of tensors that share a storage share a storage too, and are written if those
        are.
        """
        table, found = self._table, []
        numbers = self._numbers.setdefault(replayed.run, {})
        counterparts: dict[int, torch.Tensor] = {}  # by number of the storage in the run layer
        for tensor, counterpart in replayed.tensors:
            known = numbers.get(id(tensor))
            if known is None:
                known = numbers[id(tensor)] = (table.add(tensor), tensor)
            number = known[0]
            if tensor is counterpart:
                found.append((number, number))
                continue
            storage = table.tensors[number].storage
            if counterparts.setdefault(storage, counterpart) is not counterpart:
                table.alias(counterpart, counterparts[storage])
            own = table.add(counterpart)
            if storage in table.written:
                table.written.add(table.tensors[own].storage)
            found.append((number, own))
        return found


@dataclass(slots=True)
class _RepeatedLayer:
    """The ranges of a layer's kernels, and the tensors of which its replays have their own.

    `known` are those, and the tensors that they share with it.
    """

    kernels: list[range] = field(default_factory=list)
    own: set[int] = field(default_factory=set)
    known: set[int] = field(default_factory=set)

    def runs(self, kernel: int) -> bool:
        return any(kernel in kernels for kernels in self.kernels)


def is_read_inside(
    events: Sequence[Event],
    kernels: Sequence[KernelCall],
    calls: Sequence[ModuleCall],
    tensors: Sequence[Tensor],
    results: Iterable[int],
) -> bool:
    """Whether anything reads a tensor that only a layer that ran has, but not its replays.

    A hook on a part of a layer keeps a tensor, such as the logits of a router. It is not called
    where the layer is replayed, so that what reads those tensors later finds too few.

    Args:
        events: The events of a pass.
        kernels: Its kernels.
        calls: Its module calls.
        tensors: Its tensors.
        results: The numbers of the tensors that it leaves.
    """
    storages = [tensor.storage for tensor in tensors]
    inside: dict[int, _RepeatedLayer] = {}
    for span, layer in _repeated_layers(events).items():
        first, last = span.calls
        if any(not layer.own.isdisjoint(call.hooked) for call in calls[first + 1 : last]):
            return True
        known = {storages[number] for number in layer.known}
        for call in kernels[slice(*span.kernels)]:
            made = _made(call, storages) - known
            inside |= dict.fromkeys(made, layer)
    if any(storages[number] in inside for number in results):
        return True
    return any(
        layer is not None and not layer.runs(place)
        for place, call in enumerate(kernels)
        for layer in (inside.get(storages[number]) for number in call.kernel.inputs)
    )


def _repeated_layers(events: Iterable[Event]) -> dict[LayerSpan, _RepeatedLayer]:
    """The layers that replays repeat, by the span of their forward."""
    found: dict[LayerSpan, _RepeatedLayer] = {}
    for event in events:
        if isinstance(event, ReplayCall):
            forward = event if event.resumes is None else event.resumes
            layer = found.setdefault(forward.span, _RepeatedLayer())
            kernels = range(*event.span.kernels)
            if kernels not in layer.kernels:
                layer.kernels.append(kernels)
            layer.own |= {one for one, own in event.tensors if one != own}
            layer.known |= {one for one, _ in event.tensors}
    return found


def _made(call: KernelCall, storages: Sequence[int]) -> set[int]:
    """The storages that a kernel allocates or writes."""
    kernel = call.kernel
    read = {storages[number] for number in kernel.inputs}
    made = {storages[number] for number in kernel.outputs} - read
    return made | {storages[number] for number in kernel.writes}


def hooked_tensors(call: ModuleCall) -> tuple[int, ...]:
    """The inputs and outputs of a module's call that hooks of the model's code may keep.

    Those of transformers keep outputs alone.
    """
    before, after = call.module._forward_pre_hooks, call.module._forward_hooks
    if len(before) + len(after) <= _OWN_HOOKS:
        return ()
    packages = [_package(hook) for hook in (*before.values(), *after.values())]
    others = [package for package in packages if not package.startswith(_KEEP_NOTHING)]
    if not others:
        return ()
    of_library = all(package.startswith("transformers.") for package in others)
    return call.outputs if of_library else (*call.inputs, *call.outputs)


def _package(hook: Any) -> str:
    while isinstance(hook, partial):
        hook = hook.func
    return getattr(hook, "__module__", None) or type(hook).__module__
