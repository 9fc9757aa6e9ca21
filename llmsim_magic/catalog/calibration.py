"""What the devices of the catalogue were measured to do, as `benchmarks/calibrate.py` fitted it."""

from functools import cache
from importlib import resources

import msgspec

from llmsim_magic.records.hardware.calibration import Calibration


@cache
def calibration() -> Calibration:
    """The constants, surfaces and bands that ship, each with what it was fitted to."""
    data = resources.files(__package__).joinpath("calibration.json").read_bytes()
    return msgspec.json.decode(data, type=Calibration)
