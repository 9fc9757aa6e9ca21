"""Write files: whole or not at all, and never in the place of somebody else's."""

import errno
import hashlib
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from llmsim_magic.records.deferred_interrupt import defer_interrupt
from llmsim_magic.records.errors import InvalidValue, shorten
from llmsim_magic.records.validation import flag

# Stands beside what was written, so that another process knows it too: a line for each file, the
# SHA-256 of its name and content.
LEDGER = ".llmsim-written"
_STAGED, _STALE_S = ".llmsim-", 3600
_FILE, _FOLDER = "a file that can be written", "a folder that can be written"


class NotOurs(InvalidValue):
    """A file that something else wrote, or changed since."""

    def __init__(self, file: Path) -> None:
        super().__init__(
            f"{shorten(_end(file))} was not written by llmsim_magic, or was changed since: name "
            "another place, move the file away, or allow overwriting (overwrite=True, --overwrite)"
        )


@defer_interrupt
def write(
    folder: str | Path, contents: Mapping[str, bytes], *, overwrite: bool = False
) -> list[Path]:
    """Put files into a folder, which is made where it was missing.

    All are written beside their places first, so that a full disk changes none of them; then each
    is put in its place at once. A link is not followed.

    Raises `NotOurs`, before anything is written, where a file was not written here or was changed
    since, unless it may be overwritten; `InvalidValue` where the folder or a file cannot be
    written.
    """
    flag("overwrite", overwrite)
    with _told(folder, _FOLDER):
        path = Path(folder).expanduser()
        path.mkdir(parents=True, exist_ok=True)
        _sweep(path)
    files = [path / name for name in contents]
    staged: list[Path] = []
    try:
        for file in files:
            _check(file, overwrite)
        for file, content in zip(files, contents.values(), strict=True):
            staged.append(path / f"{_STAGED}{uuid.uuid4().hex}")
            with _told(file):
                _write(staged[-1], content, os.O_EXCL)
        with _told(path / LEDGER):
            _remember(path / LEDGER, contents)
        for place, file in enumerate(files):
            with _told(file, placed=files[:place]):
                _put(staged[place], file, overwrite)
    finally:
        for each in staged:
            with suppress(OSError):
                each.unlink(missing_ok=True)
    return files


def write_file(path: str | Path, content: bytes, *, overwrite: bool = False) -> Path:
    """The same of one file: raises `NotOurs` and `InvalidValue`."""
    file = resolve_path(path)
    return write(file.parent, {file.name: content}, overwrite=overwrite)[0]


def resolve_path(path: str | Path) -> Path:
    """The path itself; raises `InvalidValue` for what is none."""
    with _told(path):
        return Path(path)


def check_writable(folder: str | Path) -> None:
    """Ask before any work is done: raises `InvalidValue` where a folder could not be written."""
    if not str(folder):
        raise InvalidValue.must_be("path", "", "a folder's name")
    with _told(folder, _FOLDER):
        path = Path(folder).expanduser().absolute()
        there = next(each for each in (path, *path.parents) if os.path.lexists(each))
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _sweep(folder: Path) -> None:
    """Remove what a process that was killed has left."""
    for staged in folder.glob(_STAGED + "[0-9a-f]" * 32):
        with suppress(OSError):
            if time.time() - staged.stat().st_mtime > _STALE_S:
                staged.unlink()


def _check(file: Path, overwrite: bool) -> None:
    """Raises `NotOurs` for a file that may not go."""
    with _told(file):
        if not overwrite and os.path.lexists(file) and not _is_ours(file):
            raise NotOurs(file)


def _is_ours(file: Path) -> bool:
    if file.is_symlink() or not file.is_file():
        return False
    with file.open("rb") as content:
        found = hashlib.file_digest(content, lambda: _named(file.name))
    return found.hexdigest() in _ledger(file.parent / LEDGER)


def _named(name: str) -> "hashlib._Hash":
    return hashlib.sha256(os.fsencode(name) + b"\0")


def _ledger(file: Path) -> set[str]:
    return set(file.read_text("ascii", errors="replace").split()) if file.is_file() else set()


def _remember(ledger: Path, contents: Mapping[str, bytes]) -> None:
    """Note what the files will be, before they are: who is killed meanwhile may go on."""
    known, new = _ledger(ledger), ""
    for name, content in contents.items():
        hashed = _named(name)
        hashed.update(content)
        if hashed.hexdigest() not in known:
            new += f"{hashed.hexdigest()}\n"
    if new:
        # After a line that a full disk cut short, a new one begins.
        _write(ledger, f"\n{new}".encode(), os.O_APPEND | getattr(os, "O_NOFOLLOW", 0))


def _write(file: Path, content: bytes, how: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0) | how
    with open(os.open(file, flags, 0o666), "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())


def _put(whole: Path, file: Path, overwrite: bool) -> None:
    with suppress(OSError):  # there is a file, or the disk knows no links
        os.link(whole, file)
        return
    _check(file, overwrite)  # it may have come meanwhile
    os.replace(whole, file)


@contextmanager
def _told(path: str | Path, legal: str = _FILE, placed: Sequence[Path] = ()) -> Iterator[None]:
    """Say in one line what cannot be written and why, and what was written before it."""
    try:
        yield
    except (OSError, TypeError, ValueError, RuntimeError) as error:  # no path; NUL; ~nobody
        why = getattr(error, "strerror", None) or str(error)
        done = f"; written before it: {', '.join(file.name for file in placed)}" if placed else ""
        raise InvalidValue.must_be("path", _end(path), f"{legal} ({why}){done}") from error


def _end(path: str | Path, limit: int = 75) -> str:
    """Of a long path the part that tells it from others."""
    text = str(path)
    return text if len(text) <= limit else f"…{text[-limit:]}"
