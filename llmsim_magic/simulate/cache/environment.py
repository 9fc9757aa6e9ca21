"""What a record depends on besides its model: Python, packages, settings and this package's code.

Nothing here imports torch or transformers: the names of installed packages carry their versions.
"""

import hashlib
import importlib.util
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

_PACKAGE = Path(__file__).parents[2]
_FRAMEWORKS = ("torch", "transformers")
_INSTALLED = (".dist-info", ".egg-info", ".egg-link")
# Variables by which transformers and the kernels library choose what code runs.
_VARIABLES = ("TRANSFORMERS_", "USE_", "DISABLE_KERNEL_MAPPING", "CUDA_VISIBLE_DEVICES")
# Transformers asks for a GPU where it chooses between kernels.
_DRIVERS = ("/proc/driver/nvidia/version", "/dev/kfd", "/dev/accel0")
_IMPORTED_NS = time.time_ns()

State = tuple[tuple[str, int, int], ...]  # path, bytes and time of change of files


def environment() -> str:
    """A digest of all that decides what code runs; equal in two processes that run the same."""
    parts = (
        (sys.version, sys.platform, platform.machine(), sys.flags.optimize),
        [(name, origin_of(name)) for name in _FRAMEWORKS],
        sorted(_installed()),
        sorted((name, os.environ[name]) for name in os.environ if name.startswith(_VARIABLES)),
        [os.path.exists(path) for path in _DRIVERS],
        _own_code(),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def code_in_use() -> str:
    """Equal for two questions of this process that the same code would answer.

    What is imported stays what it is, whatever is installed meanwhile.
    """
    if all(name in sys.modules for name in _FRAMEWORKS):
        return _imported_environment()
    return environment()


@cache
def _imported_environment() -> str:
    return environment()


def is_as_installed() -> bool:
    """Whether what this process has imported is what is installed now."""
    for name in _FRAMEWORKS:
        loaded = getattr(sys.modules.get(name), "__version__", None)
        if loaded is not None and _public(str(loaded)) != _public(_version(name)):
            return False
    return True


def file_states(paths: Iterable[str]) -> State:
    """The state of files; a missing one has size -1."""
    return tuple(_file_state(path) for path in paths)


def changed_since_import(states: State) -> bool:
    """Whether a file is newer than this process, which may then have imported what it was."""
    return any(changed >= _IMPORTED_NS for _, _, changed in states)


def origin_of(name: str) -> str:
    """The file that `import NAME` runs; empty if the package is missing."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        return str(getattr(loaded, "__file__", ""))
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return ""
    return "" if spec is None else str(spec.origin)


def _version(name: str) -> str:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return ""


def _public(version: str) -> str:
    """A version without the build that it names, such as `+cpu`, which metadata may leave out."""
    return version.partition("+")[0]


def _file_state(path: str) -> tuple[str, int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return path, -1, 0
    return path, status.st_size, status.st_mtime_ns


def _installed() -> Iterator[str]:
    """The folders of metadata of every installed package, which name its version."""
    here = ""
    with suppress(OSError):  # the working folder may be gone
        here = os.getcwd()
    for folder in dict.fromkeys(sys.path):
        if folder in ("", here):  # a project that lies in the working folder is not installed
            continue
        if os.path.exists(os.path.join(folder, os.pardir, "__init__.py")):
            continue  # what a package such as setuptools brings for itself, once it is imported
        with suppress(OSError), os.scandir(folder) as entries:
            yield from (entry.name for entry in entries if entry.name.endswith(_INSTALLED))


@cache
def _own_code() -> State:
    """The state of the modules of this package and its data, as this process has read them."""
    files = (path for pattern in ("*.py", "*.csv", "*.json") for path in _PACKAGE.rglob(pattern))
    return file_states(sorted(map(str, files)))
