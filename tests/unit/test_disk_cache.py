"""Entries on disk: whole or missing, whatever happened to the file, and bounded in bytes."""

import errno
import hashlib
import multiprocessing
import os
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.simulate.cache import cache_folder
from llmsim_magic.simulate.cache.disk_cache import DiskCache

CONTENT = b"what was recorded " * 100


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "records")


def file_of(cache: DiskCache, number: int) -> Path:
    return cache.folder / f"{key(number)}.record"


def test_what_was_written_is_read_by_another_cache(cache: DiskCache) -> None:
    cache.write(key(1), CONTENT)
    assert DiskCache(cache.folder).read(key(1)) == CONTENT
    assert cache.read(key(2)) is None


@pytest.mark.parametrize("kept", [0, 1, 16, 48, 60, -1])
def test_a_torn_entry_is_missing(cache: DiskCache, kept: int) -> None:
    cache.write(key(1), CONTENT)
    file = file_of(cache, 1)
    file.write_bytes(file.read_bytes()[:kept])
    assert cache.read(key(1)) is None


def test_an_entry_with_any_changed_byte_is_missing(cache: DiskCache) -> None:
    cache.write(key(1), CONTENT)
    file = file_of(cache, 1)
    written = file.read_bytes()
    for place in range(len(written)):
        changed = bytearray(written)
        changed[place] ^= 1
        file.write_bytes(changed)
        assert cache.read(key(1)) is None, place


def test_an_entry_of_another_key_or_of_another_format_is_missing(cache: DiskCache) -> None:
    cache.write(key(1), CONTENT)
    file_of(cache, 2).write_bytes(file_of(cache, 1).read_bytes())
    older = b"llmsim record 0\n" + file_of(cache, 1).read_bytes()[16:]
    file_of(cache, 3).write_bytes(older)
    file_of(cache, 4).write_bytes(b"")
    assert [cache.read(key(number)) for number in (2, 3, 4)] == [None] * 3


