"""`%load_ext` in a kernel imports what a first answer needs, unseen, once its cell is done."""

import os
import queue
import signal
import statistics
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

from llmsim_magic.capture.first_imports import MODULES
from llmsim_magic.notebook.magic import LLMSim
from llmsim_magic.notebook.warm_up import WarmUp, may_import
from llmsim_magic.records.background_import import BackgroundImport
from tests.helpers.shells import NO_HISTORY

KERNEL = """
import sys
from IPython.core.interactiveshell import InteractiveShell
from llmsim_magic.records.background_import import wait_for_imports
class Kernel(InteractiveShell):
    kernel = object()
shell = Kernel.instance(colors="NoColor")
"""


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Interrupts end this process's work also where it was started without them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def in_shell_with_kernel(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run code after `KERNEL` in a process that finds modules in `path` first."""
    script = f"import sys; sys.path.insert(0, {str(path)!r})\n{KERNEL}\n{textwrap.dedent(code)}"
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120
    )


def test_nothing_is_imported_in_a_shell_without_a_kernel() -> None:
    shell = InteractiveShell(config=NO_HISTORY)
    magics = LLMSim(shell)
    assert not magics.warm_up
    assert LLMSim.warm_up.metadata["config"]


def test_a_broken_torch_is_silent_until_the_first_question(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(
        "import sys, warnings\n"
        "print('loading'); warnings.warn('old driver', FutureWarning); sys.stderr.write('x')\n"
        "raise ImportError('libtorch_cpu.so: cannot open shared object file', name='torch')\n"
    )
    found = in_shell_with_kernel(
        """
        shell.run_cell("%load_ext llmsim_magic")
        wait_for_imports()
        assert "pandas" in sys.modules and "torch" not in sys.modules
        print("asked", flush=True)
        print("asked", file=sys.stderr, flush=True)
        shell.run_cell("%llmsim gpt2 --context 77")
        """,
        tmp_path,
    )
    before, _, answer = (found.stdout + found.stderr).partition("asked")
    assert not before.strip(), before
    assert "torch is not installed: pip install torch" in answer


@pytest.mark.parametrize("line", ["%config LLMSim.warm_up = False", ""])
def test_it_begins_after_the_cell_and_only_where_it_is_wanted(line: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError")
    found = in_shell_with_kernel(
        f"""
        shell.run_cell('''%load_ext llmsim_magic
        {line}
        import threading
        during = [each.name for each in threading.enumerate()]''')
        after = [each.name for each in __import__("threading").enumerate()]
        wait_for_imports()
        assert "llmsim-imports" not in shell.user_ns["during"]
        print("llmsim-imports" in after, "pandas" in sys.modules)
        """,
        tmp_path,
    )
    is_wanted = not line
    assert found.stdout == f"{is_wanted} {is_wanted}\n", found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("1 + 1", False),
        ("import json, os.path as p\nfrom collections import abc", False),
        ("import pytest", False),  # is imported
        ("import no_such_package", True),
        ("import json, no_such_package", True),
        ("x = 1\n  import torch.nn as nn", True),
        ("from transformers import AutoModel", True),
        ("model = transformers.AutoModel", True),
        ("importlib.import_module(name)", True),
        ("from json import (\n  loads,\n)", False),
        ("%run script.py", True),
        ("%llmsim gpt2 --summary", False),
        ("%%time\nimport no_such_package", True),
        ("!ls", False),
    ],
)
def test_a_cell_that_may_import_is_known_by_its_source(source: str, expected: bool) -> None:
    assert may_import(source) is expected


def test_an_interrupt_while_a_cell_waits_to_begin_reaches_the_cell() -> None:
    ended = threading.Event()
    warm_up = WarmUp()
    warm_up._job = BackgroundImport([lambda: (time.sleep(0.5), ended.set())])
    warm_up._job.start()
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    time.sleep(0.1)
    warm_up.before_cell(SimpleNamespace(raw_cell="import torch.nn as nn"))
    assert ended.is_set()
    with pytest.raises(KeyboardInterrupt):
        time.sleep(5)
    warm_up.after_cell(None)
    warm_up._job.wait()


