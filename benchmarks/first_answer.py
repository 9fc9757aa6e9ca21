"""Times what a user waits for: the extension, a process's first answer, later answers.

    python benchmarks/first_answer.py [--runs 5]

Every figure is the median over fresh processes. What `import torch, transformers` and building the
model class cost is measured in the same process, before the question, and taken off.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys

LOAD = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
start = time.perf_counter()
shell.run_line_magic("load_ext", "llmsim_magic")
found["load_ext"] = time.perf_counter() - start
assert not {"torch", "transformers"} & set(sys.modules)
"""
IMPORTS = """
start = time.perf_counter()
import torch, transformers
from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM
from transformers.models.llama.modeling_llama import LlamaForCausalLM
found["imports"] = time.perf_counter() - start
"""
ANSWER = """
import contextlib, io
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_line_magic("load_ext", "llmsim_magic")
def ask(line):
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        result = shell.run_cell("r = %llmsim " + line)
    result.raise_error()
    return time.perf_counter() - start
found["first"] = ask("{model} --ops")
found["further"] = ask("{model} --ops --batch 16 --context 64")
found["decode"] = ask("{model} --ops --phase decode")
found["multi_config"] = ask("{model} --multi-config")
"""
FRAME = """
import json, resource, sys, time
found = {{}}
{body}
found["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print("RESULT" + json.dumps(found))
"""


def measure(body: str, runs: int) -> dict[str, float]:
    """The median of each figure over that many fresh processes."""
    results = []
    for _ in range(runs):
        script = FRAME.format(body=body)
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"LLMSIM_CACHE": "off"},  # records on disk would answer
        )
        line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
        results.append(json.loads(line.removeprefix("RESULT")))
    return {key: statistics.median(result[key] for result in results) for key in results[0]}


def _s(seconds: float) -> str:
    return f"{seconds:.2f} s"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--runs", type=int, default=5)
    runs = arguments.parse_args().runs
    rows = [("`%load_ext llmsim_magic`", f"{measure(LOAD, runs)['load_ext'] * 1000:.0f} ms", "")]
    for model in ("Qwen/Qwen3-0.6B", "meta-llama/Llama-3.1-405B"):
        found = measure(IMPORTS + ANSWER.replace("{model}", model), runs)
        peak = f"{found['peak_gb']:.2f} GB"
        rows += [
            (f"`import torch, transformers` and the class of {model}", _s(found["imports"]), ""),
            (f"first `%llmsim {model} --ops` beyond that", _s(found["first"]), ""),
            ("… a further workload, prefill", _s(found["further"]), ""),
            ("… a further workload, decode", _s(found["decode"]), ""),
            ("… `--multi-config`, eight workloads", _s(found["multi_config"]), peak),
        ]
    print(f"Python {platform.python_version()}, {platform.machine()}\n")
    print("| what | time | peak memory |\n|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
