"""Where records are kept on disk: `%config LLMSim.cache`, `LLMSIM_CACHE`, or the user's cache."""

import os
from functools import lru_cache
from pathlib import Path

import platformdirs

from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.sizes import parse_bytes
from llmsim_magic.simulate.cache.disk_cache import MAX_BYTES, DiskCache

VARIABLE, SIZE_VARIABLE = "LLMSIM_CACHE", "LLMSIM_CACHE_SIZE"
OFF = "off"
_chosen: str = ""  # by `choose`


def disk_cache() -> DiskCache | None:
    """The cache of this process, or None if it is turned off or the user has no home.

    Raises:
        InvalidValue: `LLMSIM_CACHE` is a file, or `LLMSIM_CACHE_SIZE` is no size.
    """
    setting = _chosen or os.environ.get(VARIABLE, "").strip()
    if setting.lower() == OFF:
        return None
    size = os.environ.get(SIZE_VARIABLE, "").strip()
    return _cache(
        _checked(VARIABLE, setting), parse_bytes(SIZE_VARIABLE, size) if size else MAX_BYTES
    )


def choose(setting: str) -> None:
    """Set where this process keeps records: a folder, `off`, or an empty string for the default.

    Raises:
        InvalidValue: the folder is a file.
    """
    global _chosen  # noqa: PLW0603 - a setting of the process, as an environment variable is
    if setting.lower() != OFF:
        _checked("cache", setting)
    _chosen = setting


def _checked(name: str, setting: str) -> str:
    """The absolute path of a folder; an empty string stays empty."""
    if not setting:
        return ""
    folder = os.path.abspath(os.path.expanduser(setting))
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise InvalidValue.must_be(name, setting, "off or a folder")
    return folder


@lru_cache(maxsize=8)
def _cache(folder: str, max_bytes: int) -> DiskCache | None:
    try:
        path = Path(folder) if folder else platformdirs.user_cache_path("llmsim_magic")
    except (RuntimeError, OSError):  # no home
        return None
    return DiskCache(path, max_bytes)
