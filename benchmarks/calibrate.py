"""Fits every kernel class on every measured device, and writes `calibration.json`.

    python -m benchmarks.calibrate --data DIR

DIR holds `operators.csv.gz`; `benchmarks/measured_kernels.py` lists its columns. Besides the fits
it writes a digest of every row used, so that `benchmarks/accuracy.py` scores no row with a fit
that used it.
"""

import argparse
import gzip
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.end_to_end import bands, passes
from benchmarks.measured_kernels import Measured, operators
from llmsim_magic.analyses.time.band import DEFAULT_BAND, widest_band
from llmsim_magic.analyses.time.calibration_fit import band_of, fit
from llmsim_magic.analyses.time.roofline import Estimate, estimate
from llmsim_magic.catalog import accelerators
from llmsim_magic.records.hardware.calibration import Band, Calibration, Fitted, Host

HERE = Path(__file__).parent
OUT = HERE.parent / "llmsim_magic" / "catalog" / "calibration.json"
FITTED = HERE / "fitted_rows.txt.gz"
Groups = dict[str, dict[str, list[Measured]]]
Fits = Mapping[str, Mapping[str, Fitted]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data
    rows, left_out = operators(data)
    for why, number in left_out.items():
        print(f"left out {number} rows: {why}")
    found = calibrated(grouped(rows))
    found = replace(found, passes=bands(passes(data, found)[0]))
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
    return Calibration(fits, {kind: transfer(groups[kind], fits) for kind in groups}, hosts(groups))


def hosts(groups: Groups) -> dict[str, Host]:
    """What an eager kernel of a device takes at the least: that is what starting it takes.

    The quickest tenth of the class that the host starts quickest; views were not measured.
    """
    quickest: dict[str, float] = {}
    for kind, devices in groups.items():
        for device, rows in devices.items():
            eager = [row.sample.seconds for row in rows if row.sample.regime == "eager"]
            if eager and not kind.startswith("collective"):
                least = float(np.quantile(eager, 0.1))
                quickest[device] = min(least, quickest.get(device, least))
    return {device: Host(seconds, 0.0, 0.0) for device, seconds in quickest.items()}


def fitted(device: str, rows: list[Measured]) -> Fitted:
    sources = dict.fromkeys(row.source for row in rows)
    found = fit([row.sample for row in rows], accelerators.find(device), tuple(sources))
    print(f"{rows[0].sample.size.kind}, {device}: {found.near}, {found.far}", flush=True)
    return found


def transfer(devices: Mapping[str, list[Measured]], fits: Fits) -> Band:
    """The band that a class earns when each device is predicted from the others.

    It holds nine of ten measurements of every device: so few devices do not tell how far off one
    in ten of them is. A class measured on one device alone earns no band: a factor of three is what
    remains.
    """
    if len(devices) < 2:
        return DEFAULT_BAND
    some = {device: Random(0).sample(rows, min(len(rows), 200)) for device, rows in devices.items()}
    return widest_band([band_of(unseen(device, rows, fits)) for device, rows in some.items()])


def unseen(device: str, rows: list[Measured], fits: Fits) -> NDArray[np.float64]:
    """log(measured ÷ predicted) on a device by what is known of the others."""
    found = without(device, rows, fits, Band(1.0, 1.0))
    return np.log([row.sample.seconds / guess.seconds for row, guess in found])


def without(
    device: str, rows: list[Measured], fits: Fits, band: Band
) -> list[tuple[Measured, Estimate]]:
    """What would be predicted of a device had it never been measured."""
    known = Calibration(others(device, fits), {rows[0].sample.size.kind: band})
    return [(row, predicted(row, known)) for row in rows]


def others(device: str, fits: Fits) -> Fits:
    """The fits of all devices but one."""
    left = {
        kind: {name: fit for name, fit in devices.items() if name != device}
        for kind, devices in fits.items()
    }
    return {kind: devices for kind, devices in left.items() if devices}


def predicted(row: Measured, known: Calibration) -> Estimate:
    sample = row.sample
    return estimate(sample.size, accelerators.find(row.device), known, regime=sample.regime)


def digest(row: Measured) -> str:
    """Names a measurement: what ran where, how it was started and how long it took."""
    named = repr((row.device, row.sample.size, row.sample.regime, f"{row.sample.seconds:.6e}"))
    return f"{zlib.crc32(named.encode()):08x}"


if __name__ == "__main__":
    main()
