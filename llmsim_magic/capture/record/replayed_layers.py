"""Recording of replayed layers: spans of the layers they repeat, and pairs of tensors."""

import torch

from llmsim_magic.capture.kernels.tensors import TensorTable
from llmsim_magic.capture.record.events import LayerSpan
from llmsim_magic.capture.replay.layer_equality import Run
from llmsim_magic.capture.replay.replay import Replayed


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
