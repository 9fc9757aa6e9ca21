"""Predicts this machine and measures it: Qwen3-0.6B with random weights on the CPU.

    python -m benchmarks.local [--table FILE]

`local-cpu` times kernels for half a minute; then the model itself runs, a prefill of 128 tokens and
a decode step after it, and is held against what was predicted of it. Others may use the machine,
and can only slow a run down: the quickest run stands beside the median of all.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import llmsim_magic as llmsim
from llmsim_magic.analyses.time.latency import latency
from llmsim_magic.capture.configs.resolve import find_config, load_config
from llmsim_magic.capture.inputs.cache_in_output import cache_in_output
from llmsim_magic.simulate.hardware.local_device import local
from llmsim_magic.simulate.request import LOCAL_CPU

MODEL, CONTEXT, RUNS, STEPS = "Qwen/Qwen3-0.6B", 128, 12, 4
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path)
    asked = parser.parse_args()
    text = "\n".join(report())
    print(text)
    if asked.table:
        asked.table.write_text(text + "\n", encoding="utf-8")


def measured(dtype: torch.dtype) -> dict[str, list[float]]:
    """Seconds of every run of both phases."""
    config = load_config(find_config(MODEL)).config
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    tokens = torch.randint(0, 1000, (1, CONTEXT))
    seconds: dict[str, list[float]] = {"prefill": [], "decode": []}
    with torch.inference_mode():
        for _ in range(RUNS):
            begun = time.perf_counter()
            out = model(tokens, use_cache=True)
            seconds["prefill"].append(time.perf_counter() - begun)
            for _ in range(STEPS):
                begun = time.perf_counter()
                model(tokens[:, :1], **cache_in_output(model, out), use_cache=True)
                seconds["decode"].append(time.perf_counter() - begun)
    return seconds


def report() -> Iterator[str]:
    begun = time.perf_counter()
    accelerator, calibration = local(LOCAL_CPU)
    taken = time.perf_counter() - begun
    bandwidth = (accelerator.bandwidth_bytes_per_s or 0) / 1e9
    yield "# This machine, predicted and measured"
    yield ""
    yield f"{MODEL} with random weights, batch 1 × context {CONTEXT}, eager, on"
    yield f"{accelerator.compute_units} threads ({bandwidth:.0f} GB/s), measured in {taken:.0f} s."
    yield "Other programs may have run: the quickest run is what the machine can do."
    yield ""
    yield "| dtype | phase | predicted | band | quickest run | error | median run | error |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|"
    for name, dtype in DTYPES.items():
        for phase, seconds in measured(dtype).items():
            trace = llmsim.trace(MODEL, phase=phase, context=CONTEXT, dtype=name).trace
            guess = latency(trace, accelerator, calibration, regime="eager")
            best, middle = min(seconds), statistics.median(seconds)
            cells = (
                *(name, phase, f"{guess.seconds * 1e3:.0f} ms"),
                f"{guess.low * 1e3:.0f} to {guess.high * 1e3:.0f} ms",
                *(f"{best * 1e3:.0f} ms", f"{guess.seconds / best - 1:+.0%}"),
                *(f"{middle * 1e3:.0f} ms", f"{guess.seconds / middle - 1:+.0%}"),
            )
            yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
