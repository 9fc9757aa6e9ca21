"""Folders and files without a valid config give a correct report or a one-line error."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llmsim_magic as llmsim
from llmsim_magic.catalog import models
from tests.helpers.outcomes import check_outcome

KEYS = models.entries()["distilgpt2"].config
TEXT = json.dumps(KEYS, indent=1)
NAMES = ("config.json", "model", "two\nlines.json", "nul\0", "x" * 300, "-x", "é𝔘.json", " ", ".")
_texts = st.sampled_from(
    (
        *(TEXT, "", " ", "[]", "{}", "null", "1", '"text"', "{", "NaN", "{'a': 1}", "[" * 10_000),
        *(TEXT + TEXT, TEXT + "\0", TEXT[1:], "\ufeff" + TEXT, TEXT.replace(",", ",,", 1)),
        *('{"a": ' * 5_000 + "1" + "}" * 5_000, '{"model_type": "gpt2", "model_type": "bert"}'),
        *('{"model_type": "gpt2", "n_layer": NaN}', '{"model_type": "gpt2", "n_layer": -Infinity}'),
        *(f'{{"model_type": "gpt2", "n_embd": {"9" * 5_000}}}', '{"model_type": "\\ud800"}'),
        *(
            '{"model_type": "gpt2", "n_layer": 1e999}',
            "<html>not found</html>",
            "version https://git",
        ),
    )
)
_encodings = st.sampled_from((*["utf-8"] * 8, "utf-8-sig", "utf-16", "utf-32", "latin-1", "cp500"))


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """What a file may hold: a config that is cut, overwritten or encoded otherwise, or anything."""
    text = draw(st.just(TEXT) | _texts)
    content = text.encode(draw(_encodings), "replace")
    end = draw(st.integers(0, len(content)))
    spoilt = draw(st.sampled_from(("no", "no", "no", "no", "cut", "bytes", "other")))
    if spoilt == "cut":
        return content[:end]
    if spoilt == "bytes":
        return content[:end] + draw(st.binary(max_size=4)) + content[end + 1 :]
    return draw(st.binary(max_size=200)) if spoilt == "other" else content


def _sparse(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    os.truncate(path, 10 << 30)


def _socket(path: Path, content: bytes) -> None:
    bound = socket.socket(socket.AF_UNIX)
    before = Path.cwd()
    os.chdir(path.parent)  # an address of a socket is short
    bound.bind(path.name)
    os.chdir(before)
    bound.close()


def _loop(path: Path, content: bytes) -> None:
    path.symlink_to(path)


def _dangling(path: Path, content: bytes) -> None:
    path.symlink_to("nowhere")


def _around(path: Path, content: bytes) -> None:
    """A link to the folder that holds it, with a good config: found through any number of turns."""
    path.symlink_to(path.parent)


def _weights(path: Path, content: bytes) -> None:
    """A checkpoint beside its config, whose loading would be heard of."""
    path.write_bytes(content)
    bomb = b"cos\nsystem\n(S'touch opened'\ntR."
    for name in ("pytorch_model.bin", "model.safetensors", "tokenizer.json", "modeling_gpt2.py"):
        (path.parent / name).write_bytes(bomb)


def _plain(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _unreadable(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0)


KINDS: dict[str, Callable[[Path, bytes], object]] = {
    "file": _plain,
    "weights": _weights,
    "unreadable": _unreadable,
    "sparse": _sparse,
    "folder": lambda path, content: path.mkdir(),
    "fifo": lambda path, content: os.mkfifo(path),
    "socket": _socket,
    "loop": _loop,
    "dangling": _dangling,
    "around": _around,
    "endless": lambda path, content: path.symlink_to("/dev/zero"),
    "null": lambda path, content: path.symlink_to("/dev/null"),
    "memory": lambda path, content: path.symlink_to("/proc/self/mem"),
    "terminal": lambda path, content: path.symlink_to("/dev/tty"),
}
# How it is named: the folder, the file, or a way round to either.
WAYS = (
    *("{folder}", "{folder}/", "{file}", "{folder}/../{name}/", "{folder}//./"),
    *("{file}/", "{file}/x"),
)


def made(kind: str, folder: Path, name: str, content: bytes) -> tuple[Path, Path]:
    """A folder of that name where the system lets it have it inside of `folder`, and its config."""
    folder.mkdir()
    inner = folder / name
    try:
        if not Path(os.path.normpath(inner)).is_relative_to(folder):
            raise ValueError(name)
        inner.mkdir(exist_ok=True)
    except (OSError, ValueError):
        inner = folder / "a folder"
        inner.mkdir()
    file = inner / "config.json"
    KINDS[kind](file, content)
    return inner, file


@pytest.mark.slow
@given(
    st.sampled_from((*["file"] * 10, *KINDS)),
    st.sampled_from(NAMES) | st.text(max_size=8),
    contents(),
    st.sampled_from(("{folder}", "{folder}", "{file}", *WAYS)),
    st.sampled_from((*[""] * 30, *NAMES)),
)
def test_a_folder_ends_in_a_right_report_or_one_line(
    kind: str, name: str, content: bytes, way: str, added: str
) -> None:
    with TemporaryDirectory(prefix="fuzz") as outer:
        inner, file = made(kind, Path(outer) / "in", name, content)
        model = way.format(folder=inner, file=file, name=inner.name) + added
        with mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True):
            check_outcome(lambda: llmsim.trace(model, context=8))
        assert not list(Path(outer).rglob("opened"))
        assert not Path("opened").exists()
    llmsim.forget()


@pytest.mark.slow
@pytest.mark.parametrize(("lists", "said"), [(66_000_000, "4 MiB"), (1_000_000, "200,000 values")])
def test_a_file_of_many_lists_is_refused(lists: int, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'{"a": [' + b"[]," * lists + b"0]}")
    line = check_outcome(lambda: llmsim.trace(str(tmp_path)))
    assert isinstance(line, str)
    assert said in line


@pytest.mark.parametrize("name", ["/", "/x", "..", "../x", "a/../../x", "."])
def test_no_folder_is_made_beside_where_it_should_be(name: str, tmp_path: Path) -> None:
    inner, _ = made("file", tmp_path / "in", name, b"{}")
    assert inner.resolve().is_relative_to(tmp_path / "in")
    assert list(tmp_path.iterdir()) == [tmp_path / "in"]
