"""Files are written atomically and never replace files of others."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmsim_magic as llmsim
from llmsim_magic.__main__ import main
from llmsim_magic.notebook.panel.panel import Panel, panel
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.simulate.report import Report
from llmsim_magic.views import safe_files
from llmsim_magic.views.file_names import file_stem
from llmsim_magic.views.safe_files import OverwriteRefused, write_file, write_files
from tests.helpers import small_models
from tests.integration.test_panel import run_and_wait


@pytest.fixture(scope="module")
def report() -> Report:
    return llmsim.trace(small_models.gpt2(), context=5, hardware="H100")


def folder_contents(folder: Path) -> dict[str, bytes]:
    """What a folder holds, hidden files too, but for the ledger."""
    return {
        file.name: file.read_bytes()
        for file in folder.iterdir()
        if file.is_file() and file.name != safe_files.MANIFEST
    }


def test_what_was_written_is_written_anew(tmp_path: Path) -> None:
    write_files(tmp_path, {"a": b"1", "b": b"2"})
    write_files(tmp_path, {"a": b"3", "b": b"2"})
    assert folder_contents(tmp_path) == {"a": b"3", "b": b"2"}


def test_another_process_knows_what_was_written(tmp_path: Path) -> None:
    code = (
        "import sys; from llmsim_magic.views.safe_files import write_files; "
        "write_files(sys.argv[1], {'a': b'1'})"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    write_files(tmp_path, {"a": b"2"})
    assert folder_contents(tmp_path) == {"a": b"2"}


def test_a_folder_that_moved_is_still_known(tmp_path: Path) -> None:
    write_files(tmp_path / "one", {"a": b"1"})
    (tmp_path / "one").rename(tmp_path / "two")
    write_files(tmp_path / "two", {"a": b"2"})
    assert folder_contents(tmp_path / "two") == {"a": b"2"}


def test_a_file_of_somebody_elses_stays_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"mine")
    with pytest.raises(OverwriteRefused, match=r"/b' was not written by.*overwrite=True"):
        write_files(tmp_path, {"a": b"1", "b": b"2"})
    assert folder_contents(tmp_path) == {"b": b"mine"}
    write_files(tmp_path, {"a": b"1", "b": b"2"}, overwrite=True)
    assert folder_contents(tmp_path) == {"a": b"1", "b": b"2"}


def test_a_file_that_was_changed_since_is_its_changers(tmp_path: Path) -> None:
    write_files(tmp_path, {"a": b"1"})
    (tmp_path / "a").write_bytes(b"1, and a note")
    with pytest.raises(OverwriteRefused):
        write_files(tmp_path, {"a": b"2"})
    write_files(tmp_path, {"a": b"2"}, overwrite=True)
    write_files(tmp_path, {"a": b"3"})
    assert folder_contents(tmp_path) == {"a": b"3"}


def test_a_file_is_known_in_its_own_name_alone(tmp_path: Path) -> None:
    write_files(tmp_path, {"a": b"1"})
    (tmp_path / "b").write_bytes(b"1")
    with pytest.raises(OverwriteRefused):
        write_files(tmp_path, {"b": b"2"})


def test_a_link_is_neither_followed_nor_lost(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    for target in (outside, tmp_path / "nowhere"):
        (folder / "a").symlink_to(target)
        with pytest.raises(OverwriteRefused):
            write_files(folder, {"a": b"1"})
        write_files(folder, {"a": b"1"}, overwrite=True)
        assert not (folder / "a").is_symlink()
        (folder / "a").unlink()
    assert outside.read_bytes() == b"mine"
    assert not (tmp_path / "nowhere").exists()


def test_a_ledger_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / safe_files.MANIFEST).symlink_to(outside)
    with pytest.raises(InvalidValue, match=safe_files.MANIFEST):
        write_files(folder, {"a": b"1"})
    assert outside.read_bytes() == b"mine"
    assert list(folder_contents(folder)) == []


@pytest.mark.parametrize(
    "name", ["file/a", "folder", "no\0file", "\ud800", "~nobody-here/a", "x" * 300]
)
def test_what_cannot_be_written_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "folder").mkdir()
    path = name if name.startswith("~") else f"{tmp_path}/{name}"
    with pytest.raises(InvalidValue) as error:
        write_file(path, b"1", overwrite=True)
    assert str(error.value).isprintable()
    assert folder_contents(tmp_path) == {"file": b"mine"}


def test_a_file_that_comes_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def meanwhile(descriptor: int) -> None:
        (tmp_path / "a").write_bytes(b"mine")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", meanwhile)
    with pytest.raises(OverwriteRefused):
        write_files(tmp_path, {"a": b"1"})
    assert folder_contents(tmp_path) == {"a": b"mine"}


def test_a_disk_without_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", link)
    write_files(tmp_path, {"a": b"1"})
    write_files(tmp_path, {"a": b"2"})
    (tmp_path / "b").write_bytes(b"mine")
    with pytest.raises(OverwriteRefused):
        write_files(tmp_path, {"b": b"1"})
    assert folder_contents(tmp_path) == {"a": b"2", "b": b"mine"}


@pytest.mark.parametrize("when", range(4))
@pytest.mark.parametrize("what", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupt_or_a_full_disk_at_any_file_changes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int, what: BaseException
) -> None:
    write_files(tmp_path, {"a": b"old", "b": b"old", "c": b"old"})
    sync, count = os.fsync, iter(range(99))

    def failing(descriptor: int) -> None:
        if next(count) == when:
            raise what
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)  # of three files and the ledger
    with pytest.raises((KeyboardInterrupt, InvalidValue)):
        write_files(tmp_path, {"a": b"1", "b": b"2", "c": b"3"})
    assert folder_contents(tmp_path) == {"a": b"old", "b": b"old", "c": b"old"}
    write_files(tmp_path, {"a": b"1", "b": b"2", "c": b"3"})
    assert folder_contents(tmp_path) == {"a": b"1", "b": b"2", "c": b"3"}


def test_what_fails_last_says_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c").mkdir()
    with pytest.raises(InvalidValue, match=r"c': .*; choose another path; already written: a, b$"):
        write_files(tmp_path, {"a": b"1", "b": b"2", "c": b"3", "d": b"4"}, overwrite=True)
    assert folder_contents(tmp_path) == {"a": b"1", "b": b"2"}


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB."""
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if os.name == "nt" or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no disk may be mounted here")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_full_disk_leaves_what_was_there(full_disk: Path) -> None:
    before = {"a": b"a" * 9_000, "b": b"b" * 9_000}
    write_files(full_disk, before)
    with pytest.raises(InvalidValue, match="No space left on device"):
        write_files(full_disk, {"a": b"x" * 20_000, "b": b"y" * 60_000})
    assert folder_contents(full_disk) == before
    write_files(full_disk, {"a": b"x" * 9_000})
    assert folder_contents(full_disk) == before | {"a": b"x" * 9_000}