def test_a_small_file_that_unpacks_to_more_than_is_allowed_is_missing(
    cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write(key(1), bytes(1_000_000))
    monkeypatch.setattr("llmsim_magic.simulate.cache.disk_cache.MAX_ENTRY_BYTES", 10_000)
    assert file_of(cache, 1).stat().st_size < 10_000
    assert cache.read(key(1)) is None


def test_a_link_a_pipe_and_a_folder_in_the_place_of_an_entry_are_missing(
    cache: DiskCache, tmp_path: Path
) -> None:
    cache.write(key(1), CONTENT)
    file_of(cache, 2).symlink_to(file_of(cache, 1))
    os.mkfifo(file_of(cache, 3))
    file_of(cache, 4).mkdir()
    file_of(cache, 5).symlink_to(tmp_path / "nothing")
    assert [cache.read(key(number)) for number in (2, 3, 4, 5)] == [None] * 4


def test_a_write_replaces_a_link_and_leaves_its_target(cache: DiskCache, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    cache.write(key(1), CONTENT)
    file_of(cache, 2).symlink_to(precious)
    cache.write(key(2), CONTENT)
    assert cache.read(key(2)) == CONTENT
    assert precious.read_text() == "mine"


def test_a_file_that_others_may_write_is_not_trusted(cache: DiskCache) -> None:
    cache.write(key(1), CONTENT)
    file_of(cache, 1).chmod(0o666)
    assert cache.read(key(1)) is None


def test_a_folder_that_cannot_exist_keeps_nothing_and_raises_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = DiskCache(tmp_path / "file" / "records")
    cache.write(key(1), CONTENT)
    assert cache.read(key(1)) is None
    cache.forget()


def test_a_full_disk_leaves_no_part_of_an_entry(
    cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write(key(1), CONTENT)

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "replace", full)
    cache.write(key(2), CONTENT)
    assert cache.read(key(1)) == CONTENT
    assert [file.name for file in cache.folder.iterdir()] == [file_of(cache, 1).name]


def test_an_interrupted_write_leaves_no_part_of_an_entry(
    cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.write(key(1), CONTENT)
    assert list(cache.folder.iterdir()) == []


def test_what_killed_processes_left_goes_after_an_hour(cache: DiskCache) -> None:
    cache.folder.mkdir()
    old, young = cache.folder / "unfinished-old", cache.folder / "unfinished-young"
    for file in (old, young):
        file.write_bytes(CONTENT)
    os.utime(old, (time.time() - 7200,) * 2)
    cache.write(key(1), CONTENT)
    assert {file.name for file in cache.folder.iterdir()} == {young.name, file_of(cache, 1).name}


def test_the_least_recently_used_entries_go_first(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, max_bytes=40_000)
    for number in range(6):
        cache.write(key(number), os.urandom(5_000))
        os.utime(file_of(cache, number), (1_000_000 + number,) * 2)
    assert cache.read(key(0)) is not None  # and so it is the one that was used last
    for number in range(6, 10):
        cache.write(key(number), os.urandom(5_000))
    left = [number for number in range(10) if file_of(cache, number).exists()]
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 40_000
    assert 0 in left
    assert 1 not in left


def test_files_from_the_future_do_not_stop_the_cache(tmp_path: Path) -> None:
    """The clock went back after they were written."""
    cache = DiskCache(tmp_path, max_bytes=20_000)
    for number in range(3):
        cache.write(key(number), os.urandom(5_000))
        os.utime(file_of(cache, number), (time.time() + 10**8,) * 2)
    for number in range(3, 8):
        cache.write(key(number), os.urandom(5_000))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 20_000
    assert cache.read(key(7)) is not None


def test_files_of_other_programs_are_never_deleted(tmp_path: Path) -> None:
    mine = tmp_path / "thesis.tex"
    mine.write_text("years of work" * 1000)
    cache = DiskCache(tmp_path, max_bytes=1_000)
    for number in range(4):
        cache.write(key(number), os.urandom(900))
    cache.forget()
    assert [file.name for file in tmp_path.iterdir()] == [mine.name]


def _write_many(folder: Path, process: int) -> None:
    cache = DiskCache(folder, max_bytes=300_000)
    for number in range(60):
        cache.write(key(number % 20), zlib.compress(str(number % 20).encode()) * 500)
        found = cache.read(key((number + process) % 20))
        assert found is None or found == zlib.compress(str((number + process) % 20).encode()) * 500


@pytest.mark.skipif(sys.platform == "win32", reason="starts processes by forking")
def test_several_processes_write_the_same_entries(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(tmp_path, number)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4


def test_ten_thousand_entries_are_read_and_trimmed(tmp_path: Path) -> None:
    for number in range(10_000):
        (tmp_path / f"{key(number)}.record").write_bytes(b"of another version")
    cache = DiskCache(tmp_path, max_bytes=100_000)
    cache.write(key(1), CONTENT)
    assert cache.read(key(1)) == CONTENT
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 100_000


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(cache_folder, "_chosen", "")
    return monkeypatch


def test_the_folder_is_that_of_the_variable_or_of_the_config(
    tmp_path: Path, chosen: pytest.MonkeyPatch
) -> None:
    chosen.setenv("LLMSIM_CACHE", str(tmp_path / "one"))
    found = cache_folder.disk_cache()
    assert found is not None
    assert found.folder == tmp_path / "one"
    cache_folder.choose(str(tmp_path / "two"))
    found = cache_folder.disk_cache()
    assert found is not None
    assert found.folder == tmp_path / "two"
    cache_folder.choose("off")
    assert cache_folder.disk_cache() is None
    chosen.setenv("LLMSIM_CACHE", "off")
    cache_folder.choose("")
    assert cache_folder.disk_cache() is None


def test_the_default_is_below_the_cache_of_the_user(
    tmp_path: Path, chosen: pytest.MonkeyPatch
) -> None:
    chosen.delenv("LLMSIM_CACHE")
    chosen.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache_folder._cache.cache_clear()
    found = cache_folder.disk_cache()
    assert found is not None
    assert found.folder == tmp_path / "llmsim_magic"
    assert found.max_bytes == 500_000_000
    cache_folder._cache.cache_clear()


def test_a_file_for_a_folder_and_a_wrong_size_are_one_line(
    tmp_path: Path, chosen: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    chosen.setenv("LLMSIM_CACHE", str(file))
    with pytest.raises(InvalidValue, match="LLMSIM_CACHE must be off or a folder, not"):
        cache_folder.disk_cache()
    with pytest.raises(InvalidValue, match="cache must be off or a folder, not"):
        cache_folder.choose(str(file))
    chosen.setenv("LLMSIM_CACHE", str(tmp_path))
    chosen.setenv("LLMSIM_CACHE_SIZE", "much")
    with pytest.raises(InvalidValue, match="LLMSIM_CACHE_SIZE must be a size such as 24GB"):
        cache_folder.disk_cache()
    chosen.setenv("LLMSIM_CACHE_SIZE", "2GB")
    found = cache_folder.disk_cache()
    assert found is not None
    assert found.max_bytes == 2_000_000_000
