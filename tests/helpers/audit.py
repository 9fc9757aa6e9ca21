"""Runs questions in a process under an audit hook, `tests/helpers/audited_process.py`."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class AuditResult(NamedTuple):
    """How a question ended, and what the interpreter was asked for meanwhile."""

    status: int
    out: str
    said: str
    seen: list[list[str]]

    @property
    def network(self) -> list[str]:
        """What was asked of a network."""
        return [f"{event}{args}" for event, args in self.seen if event.startswith("socket.")]


class Watched:
    """A process that answers, and tells what it touched."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def ask(self, folder: Path | None, *words: str) -> AuditResult:
        """The words of a command line; the files of a folder are watched."""
        return self._told({"words": words, "folder": str(folder or "")})

    def run(self, code: str) -> AuditResult:
        return self._told({"code": code})

    def _told(self, question: dict[str, object]) -> AuditResult:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(question)}\n")
        self._process.stdin.flush()
        return AuditResult(**json.loads(self._process.stdout.readline()))


@contextmanager
def watched(*paths: str, **environment: str) -> Iterator[Watched]:
    """Such a process; `paths` are of modules that it finds first."""
    known = os.pathsep.join([*paths, str(ROOT), *filter(None, sys.path)])
    with subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.audited_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": known, "OMP_NUM_THREADS": "1"} | environment,
    ) as process:
        try:
            yield Watched(process)
        finally:
            process.kill()
