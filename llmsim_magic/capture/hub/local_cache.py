"""The local HuggingFace cache: what huggingface_hub has kept of a repository, and what we add.

`hf_hub_download` would ask the hub twice for a file and cannot be bounded in bytes, so that what
`request.get` brings is written here, in the layout that huggingface_hub documents: `blobs/ETAG`, a
link to it in `snapshots/COMMIT`, and the commit of a branch in `refs`.
"""

import contextlib
import hashlib
import importlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llmsim_magic.capture.hub.repository_name import RepositoryName
from llmsim_magic.capture.hub.settings import import_problem

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r"[0-9A-Za-z][\w-]{0,127}")
_MAX_IN_MEMORY = 16
# What could not be written, by endpoint, repository, revision and path; None for a missing file.
_memory: dict[tuple[str, str, str, str], bytes | None] = {}


def cached_content(name: RepositoryName, file: str) -> Path | bytes | None:
    """A file of a repository in the local cache, or what the session remembers; None if unknown."""
    hub = importlib.import_module("huggingface_hub")
    found = hub.try_to_load_from_cache(name.repo, name.path(file), revision=name.revision)
    return Path(found) if isinstance(found, str) else _memory.get(_key(name, file))


def is_known_missing(name: RepositoryName, file: str) -> bool:
    """Whether the repository is known to have no such file."""
    hub = importlib.import_module("huggingface_hub")
    found = hub.try_to_load_from_cache(name.repo, name.path(file), revision=name.revision)
    return (found is not None and not isinstance(found, str)) or (
        found is None and _memory.get(_key(name, file), b"") is None
    )


def cached_models() -> list[str]:
    """The hub ids of all models whose config is in the local HuggingFace cache."""
    if import_problem() is not None:
        return []
    constants = importlib.import_module("huggingface_hub.constants")
    folders = sorted(Path(constants.HF_HUB_CACHE).glob("models--*"))
    names = [folder.name.removeprefix("models--").replace("--", "/") for folder in folders]
    found = []
    for name in names:
        with contextlib.suppress(ValueError):  # a folder that no id names
            if isinstance(cached_content(RepositoryName(name), "config.json"), Path):
                found.append(name)
    return found


def keep(
    name: RepositoryName, file: str, content: bytes | None, headers: Mapping[str, str]
) -> None:
    """Keep a file that the hub gave, or that it has none (`content` is None).

    Without a commit in the answer, or where the cache cannot be written, the session remembers it.

    Args:
        name: The repository and the revision that was asked for.
        file: The name of the file in the folder of `name`.
        content: The content of the file.
        headers: The headers of the hub's answer, names in lower case.
    """
    commit = headers.get("x-repo-commit", "")
    if _COMMIT.fullmatch(commit):
        with contextlib.suppress(OSError):
            _write(name, file, content, commit, headers)
            _memory.pop(_key(name, file), None)
            return
    _memory[_key(name, file)] = content
    for oldest in list(_memory)[:-_MAX_IN_MEMORY]:
        del _memory[oldest]


def forget() -> None:
    """Forget what the session remembers; the files on disk stay."""
    _memory.clear()


def _key(name: RepositoryName, file: str) -> tuple[str, str, str, str]:
    endpoint = importlib.import_module("huggingface_hub.constants").ENDPOINT
    return endpoint, name.repo, name.revision, name.path(file)


def _write(
    name: RepositoryName, file: str, content: bytes | None, commit: str, headers: Mapping[str, str]
) -> None:
    """Write a file, or the mark that there is none, and the commit of the revision."""
    hub = importlib.import_module("huggingface_hub")
    folder = hub.file_download.repo_folder_name(repo_id=name.repo, repo_type="model")
    root = Path(hub.constants.HF_HUB_CACHE) / folder
    if content is None:
        _replace(root / ".no_exist" / commit / name.path(file), lambda new: new.touch())
    else:
        blob = _blob(root / "blobs", content, headers)
        target = root / "snapshots" / commit / name.path(file)
        _replace(target, lambda new: _link(blob, new, target.parent))
    if name.revision != commit:
        ref = root / "refs" / name.revision
        _replace(ref, lambda new: new.write_text(commit))


def _blob(folder: Path, content: bytes, headers: Mapping[str, str]) -> Path:
    """The file that holds a content, by its ETag; never one that holds another content."""
    tag = headers.get("x-linked-etag") or headers.get("etag") or ""
    digest = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    names = [tag.removeprefix("W/").strip('"'), digest]
    for blob in (folder / name for name in names if _ETAG.fullmatch(name)):
        if not blob.exists():
            _replace(blob, lambda new: new.write_bytes(content))
            return blob
        if blob.stat().st_size == len(content) and blob.read_bytes() == content:
            return blob
    raise OSError(f"{folder} holds another content under the digest {digest}")


def _link(blob: Path, new: Path, folder: Path) -> None:
    """A relative link, or a copy where the file system has no links."""
    try:
        new.symlink_to(os.path.relpath(blob, folder))
    except OSError:
        shutil.copyfile(blob, new)


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under another name and rename it, so that no reader sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        write(new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
