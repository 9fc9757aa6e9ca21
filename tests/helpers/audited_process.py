"""A process under an audit hook: it answers questions, and says what it touched.

Run as `python -m tests.helpers.audited_process`.

It reads a line of JSON for each question: words as the command line takes them, or code. It writes
one with how that ended and what the interpreter was asked for meanwhile.
"""

import contextlib
import io
import json
import sys
from typing import Any

# Running code, unpickling it, starting it, and asking anything of a network.
TOLD = ("pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn",
        "builtins.input", "socket.connect", "socket.bind", "socket.getaddrinfo",
        "socket.gethostbyname", "socket.sendto", "ctypes.dlopen")  # fmt: skip
FILES = ("open", "compile", "exec")  # those of a folder


class Watch:
    """What happens from now on in this process; of a network only this machine is let through."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self.folder = "\0"
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if event in TOLD:
            self.seen.append((event, repr(args)[:200]))
            if event.startswith("socket.") and "127.0.0.1" not in repr(args):
                raise ConnectionRefusedError(event)
        elif event in FILES:
            what = args[1] if event == "compile" else args[0]
            name = str(getattr(what, "co_filename", what))
            if name.startswith(self.folder):
                self.seen.append((event, name.removeprefix(self.folder).lstrip("/")))


def main() -> None:
    from llmsim_magic.__main__ import main as answer

    with contextlib.redirect_stdout(io.StringIO()):
        assert answer(["distilgpt2", "--deps", "--phase", "decode"]) == 0  # what it loads itself
    watch = Watch()
    for line in sys.stdin:
        question = json.loads(line)
        watch.folder, watch.seen = question.get("folder") or "\0", []
        out, said = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
            if "code" in question:
                exec(question["code"], {})
            status = answer(question["words"]) if "words" in question else 0
        told = {"status": status, "out": out.getvalue(), "said": said.getvalue()}
        sys.__stdout__.write(json.dumps(told | {"seen": watch.seen}) + "\n")
        sys.__stdout__.flush()


if __name__ == "__main__":
    main()
