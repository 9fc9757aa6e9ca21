"""A folder of entries by key: written whole, checked when they are read, bounded in bytes.

Any number of processes may share it. An entry that is torn, of another program or of another key
counts as missing. Nothing in it is executed.
"""

import hashlib
import os
import re
import stat
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

MAX_BYTES = 500_000_000
MAX_ENTRY_BYTES = 256 << 20  # of one entry, uncompressed
_HEADER = b"llmsim record 1\n"
_DIGEST_BYTES = 32
_LEVEL = 1  # of zlib: ten times smaller in 0.2 ms, and higher levels gain little
_NAME = re.compile(r"[0-9a-f]{64}\.record")
_UNFINISHED = "unfinished-"  # begins the name of a file that is being written
_ABANDONED_S = 3600  # after which an unfinished file counts as that of a killed process
_TRIM_TO = 0.9  # of the bytes that are allowed, so that not every write has to trim


@dataclass
class DiskCache:
    """Entries in a folder; the least recently used ones go when there are too many bytes.

    Attributes:
        folder: the folder; created by the first write.
        max_bytes: bytes of all entries on disk.
    """

    folder: Path
    max_bytes: int = MAX_BYTES
    _unchecked: int | None = field(default=None, init=False)  # bytes written since the last check

    def read(self, key: str) -> bytes | None:
        """The content of an entry, or None if it is missing, damaged or of another user.

        Args:
            key: 64 hexadecimal digits.
        """
        path = self._path(key)
        try:
            with open(path, "rb", opener=_open_regular_file) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode) or not _is_trusted(status):
                    return None
                content = _decoded(file.read(MAX_ENTRY_BYTES), key)
        except OSError:
            return None
        if content is not None:
            with suppress(OSError):  # the cache of another user, or a read-only file system
                os.utime(path)
        return content

    def has(self, key: str) -> bool:
        """Whether there is an entry, which may be damaged."""
        return self._path(key).is_file()

    def write(self, key: str, content: bytes) -> None:
        """Write an entry, or nothing at all: a cache that cannot be written stays as it is.

        Args:
            key: 64 hexadecimal digits.
            content: at most `MAX_ENTRY_BYTES`.
        """
        if len(content) > MAX_ENTRY_BYTES:
            return
        encoded = _encoded(content, key)
        with suppress(OSError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._write_whole(self._path(key), encoded)
            self._count(len(encoded))

    def forget(self) -> None:
        """Delete every entry."""
        for entry in self._files():
            with suppress(OSError):
                os.unlink(entry.path)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.record"

    def _write_whole(self, path: Path, encoded: bytes) -> None:
        number, unfinished = tempfile.mkstemp(prefix=_UNFINISHED, dir=self.folder)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(encoded)
            os.replace(unfinished, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(unfinished)
            raise

    def _count(self, written: int) -> None:
        """Trim before the first write of a process, and after each twentieth of the limit."""
        if self._unchecked is not None and self._unchecked + written < self.max_bytes / 20:
            self._unchecked += written
            return
        self._trim()
        self._unchecked = 0

    def _trim(self) -> None:
        """Delete what killed processes left, and the entries used longest ago."""
        used: list[tuple[float, int, str]] = []
        now = time.time()
        for entry in self._files():
            with suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if not entry.name.startswith(_UNFINISHED):
                    is_future = status.st_mtime > now + _ABANDONED_S  # the clock went back
                    last_use = 0 if is_future else status.st_mtime
                    used.append((last_use, status.st_size, entry.path))
                elif abs(now - status.st_mtime) > _ABANDONED_S:
                    os.unlink(entry.path)
        total = sum(size for _, size, _ in used)
        if total <= self.max_bytes:
            return
        for _, size, path in sorted(used):
            with suppress(OSError):
                os.unlink(path)
            total -= size
            if total <= self.max_bytes * _TRIM_TO:
                return

    def _files(self) -> Iterator["os.DirEntry[str]"]:
        """The files of this cache, and no others that may lie in its folder."""
        with suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.startswith(_UNFINISHED) or _NAME.fullmatch(entry.name):
                    yield entry


def _encoded(content: bytes, key: str) -> bytes:
    packed = zlib.compress(content, _LEVEL)
    return b"".join((_HEADER, _digest(packed, key), packed))


def _decoded(encoded: bytes, key: str) -> bytes | None:
    """The content of an entry; None if it is not what was written for this key."""
    start = len(_HEADER) + _DIGEST_BYTES
    packed = encoded[start:]
    if encoded[:start] != _HEADER + _digest(packed, key):
        return None
    unpacking = zlib.decompressobj()
    try:
        content = unpacking.decompress(packed, MAX_ENTRY_BYTES)
    except zlib.error:
        return None
    return content if unpacking.eof else None


def _digest(packed: bytes, key: str) -> bytes:
    return hashlib.sha256(bytes.fromhex(key) + packed).digest()


def _open_regular_file(path: str, flags: int) -> int:
    """Open a file that is no link; one that is a pipe does not block."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def _is_trusted(status: os.stat_result) -> bool:
    """Whether a file is the user's own or the administrator's, and nobody else may write it."""
    if not hasattr(os, "getuid"):
        return True
    return status.st_uid in (os.getuid(), 0) and not status.st_mode & stat.S_IWOTH
