"""Logits of the last token of each sequence, which are all that an engine computes."""

from dataclasses import replace

from msgspec.structs import replace as struct_replace

from llmsim_magic.analyses.kernels.kernel_storages import storages, written_storages
from llmsim_magic.records.trace.recorded import Record


def with_last_logits(record: Record, batch: int) -> Record:
    """The record with logits of last tokens only, and so what the head's output is scaled to.

    Args:
        record: A pass without replays; its first result are logits.
        batch: The number of sequences.

    Returns:
        The record with smaller storages; shapes of tensors stay.
    """
    found = list(record.storages)
    for index, tokens in _storages_of_logits(record, batch).items():
        storage = found[index]
        if storage.role == "activation":
            found[index] = struct_replace(storage, nbytes=storage.nbytes // tokens)
    return replace(record, storages=tuple(found))


def _storages_of_logits(record: Record, batch: int) -> dict[int, int]:
    """The storages from the head's output to the logits, with the tokens of each sequence.

    They are found backwards from the results, up to the first matmuls. A storage that other
    kernels read, too, is needed for all tokens.
    """
    readers = _readers(record)
    wanted = _returned_logits(record, batch)
    returned = frozenset(wanted)
    found: dict[int, int] = {}
    after_head: set[int] = set()
    for place in reversed(range(len(record.kernels))):
        kernel = record.kernels[place]
        if kernel.is_view:
            continue
        written = written_storages(record, kernel)
        logits = written & wanted.keys()
        if not logits:
            continue
        if any(not readers.get(each, set()) <= after_head for each in logits - returned):
            continue
        after_head.add(place)
        tokens = max(wanted[each] for each in logits)
        found |= dict.fromkeys(logits, tokens)
        if not kernel.flops:
            for storage in storages(record, kernel.inputs) - written:
                wanted.setdefault(storage, tokens)
    return found


def _returned_logits(record: Record, batch: int) -> dict[int, int]:
    """The storages of results over the vocabulary, with the tokens of each sequence."""
    results = [tensor for index in record.results if (tensor := record.tensors[index]).shape]
    return {
        tensor.storage: _tokens(tensor.shape, batch)
        for tensor in results
        if tensor.shape[-1] == results[0].shape[-1]
    }


def _tokens(shape: tuple[int, ...], batch: int) -> int:
    """The tokens of a sequence in logits `[batch, tokens, vocabulary]` or `[tokens, vocabulary]`.

    Further axes, such as one of codebooks, are shorter than that of the tokens.
    """
    if len(shape) == 2:
        return max(shape[0] // batch, 1)
    return max(shape[1:-1], default=1)


def _readers(record: Record) -> dict[int, set[int]]:
    """The places of the kernels that read each storage, without those that also write it."""
    storage_of = [tensor.storage for tensor in record.tensors]
    found: dict[int, set[int]] = {}
    for place, kernel in enumerate(record.kernels):
        if not kernel.is_view:
            written = [storage_of[index] for index in (*kernel.outputs, *kernel.writes)]
            for index in kernel.inputs:
                storage = storage_of[index]
                if storage not in written:
                    found.setdefault(storage, set()).add(place)
    return found
