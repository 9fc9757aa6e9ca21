"""`--hardware local`: benchmark this machine's CPU once per process and calibrate it."""

from functools import cache

from llmsim_magic.analyses.time.band import DEFAULT_BAND
from llmsim_magic.analyses.time.calibration_fit import fit
from llmsim_magic.records.deferred_interrupt import DeferredInterrupt
from llmsim_magic.records.exclusive import ExclusiveLock
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.calibration import Calibration, Sample, Transfer

# Two benchmarks at the same time would slow each other down.
_measuring = ExclusiveLock("this machine is being measured")


def local() -> tuple[Accelerator, Calibration]:
    """This machine's CPU and its calibration; the first call benchmarks it for about 30 s.

    A kernel class without measurements gets the default band, a factor of three.
    """
    with DeferredInterrupt(), _measuring:
        return _measured()


@cache
def _measured() -> tuple[Accelerator, Calibration]:
    from llmsim_magic.capture.measure_cpu import measure

    found = measure()
    kinds: dict[str, list[Sample]] = {}
    for sample in found.samples:
        kinds.setdefault(sample.size.kind, []).append(sample)
    accelerator = found.accelerator
    source = (accelerator.source,)
    fits = {
        kind: {accelerator.name: fit(some, accelerator, source)} for kind, some in kinds.items()
    }
    unseen = dict.fromkeys(fits, Transfer(0.0, DEFAULT_BAND))
    return accelerator, Calibration(fits, unseen, {accelerator.name: found.host})
