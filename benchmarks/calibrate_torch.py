"""Fits the constants of PyTorch's kernels to runs on one GPU, and writes `torch_calibration.json`.

    python -m benchmarks.calibrate_torch --silicon DIR [--published FILE]
    python -m benchmarks.calibrate_torch --silicon DIR --training

DIR holds the JSON lines of `benchmarks.silicon`. With `--training` only what the host takes for
training steps is fitted (see `silicon_steps`), on top of the constants that ship. The bands are
those that leaving one model out earned; on other devices also those that published runs earned (see
`published_generation`). Run it with the release of transformers that was measured, whose kernels
the records hold.
"""

import argparse
import json
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.published_generation import generation_logs
from benchmarks.silicon_rows import (
    FIRST_TRANSFORMERS,
    MeasuredPass,
    Row,
    measured_passes,
    profiled_kernels,
    read_rows,
)
from benchmarks.silicon_steps import calibrated
from llmsim_magic.analyses.time.calibration_fit import band_of
from llmsim_magic.analyses.torch_time.constants_fit import fit_constants, predict_pass
from llmsim_magic.analyses.torch_time.kernel_time import kernel_time
from llmsim_magic.catalog import accelerators
from llmsim_magic.catalog.torch_calibration import torch_calibration
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.calibration import Band
from llmsim_magic.records.hardware.torch_kernel import (
    KernelConstants,
    TorchCalibration,
    TorchConstants,
    TorchSample,
)

