"""What PyTorch's kernels were measured to take, as `benchmarks/calibrate_torch.py` fitted it."""

from functools import cache
from importlib import resources

import msgspec

from llmsim_magic.records.hardware.torch_kernel import TorchCalibration


@cache
def torch_calibration() -> TorchCalibration:
    """The constants and bands that ship, with the device and the runs they were fitted to."""
    data = resources.files(__package__).joinpath("torch_calibration.json").read_bytes()
    return msgspec.json.decode(data, type=TorchCalibration)
