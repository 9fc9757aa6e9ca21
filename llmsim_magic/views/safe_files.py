"""Writes files atomically, and refuses to overwrite files that this package did not write."""

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
from llmsim_magic.records.printable import printable
from llmsim_magic.records.validation import flag

# A file in each output folder, by which later processes recognise what was written: one line per
# written file, the SHA-256 of its name and content.
MANIFEST = ".llmsim-written"
_TEMPORARY_PREFIX, _STALE_AFTER_S = ".llmsim-", 3600


class OverwriteRefused(InvalidValue):
    """The file exists, and this package did not write it or somebody changed it since."""

    def __init__(self, file: Path) -> None:
        super().__init__(
            f"{_quote(file)} was not written by llmsim_magic, or was changed since: choose "
            "another path, move the file away, or allow overwriting (overwrite=True, --overwrite)"
        )


@defer_interrupt
def write_files(
    folder: str | Path, contents: Mapping[str, bytes], *, overwrite: bool = False
) -> list[Path]:
    """Write files into a folder, which is created if it is missing.

    Every file is first written to a temporary file in the folder, so a full disk changes none of
    them; then each is moved into place atomically. Symbolic links are replaced, not followed.

    Args:
        folder: where to write.
        contents: the content of each file by its name.
        overwrite: also replace files that this package did not write.

    Returns:
        The paths of the files, in the order of `contents`.

    Raises:
        OverwriteRefused: a file exists that was not written here or was changed since; nothing
            is written.
        InvalidValue: the folder or a file cannot be written.
    """
    flag("overwrite", overwrite)
    with _folder_errors(folder):
        path = Path(folder).expanduser()
        path.mkdir(parents=True, exist_ok=True)
        _remove_stale_temporaries(path)
    files = [path / name for name in contents]
    temporaries: list[Path] = []
    try:
        for file in files:
            _check_overwrite(file, overwrite)
        for file, content in zip(files, contents.values(), strict=True):
            temporaries.append(path / f"{_TEMPORARY_PREFIX}{uuid.uuid4().hex}")
            with _file_errors(file):
                _write(temporaries[-1], content, os.O_EXCL)
        with _file_errors(path / MANIFEST):
            _add_to_manifest(path / MANIFEST, contents)
        for place, file in enumerate(files):
            with _file_errors(file, already_written=files[:place]):
                _move_into_place(temporaries[place], file, overwrite)
    finally:
        for temporary in temporaries:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    return files


def write_file(path: str | Path, content: bytes, *, overwrite: bool = False) -> Path:
    """Write one file as `write_files` does, with the same errors."""
    file = as_path(path)
    return write_files(file.parent, {file.name: content}, overwrite=overwrite)[0]


def written_message(files: Sequence[Path]) -> str:
    """`Wrote 6 files to out/`, for files of one folder."""
    number = f"{len(files)} file{'' if len(files) == 1 else 's'}"
    return f"Wrote {number} to {printable(os.path.join(files[0].parent, ''))}"


def as_path(path: str | Path) -> Path:
    """`Path(path)`; raises `InvalidValue` for a value that is not a path."""
    with _file_errors(path):
        return Path(path)


def check_writable(folder: str | Path) -> None:
    """Raise `InvalidValue` if the folder could not be created or written; creates nothing."""
    if not str(folder):
        raise InvalidValue.must_be("path", "", "the name of a folder")
    with _folder_errors(folder):
        path = Path(folder).expanduser().absolute()
        existing = next(each for each in (path, *path.parents) if os.path.lexists(each))
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _remove_stale_temporaries(folder: Path) -> None:
    """Remove temporary files that a killed process left."""
    for temporary in folder.glob(_TEMPORARY_PREFIX + "[0-9a-f]" * 32):
        with suppress(OSError):
            if time.time() - temporary.stat().st_mtime > _STALE_AFTER_S:
                temporary.unlink()


def _check_overwrite(file: Path, overwrite: bool) -> None:
    """Raise `OverwriteRefused` for a file that must not be replaced."""
    with _file_errors(file):
        if not overwrite and os.path.lexists(file) and not _is_in_manifest(file):
            raise OverwriteRefused(file)


def _is_in_manifest(file: Path) -> bool:
    if file.is_symlink() or not file.is_file():
        return False
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, lambda: _hash_of_name(file.name))
    return digest.hexdigest() in _read_manifest(file.parent / MANIFEST)


def _hash_of_name(name: str) -> "hashlib._Hash":
    return hashlib.sha256(os.fsencode(name) + b"\0")


def _read_manifest(manifest: Path) -> set[str]:
    if not manifest.is_file():
        return set()
    return set(manifest.read_text("ascii", errors="replace").split())


def _add_to_manifest(manifest: Path, contents: Mapping[str, bytes]) -> None:
    """Add files before they are written, so that a killed process can write them again."""
    known, new_lines = _read_manifest(manifest), ""
    for name, content in contents.items():
        digest = _hash_of_name(name)
        digest.update(content)
        if digest.hexdigest() not in known:
            new_lines += f"{digest.hexdigest()}\n"
    if new_lines:
        # A full disk may have truncated the last line, so start on a new one.
        flags = os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        _write(manifest, f"\n{new_lines}".encode(), flags)


def _write(file: Path, content: bytes, extra_flags: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0) | extra_flags
    with open(os.open(file, flags, 0o666), "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())


def _move_into_place(temporary: Path, file: Path, overwrite: bool) -> None:
    with suppress(OSError):  # the file exists, or the file system has no hard links
        os.link(temporary, file)
        return
    _check_overwrite(file, overwrite)  # another process may have created it in the meantime
    os.replace(temporary, file)


@contextmanager
def _file_errors(path: str | Path, already_written: Sequence[Path] = ()) -> Iterator[None]:
    """Turn an operating system's error into `InvalidValue`, with the files written before it."""
    try:
        yield
    except _PATH_ERRORS as error:
        text = f"cannot write the file {_quote(path)}: {_reason(error)}; choose another path"
        if already_written:
            text += f"; already written: {', '.join(file.name for file in already_written)}"
        raise InvalidValue(text) from error


@contextmanager
def _folder_errors(folder: str | Path) -> Iterator[None]:
    """Turn an operating system's error into `InvalidValue`."""
    try:
        yield
    except _PATH_ERRORS as error:
        raise InvalidValue(
            f"cannot write to the folder {_quote(folder)}: {_reason(error)}; choose a folder "
            "that can be written"
        ) from error


# OSError aside: a value that is not a path, a NUL in it, and an unknown user in ~user.
_PATH_ERRORS = (OSError, TypeError, ValueError, RuntimeError)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _quote(path: str | Path, limit: int = 75) -> str:
    """The path in quotes; only its end if it is long, as the end distinguishes it."""
    text = str(path)
    return shorten(text if len(text) <= limit else f"…{text[-limit:]}")
