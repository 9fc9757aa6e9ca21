"""The storages that kernels read and write."""

from collections.abc import Iterable

from llmsim_magic.records.trace.recorded import Kernel, Record


def storages(record: Record, tensors: Iterable[int]) -> set[int]:
    """The storages of some tensors of a record."""
    return {record.tensors[index].storage for index in tensors}


def written_storages(record: Record, kernel: Kernel) -> set[int]:
    """The storages that a kernel writes."""
    return storages(record, (*kernel.outputs, *kernel.writes))