@pytest.mark.slow
def test_all_that_a_first_answer_imports_but_the_class_is_there(tmp_path: Path) -> None:
    found = in_shell_with_kernel(
        f"""
        shell.run_cell("%load_ext llmsim_magic")
        wait_for_imports()
        assert set({MODULES!r}) <= set(sys.modules)
        known = set(sys.modules)
        shell.run_cell("r = %llmsim Qwen/Qwen3-0.6B --summary;")
        assert shell.user_ns["r"].trace.model.class_name == "Qwen3ForCausalLM"
        print(len(set(sys.modules) - known))
        """,
        tmp_path,
    )
    assert int(found.stdout.splitlines()[-1]) < 40, found


class Kernel:
    """A kernel in a process of its own.

    Attributes:
        strays: what is published without a cell that prints, such as a warning of a thread.
    """

    def __init__(self) -> None:
        from jupyter_client.manager import start_new_kernel

        self._manager, self._client = start_new_kernel(kernel_name="python3")
        self.strays: list[dict[str, Any]] = []

    def run(self, code: str, *, prints: bool = False) -> tuple[float, str]:
        """Run a cell; returns the seconds until the kernel is idle again, and what it prints."""
        began, text = time.perf_counter(), ""
        asked = self._client.execute(code)
        while True:
            message = self._client.get_iopub_msg(timeout=60)
            is_own = message["parent_header"].get("msg_id") == asked
            if is_own and message["content"].get("execution_state") == "idle":
                return time.perf_counter() - began, text
            if prints and is_own and message["content"].get("name") == "stdout":
                text += message["content"]["text"]
            elif message["msg_type"] in ("stream", "error"):
                self.strays.append(message["content"])

    def seconds(self, code: str) -> float:
        return self.run(code)[0]

    def printed(self, expression: str) -> str:
        return self.run(f"print({expression})", prints=True)[1]

    def all_strays(self) -> list[dict[str, Any]]:
        """The strays, also of after the last cell."""
        with suppress(queue.Empty):
            while True:
                message = self._client.get_iopub_msg(timeout=0.3)
                if message["msg_type"] in ("stream", "error"):
                    self.strays.append(message["content"])
        return self.strays

    def stop(self) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    started = Kernel()
    yield started
    started.stop()


@pytest.mark.slow
def test_a_kernel_imports_while_its_cells_stay_fast_and_shows_nothing(kernel: Kernel) -> None:
    idle = [kernel.seconds("import sys, threading") for _ in range(15)]
    kernel.run("%load_ext llmsim_magic")
    meanwhile = []
    limit = time.monotonic() + 60
    while "llmsim-imports" in kernel.printed("[each.name for each in threading.enumerate()]"):
        meanwhile.append(kernel.seconds("1 + 1"))
        time.sleep(0.1)
        assert time.monotonic() < limit
    assert statistics.median(meanwhile) < statistics.median(idle) + 0.05
    assert kernel.printed("'transformers.masking_utils' in sys.modules") == "True\n"
    assert not kernel.all_strays()


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "import torch, transformers",
        "import torch.distributed.tensor, transformers",
        "import torch\nimport transformers\nfrom transformers import AutoModelForCausalLM",
    ],
)
@pytest.mark.parametrize("delay_s", [0.5, 1.5, 2.5])
def test_the_users_own_import_at_the_same_moment_gets_whole_modules(
    code: str, delay_s: float, kernel: Kernel
) -> None:
    kernel.run("%load_ext llmsim_magic")
    time.sleep(delay_s)
    kernel.run(f"{code}\nx = torch.ones(2).sum().item()")
    assert kernel.printed("x, transformers.PreTrainedModel.__name__") == "2.0 PreTrainedModel\n"
    assert not kernel.all_strays()
