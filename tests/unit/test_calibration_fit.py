"""Fits recover known constants, and their bands hold."""

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmsim_magic.analyses.time.calibration_fit import NOMINAL, fit, folds
from llmsim_magic.analyses.time.roofline import estimate, roofline_seconds
from llmsim_magic.analyses.time.roofline_terms import roofline_terms
from llmsim_magic.catalog import accelerators
from llmsim_magic.records.hardware.calibration import Band, Calibration, Constants, Sample
from llmsim_magic.records.hardware.kernel_shapes import Matmul

DEVICE = accelerators.find("A100-SXM4-80GB")
PLANTED = Constants(
    launch_s=8e-6,
    compute=1.25,
    memory=1.15,
    unit=4.0,
    sharpness=2.5,
    item_s=1e-8,
    hot=1.0,
    cached=1.0,
    tile=0.0,
)
KIND = "matmul 16-bit"


def planted(number: int, noise: float, seed: int) -> list[Sample]:
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(number):
        m, n, k = (2 ** int(power) for power in draw.integers((0, 9, 9), (13, 15, 14)))
        size = Matmul(m=m, n=n, k=k)
        seconds = roofline_seconds(PLANTED, roofline_terms(size, DEVICE, 0.0, 1.0))
        found.append(Sample(size, seconds * float(np.exp(noise * draw.normal()))))
    return found


def known(samples: list[Sample]) -> Calibration:
    fits = {KIND: {DEVICE.name: fit(samples, DEVICE)}}
    return Calibration(fits, {KIND: Band(0.5, 2.0)})


def test_planted_constants_are_found() -> None:
    found = fit(planted(150, 0.0, 0), DEVICE).constants
    assert found.launch_s == pytest.approx(PLANTED.launch_s, rel=0.05)
    assert found.compute == pytest.approx(PLANTED.compute, rel=0.02)
    assert found.memory * found.hot == pytest.approx(PLANTED.memory, rel=0.1) or (
        found.memory == pytest.approx(PLANTED.memory, rel=0.05)
    )


def test_a_few_odd_measurements_do_not_bend_the_rest() -> None:
    samples = planted(150, 0.01, 1)
    odd = [Sample(sample.size, sample.seconds * 20) for sample in samples[:6]]
    calibration = known(odd + samples[6:])
    errors = [
        abs(estimate(s.size, DEVICE, calibration).seconds / s.seconds - 1)
        for s in planted(60, 0.0, 2)
    ]
    assert float(np.median(errors)) < 0.03


def test_a_band_holds_its_share_of_measurements_that_the_fit_never_saw() -> None:
    calibration = known(planted(250, 0.1, 3))
    inside = []
    for sample in planted(250, 0.1, 4):
        found = estimate(sample.size, DEVICE, calibration)
        inside.append(found.low <= sample.seconds <= found.high)
    assert abs(np.mean(inside) - NOMINAL) < 0.06


def test_folds_share_out_every_sample_once() -> None:
    for number in (1, 3, 17):
        tests = [place for _, test in folds(number) for place in test]
        assert sorted(tests) == list(range(number))
        assert all(not set(train) & set(test) for train, test in folds(number))


COLUMNS = (
    "source hardware n_gpus dtype op latency_us m n k batch kv_len heads kv_heads head_dim notes"
)
_GEMM = [16, 4096, 4096, "", "", "", "", "", ""]
ROWS = [
    ["s", "NVIDIA H100 80GB HBM3", 1, "bfloat16", "gemm", 20, *_GEMM],
    ["s", "AMD Instinct MI300X", 1, "bf16", "gemm", 30, *_GEMM],
    ["s", "mi300x", 1, "half/kv half", "decode_attention", 30, "", "", "", 8, 512, 32, 8, 128, ""],
    ["s", "Abacus 1", 1, "bf16", "gemm", 30, *_GEMM],
    ["s", "H200", 1, "bf16", "sorting", 30, "", "", "", "", "", "", "", "", ""],
]


def test_any_directory_of_measurements_is_scored(tmp_path: Path) -> None:
    """Devices and spellings never seen are, rows that cannot be used are said to be left out."""
    with gzip.open(tmp_path / "operators.csv.gz", "wt", newline="") as file:
        csv.writer(file).writerows([COLUMNS.split(), *ROWS])
    out = tmp_path / "scores.json"
    command = ["-m", "benchmarks.accuracy", "--data", str(tmp_path), "--json", str(out)]
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    scores = json.loads(out.read_text())
    assert {tuple(score) for score in scores} == {
        ("class", "device", "n", "median_ape", "p90_ape", "coverage")
    }
    assert {(score["class"], score["device"]) for score in scores} == {
        ("matmul_bf16", "H100-SXM5-80GB"),
        ("matmul_bf16", "MI300X"),
        ("decode_attention", "MI300X"),
    }
    assert "Abacus 1" in done.stdout
    assert "sorting" in done.stdout
