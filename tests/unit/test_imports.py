"""Importing the package loads neither torch nor transformers."""

import json
import subprocess
import sys

HEAVY = ("torch", "transformers", "pandas", "graphviz", "wasmtime", "rich")


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


def test_formulas_are_derived_and_evaluated_without_sympy() -> None:
    code = (
        "from llmsim_magic.analyses.formulas.polynomials import Grid, formula\n"
        "grid = Grid((2, 3), (6, 9, 13))\n"
        "found = formula({(b, x): 7 * b * x + b - 5 for b, x in grid.points}, grid)\n"
        "assert found.at((16, 40_000)) == 7 * 16 * 40_000 + 16 - 5"
    )
    assert "sympy" not in _loaded_after(code)
