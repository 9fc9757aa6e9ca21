"""The tensors of a checkpoint: their names, and whether two of them have equal values."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Locate = Callable[[str], Path | None]
_SAFETENSORS_INDEX = "model.safetensors.index.json"
_INDICES = (_SAFETENSORS_INDEX, "pytorch_model.bin.index.json")
_FILE = "model.safetensors"
_MAX_HEADER_BYTES = 64 << 20  # an index of 100,000 tensors has 10 MB
_MAX_COMPARED_BYTES = 1 << 30  # two matrices of as many equal bytes are the same
_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class StoredTensors:
    """The names of the tensors of a checkpoint, and the files that hold them.

    Attributes:
        files: the local safetensors file of each tensor; None where it is not at hand.
        stores_shared_twice: whether the format names tied tensors once each, as torch's does.
    """

    files: Mapping[str, Path | None]
    stores_shared_twice: bool = False

    def have_equal_values(self, first: str, second: str) -> bool | None:
        """Whether two tensors have the same shape and the same values; None if it is unknown.

        Reads no more than their own bytes, and at most 1 GiB of each.
        """
        one, other = self._entry(first), self._entry(second)
        if one is None or other is None:
            return None
        if one.shape != other.shape:
            return False
        return None if one.dtype != other.dtype else _have_equal_bytes(one, other)

    def _entry(self, name: str) -> "_Entry | None":
        path = self.files[name]
        found = _header(path) if path is not None else None
        return None if path is None or found is None else _entry(path, *found, name)


def stored_tensors(locate: Locate) -> StoredTensors | None:
    """The tensors of the checkpoint in a folder or the local cache.

    Args:
        locate: Gives the path of a file of the checkpoint; None if it is not at hand.

    Returns:
        The tensors; None if no index and no file of weights is at hand, or it cannot be read.
    """
    for file in _INDICES:
        if (path := locate(file)) is not None:
            index = _read_json(path, 0, path.stat().st_size)
            weights = index.get("weight_map") if isinstance(index, Mapping) else None
            if isinstance(weights, Mapping):
                files = {shard: _shard(locate, shard) for shard in set(map(str, weights.values()))}
                of_tensor = {name: files[str(shard)] for name, shard in weights.items()}
                return StoredTensors(of_tensor, file != _SAFETENSORS_INDEX)
    path = locate(_FILE)
    found = None if path is None else _header(path)
    names = {} if found is None else found[0].keys() - {"__metadata__"}
    return StoredTensors(dict.fromkeys(names, path)) if names else None


def files_of_weights(locate: Locate) -> list[Path]:
    """The files at hand from which the tensors of a checkpoint are read, but for its shards."""
    return [path for file in (*_INDICES, _FILE) if (path := locate(file)) is not None]


def _shard(locate: Locate, file: str) -> Path | None:
    """The path of a file that an index names, beside it."""
    is_beside = file == Path(file).name and file.endswith(".safetensors")
    return locate(file) if is_beside else None


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor in a safetensors file: its bytes are `length` from `start`."""

    path: Path
    start: int
    length: int
    dtype: Any
    shape: Any


def _entry(path: Path, header: Mapping[str, Any], data: int, name: str) -> _Entry | None:
    try:
        start, end = map(int, header[name]["data_offsets"])
        dtype, shape = header[name]["dtype"], header[name]["shape"]
    except (KeyError, TypeError, ValueError):
        return None
    is_inside = 0 <= start <= end <= path.stat().st_size - data
    return _Entry(path, data + start, end - start, dtype, shape) if is_inside else None


def _have_equal_bytes(one: _Entry, other: _Entry) -> bool:
    if one.length != other.length:
        return False
    with one.path.open("rb") as first, other.path.open("rb") as second:
        first.seek(one.start)
        second.seek(other.start)
        left = min(one.length, _MAX_COMPARED_BYTES)
        while left > 0:
            size = min(left, _CHUNK_BYTES)
            if first.read(size) != second.read(size):
                return False
            left -= size
    return True


def _header(path: Path) -> tuple[Mapping[str, Any], int] | None:
    """A safetensors header, which is 8 bytes with its length and JSON, and where it ends."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    header = _read_json(path, 8, length)
    return (header, 8 + length) if isinstance(header, Mapping) else None


def _read_json(path: Path, start: int, length: int) -> Any:
    """The JSON value in a part of a file; None if it is too large or no JSON."""
    if length > _MAX_HEADER_BYTES:
        return None
    with path.open("rb") as file:
        file.seek(start)
        content = file.read(length)
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