OUT = Path(__file__).parent.parent / "llmsim_magic" / "catalog" / "torch_calibration.json"
FITTED = Path(__file__).parent / "fitted_silicon.txt"
# Where the fit begins: shares as large copies and products show them, starts of a few
# microseconds, and for kinds whose elements have offsets computed for them a few hundred FLOPs.
START = TorchConstants(
    kinds={
        "pointwise": KernelConstants(start_s=1.1e-6, element_flops=20),
        "cast": KernelConstants(start_s=1.4e-6, element_flops=100),
        "strided": KernelConstants(start_s=1.9e-6, element_flops=170),
        "joined": KernelConstants(start_s=2e-6, element_flops=280),
        "gathered": KernelConstants(start_s=2e-6, element_flops=170),
        "reduction": KernelConstants(start_s=2.5e-6, element_flops=110),
        "sort": KernelConstants(start_s=50e-6, element_flops=100_000),
        "topk": KernelConstants(start_s=15e-6, element_flops=2_500),
        "matmul": KernelConstants(start_s=2.5e-6),
        "grouped matmul": KernelConstants(start_s=5e-6),
        "attention": KernelConstants(start_s=8e-6),
        "attention masked": KernelConstants(start_s=8e-6),
        "attention decode": KernelConstants(start_s=10e-6, element_flops=8_000),
    },
    memory_share=0.87,
    cache_speed=1.55,
    cache_share=0.8,
    matmul_memory_share=0.88,
    matmul_share=0.8,
    tile_overhead=8,
    misaligned_flops=1136,
    grouped_share=0.5,
    attention_share=0.45,
    attention_length=0.05,
    masked_share=0.35,
    hot_share=0.15,
    gap_s=0.7e-6,
    host_kernel_s=6e-6,
    host_gather_s=20e-6,
    host_view_s=3e-6,
    host_call_s=40e-6,
)
Kernels = Sequence[tuple[str, TorchSample]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--silicon", type=Path, required=True)
    parser.add_argument("--published", type=Path)
    parser.add_argument("--training", action="store_true")
    asked = parser.parse_args()
    folder = asked.silicon
    if asked.training:
        fit_steps(folder)
        return
    rows = read_rows(folder, "infer")
    accelerator = device_of(rows)
    passes = list(measured_passes(rows, accelerator))
    kernels = list(profiled_kernels(read_rows(folder, "profile"), accelerator))
    constants = fitted(kernels, passes, accelerator)
    logs = left_out_logs(kernels, passes, accelerator)
    found = TorchCalibration(
        device=accelerator.name,
        constants=constants,
        kernels=band_of(np.array(logs["kernels"])),
        passes={launch: band_of(np.array(logs[launch])) for launch in ("eager", "graph")},
        training=torch_calibration().training,
        steps=torch_calibration().steps,
        samples=len(passes) + len(kernels),
        sources=sources(rows),
        models=tuple(dict.fromkeys(each.model for each in passes)),
    )
    write(found)
    if asked.published is not None:
        # After the constants are in place, for it is they that published runs are held against.
        write(replace(found, carried={"eager": carried_band(asked.published)}))
    fit_steps(folder)
    FITTED.write_text("".join(f"{each}\n" for each in sorted(map(digest, rows))), encoding="utf-8")
    for name, some in logs.items():
        errors = np.abs(np.expm1(-np.array(some)))
        print(f"{name}, one model left out: median {np.median(errors):.1%}, n {len(some)}")
    print(found.kernels, dict(found.passes))


def fit_steps(folder: Path) -> None:
    """Fit what the host takes for training steps, after the other constants are in place."""
    training, band = calibrated(folder)
    write(replace(torch_calibration(), training=training, steps=band))


def write(found: TorchCalibration) -> None:
    OUT.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    torch_calibration.cache_clear()


def carried_band(path: Path) -> Band:
    """How much longer or shorter published runs took on devices that were not fitted to."""
    logs = np.array(list(generation_logs(path)))
    print(f"published generation: median {np.median(np.abs(np.expm1(-logs))):.1%}, n {len(logs)}")
    return band_of(logs)


def digest(row: Row) -> str:
    """A number that tells a row from all others, so that no row is scored by what has seen it."""
    facts = [row.get(name) for name in ("device", "model", "phase", "batch", "context", "eager_s")]
    return f"{zlib.crc32(json.dumps(facts).encode()):08x}"


def device_of(rows: Sequence[Row]) -> Accelerator:
    """The device of all rows in the catalogue of accelerators."""
    names = {str(row["device"]) for row in rows}
    if len(names) != 1:
        raise SystemExit(f"one device at a time, not {', '.join(sorted(names)) or 'none'}")
    return accelerators.find(names.pop())


def sources(rows: Iterable[Row]) -> tuple[str, ...]:
    """Device, versions and date of the rows, once each."""
    found = (
        f"{row['device']}, torch {row.get('torch', '2.11')}, "
        f"transformers {row.get('transformers', FIRST_TRANSFORMERS)}, {row.get('date', '2026')}"
        for row in rows
    )
    return tuple(dict.fromkeys(found))


def fitted(
    kernels: Kernels, passes: Sequence[MeasuredPass], accelerator: Accelerator
) -> TorchConstants:
    return fit_constants(
        [sample for _, sample in kernels], [each.sample for each in passes], accelerator, START
    )


Logs = dict[str, list[float]]


def left_out_logs(
    kernels: Kernels, passes: Sequence[MeasuredPass], accelerator: Accelerator
) -> Logs:
    """log(measured ÷ predicted) by launch, and of kernels, by fits without their model."""
    logs: Logs = {"eager": [], "graph": [], "kernels": []}
    for model in dict.fromkeys(each.model for each in passes):
        constants = without_model(model, kernels, passes, accelerator)
        for each in passes:
            if each.model == model:
                guess = predict_pass(each.sample, accelerator, constants)
                logs[each.sample.launch].append(math.log(each.sample.seconds / guess))
        for name, sample in kernels:
            if name == model:
                seconds = kernel_time(sample.kernel, accelerator, constants).seconds
                logs["kernels"].append(math.log(sample.seconds / seconds))
    return logs


def without_model(
    model: str, kernels: Kernels, passes: Sequence[MeasuredPass], accelerator: Accelerator
) -> TorchConstants:
    """The fit to the runs of all other models."""
    others = [pair for pair in kernels if pair[0] != model]
    return fitted(others, [each for each in passes if each.model != model], accelerator)


if __name__ == "__main__":
    main()
