"""Fit every class of kernels on every device that was measured: `calibration.json`.

    python -m benchmarks.calibrate --data DIR

DIR holds `operators.csv.gz`; `benchmarks/measured.py` says with which columns. Beside the fits it
writes a digest of every row it used, so that `benchmarks/accuracy.py` scores none of them with a fit
that has seen it.
"""

import argparse
import gzip
import zlib
from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.measured import Measured, operators
from llmsim_magic.analyses.fitting import band_of, fit
from llmsim_magic.analyses.roofline import estimate
from llmsim_magic.catalog import accelerators
from llmsim_magic.records.calibration import Band, Calibration, Fitted

HERE = Path(__file__).parent
OUT = HERE.parent / "llmsim_magic" / "catalog" / "calibration.json"
FITTED = HERE / "fitted_rows.txt.gz"
Groups = dict[str, dict[str, list[Measured]]]
Fits = dict[str, dict[str, Fitted]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    rows, left_out = operators(parser.parse_args().data)
    for why, number in left_out.items():
        print(f"left out {number} rows: {why}")
    found = calibrated(grouped(rows))
    OUT.write_bytes(msgspec.json.encode(found) + b"\n")
    with gzip.GzipFile(FITTED, "wb", mtime=0) as file:
        file.write("\n".join(sorted(map(digest, rows))).encode())
    print(f"{len(rows)} rows, {OUT.stat().st_size} bytes of fits")


def grouped(rows: Iterable[Measured]) -> Groups:
    """Rows by kind of kernel and device."""
    groups: Groups = {}
    for row in rows:
        groups.setdefault(row.sample.size.kind, {}).setdefault(row.device, []).append(row)
    return {kind: dict(sorted(groups[kind].items())) for kind in sorted(groups)}


def calibrated(groups: Groups) -> Calibration:
    fits = {
        kind: {device: fitted(device, rows) for device, rows in devices.items()}
        for kind, devices in groups.items()
    }
    return Calibration(fits, unseen_bands(groups, fits))


def fitted(device: str, rows: list[Measured]) -> Fitted:
    sources = dict.fromkeys(row.source for row in rows)
    found = fit([row.sample for row in rows], accelerators.find(device), tuple(sources))
    print(f"{rows[0].sample.size.kind}, {device}: {found.near}, {found.far}", flush=True)
    return found


def unseen_bands(groups: Groups, fits: Fits) -> dict[str, Band]:
    """For each kind the band earned on each device by the fits of the others."""
    bands = {}
    for kind, devices in groups.items():
        logs = [np.log(ratios_unseen(device, rows, fits)) for device, rows in devices.items()]
        every = np.concatenate(logs)
        bands[kind] = band_of(every) if len(every) else Band(1 / 3, 3.0)
    return bands


def ratios_unseen(device: str, rows: list[Measured], fits: Fits) -> list[float]:
    """Measured ÷ predicted on a device by what is known of the others; empty where none is."""
    without = {
        kind: others
        for kind, devices in fits.items()
        if (others := {name: each for name, each in devices.items() if name != device})
    }
    if rows[0].sample.size.kind not in without:
        return []
    unseen = Calibration(without, dict.fromkeys(without, Band(1.0, 1.0)))
    accelerator = accelerators.find(device)
    return [
        sample.seconds
        / estimate(sample.size, accelerator, unseen, regime=sample.regime).seconds
        for sample in (row.sample for row in rows)
    ]


def digest(row: Measured) -> str:
    """Names a measurement: what ran where, how it was started and how long it took."""
    named = repr((row.device, row.sample.size, row.sample.regime, f"{row.sample.seconds:.6e}"))
    return f"{zlib.crc32(named.encode()):08x}"


if __name__ == "__main__":
    main()
