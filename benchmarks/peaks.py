"""Compares the predicted peak of activations with the real peak of torch on the CPU.

Every model type of transformers that can be made small enough runs a prefill of 2 × 16 tokens
with random weights, while each storage that a kernel makes is watched until it is freed.
`python -m benchmarks.peaks` writes `benchmarks/peaks.csv` and prints how near the two are.
"""

import csv
import importlib
import multiprocessing
import resource
import signal
import statistics
from pathlib import Path
from typing import Any

WORKERS = 2
LIMIT_S = 15
MAX_PARAMETERS = 30_000_000
MAX_BYTES = 8 * 2**30
FILE = Path(__file__).with_suffix(".csv")


class Late(BaseException):
    """A model type that takes longer than the limit."""


def late(*_: object) -> None:
    raise Late


def measured(model_type: str) -> tuple[int, int] | None:
    """Bytes at the peak, real and predicted; None for a type that does not run."""
    import torch

    from tests.helpers.reduced_configs import candidates

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT_S)
    try:
        for small in candidates(model_type):
            try:
                return both(small.config)
            except Exception:  # the next is nearer to the type's own defaults
                continue
    except (Exception, Late):
        return None
    return None


def both(config: Any) -> tuple[int, int]:
    import llmsim_magic as llmsim
    from llmsim_magic.analyses.allocations.tensor_lifetimes import peak_with_cache
    from llmsim_magic.capture.inputs import forward_inputs
    from llmsim_magic.records.trace.workload import Workload
    from tests.helpers.allocation_peak import peak
    from tests.helpers.real_forward import real_and_meta_models

    models = real_and_meta_models(config, MAX_PARAMETERS)
    workload = Workload("prefill", 2, 16)
    trace = llmsim.trace(config, batch=2, context=16, dtype="float32").trace
    ways = forward_inputs.prefill_inputs(models.unreal, workload)
    real = models._first(ways, lambda given: peak(models.model, given))
    return real, peak_with_cache(trace).nbytes


def main() -> None:
    transformers = importlib.import_module("transformers")
    for module in (
        "llmsim_magic.capture.run",
        "tests.helpers.real_forward",
        "tests.helpers.reduced_configs",
        "tests.helpers.allocation_peak",
    ):
        importlib.import_module(module)  # once, before the processes are forked
    types = sorted(transformers.CONFIG_MAPPING)
    errors = []
    forked = multiprocessing.get_context("fork")
    with forked.Pool(WORKERS, maxtasksperchild=1) as pool, FILE.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("model_type", "real_bytes", "predicted_bytes", "error"))
        asked = [(each, pool.apply_async(measured, (each,))) for each in types]
        for model_type, answer in asked:
            try:
                found = answer.get(timeout=4 * LIMIT_S)
            except multiprocessing.TimeoutError:  # its process was killed
                continue
            if found is not None:
                real, predicted = found
                errors.append(predicted / real - 1)
                rows.writerow((model_type, real, predicted, f"{errors[-1]:.6f}"))
                file.flush()
    sizes = sorted(map(abs, errors))
    exact, near = (sum(size <= limit for size in sizes) for limit in (0, 0.01))
    print(f"{len(sizes)} model types: {exact} to the byte, {near} within 1 %")
    print(
        f"median {statistics.median(sizes):.4%}, 90th percentile {sizes[len(sizes) * 9 // 10]:.1%}"
    )


if __name__ == "__main__":
    main()