_LIMITED = """
import resource, signal, sys
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.views.safe_files import write_files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
write_files(sys.argv[1], {"a": b"old"})
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    write_files(sys.argv[1], {"a": b"x" * 40_000, "b": b"y" * 60_000})
except InvalidValue as error:
    print(error)
"""


def test_a_file_too_large_leaves_what_was_there(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _LIMITED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "/b': File too large; choose another path" in done.stdout
    assert folder_contents(tmp_path) == {"a": b"old"}


_FOR_EVER = """
import sys
from llmsim_magic.views.safe_files import write_files
print(flush=True)
for turn in range(10**9):
    size = 200_000 + turn % 2
    write_files(sys.argv[1], {name: bytes([turn % 256]) * size for name in ("a", "b", "c")})
"""


def test_a_killed_process_leaves_each_file_as_it_was_or_as_it_shall_be(tmp_path: Path) -> None:
    chance = random.Random(0)
    for _ in range(25):
        command = [sys.executable, "-c", _FOR_EVER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.uniform(0, 0.04))
            process.send_signal(signal.SIGKILL)
        for name in ("a", "b", "c"):
            file = tmp_path / name
            content = file.read_bytes() if file.exists() else b"\1" * 200_001
            assert content == content[:1] * (200_000 + content[0] % 2)
    for left in tmp_path.glob(".llmsim-*"):
        os.utime(left, (0, 0))
    write_files(tmp_path, {"a": b"1", "b": b"2", "c": b"3"})
    assert folder_contents(tmp_path) == {"a": b"1", "b": b"2", "c": b"3"}


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_a_folder_that_may_not_be_written_is_refused_before_the_work() -> None:
    code = (
        "import os, sys; from llmsim_magic.views import safe_files\n"
        "if os.geteuid() == 0: os.setuid(65534)  # whom no permission is spared\n"
        "def write(folder): safe_files.write_files(folder, {'a': b'1'})\n"
        "for ask in (safe_files.check_writable, write):\n"
        "    try: ask(sys.argv[1])\n"
        "    except safe_files.InvalidValue as error: print(error)"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", code, folder], capture_output=True, text=True, check=True
        )
    first, second = done.stdout.splitlines()
    assert "Permission denied; choose a folder that can be written" in first
    assert "Permission denied; choose another path" in second


def test_a_folder_is_asked_about_before_the_work_and_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert main(["gpt2", "--csv", str(tmp_path / "file" / "tables")]) == 2
    assert "Not a directory" in capsys.readouterr().err
    assert main(["no-such/model-at-all", "--csv", str(tmp_path / "tables")]) == 2
    assert list(folder_contents(tmp_path)) == ["file"]
    assert not (tmp_path / "tables").exists()


# every way out of the house


def test_every_export_spares_a_foreign_file_unless_told(report: Report, tmp_path: Path) -> None:
    graph = report.dependency_graph()
    for name, save in {
        "x.svg": graph.save,
        "x.dot": graph.save,
        "y.svg": report.costing.roofline.save,
        "y.png": report.costing.roofline.save,
        "timeline.json": report.costing.timeline,
        "page.html": report.to_html,
        f"{file_stem(report.trace)}.summary.csv": lambda path, **options: report.to_csv(
            path.parent, **options
        ),
    }.items():
        file = tmp_path / name
        file.write_bytes(b"mine")
        with pytest.raises(OverwriteRefused, match=name):
            save(file)
        assert file.read_bytes() == b"mine"
        save(file, overwrite=True)
        save(file)
        assert file.read_bytes() != b"mine"


def test_the_command_line_spares_a_foreign_file_unless_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "distilgpt2.prefill.b1.c128.summary.csv"
    (tmp_path / name).write_bytes(b"mine")
    line = ["distilgpt2", "--csv", str(tmp_path)]
    assert main(line) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert name in said
    assert "--overwrite" in said
    assert folder_contents(tmp_path) == {name: b"mine"}
    assert main([*line, "--overwrite"]) == 0
    assert main(line) == 0
    assert b"mine" not in folder_contents(tmp_path)[name]


@pytest.fixture
def shown() -> Iterator[Panel]:
    made = panel(small_models.gpt2(), view="deps", context=5)
    run_and_wait(made, made.refresh)
    yield made
    made.cancel()


def test_the_panel_spares_a_foreign_file_and_saves_its_own_anew(
    shown: Panel, tmp_path: Path
) -> None:
    shown._export._folder.value = str(tmp_path)
    shown._export._save.click()
    stem = file_stem(shown.report.trace)
    whats = ("modules.csv", "edges.csv", "deps.svg", "deps.json", "deps.dot", "deps.html")
    assert set(folder_contents(tmp_path)) == {f"{stem}.{what}" for what in whats}
    shown._export._save.click()
    assert shown.status.error == ""
    (tmp_path / f"{stem}.edges.csv").write_bytes(b"mine")
    shown._export._save.click()
    assert "edges.csv" in shown.status.error
    assert (tmp_path / f"{stem}.edges.csv").read_bytes() == b"mine"
