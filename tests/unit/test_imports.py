"""Importing the package loads neither torch nor transformers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import llmsim_magic as llmsim
from tests.helpers import small_models

HEAVY = ("torch", "transformers", "pandas", "graphviz", "wasmtime", "rich")
# What draws, derives formulas or asks the hub.
RARELY_NEEDED = (
    "accelerate", "graphviz", "httpx", "huggingface_hub", "IPython", "ipywidgets", "matplotlib",
    "sympy", "torch", "transformers", "wasmtime",
)  # fmt: skip


def _loaded_after(code: str) -> set[str]:
    script = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert not _loaded_after("import llmsim_magic") & set(HEAVY)


def test_loading_the_extension_imports_neither_torch_nor_transformers() -> None:
    code = (
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance()\n"
        "shell.run_line_magic('load_ext', 'llmsim_magic')\n"
        "assert 'llmsim' in shell.magics_manager.magics['line']"
    )
    assert not _loaded_after(code) & set(HEAVY)


def test_the_record_is_free_of_frameworks() -> None:
    assert not _loaded_after("import llmsim_magic.records.trace.trace") & set(HEAVY)


def test_a_misspelt_model_is_told_without_importing_torch() -> None:
    code = (
        "from llmsim_magic.capture.configs.resolve import find_config\n"
        "from llmsim_magic.records.errors import UnknownModel\n"
        "try: find_config('no/such/model')\n"
        "except UnknownModel as error: assert 'no/such/model' in str(error)\n"
        "else: raise AssertionError"
    )
    assert "torch" not in _loaded_after(code)


def test_formulas_are_derived_evaluated_and_written_without_sympy() -> None:
    code = (
        "from llmsim_magic.analyses.formulas.polynomials import Grid, formula\n"
        "grid = Grid((2, 3), (6, 9, 13))\n"
        "found = formula({(b, x): 7 * b * x + b - 5 for b, x in grid.points}, grid)\n"
        "assert found.at((16, 40_000)) == 7 * 16 * 40_000 + 16 - 5\n"
        "from llmsim_magic.views.tables.formulas import polynomial_text\n"
        "assert polynomial_text(found.near, 'S') == '7·B·S + B - 5'"
    )
    assert "sympy" not in _loaded_after(code)


def test_a_line_is_parsed_and_a_config_found_without_anything_heavy() -> None:
    code = (
        "import llmsim_magic.simulate.answer\n"
        "from llmsim_magic.__main__ import parse\n"
        "from llmsim_magic.capture.configs.resolve import find_config\n"
        "assert parse(['gpt2', '--summary'], 'llmsim', check=False).request.model == 'gpt2'\n"
        "assert find_config('gpt2').origin == 'catalogue'"
    )
    assert not _loaded_after(code) & {*HEAVY, *RARELY_NEEDED}


@pytest.mark.parametrize(
    ("view", "needs"),
    [
        ("summary", {"rich"}),
        ("ops", {"rich", "pandas"}),
        ("costs", {"rich", "pandas"}),
        ("memory", {"rich", "pandas"}),
        ("multi-config", {"rich", "pandas"}),
    ],
)
def test_a_recorded_pass_is_shown_in_a_terminal_with_no_more_than_its_view_needs(
    view: str, needs: set[str], tmp_path: Path
) -> None:
    record = tmp_path / "record.json"
    record.write_bytes(llmsim.trace(small_models.qwen3(), context=8).trace.to_json())
    code = (
        "import llmsim_magic.__main__, llmsim_magic.simulate.answer\n"
        "from llmsim_magic.records.trace.trace import Trace\n"
        "from llmsim_magic.simulate.report import Report\n"
        "from llmsim_magic.simulate.sweeps.sweep import Sweep\n"
        "from llmsim_magic.simulate.views import VIEWS\n"
        f"trace = Trace.from_json(open({str(record)!r}, 'rb').read())\n"
        f"view = VIEWS[{view!r}]\n"
        "sweep = Sweep(traces=(trace,)) if view.has_all_workloads else None\n"
        "text = Report(trace=trace, views=(view,), sweep=sweep).text()\n"
        "assert trace.model.name in text, text"
    )
    assert _loaded_after(code) & {*HEAVY, *RARELY_NEEDED} == needs
