"""Notes on the link over which devices exchange what they compute, where they have two."""

from collections.abc import Iterable

from llmsim_magic.analyses.time.kernel_sizes import collective_shape
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.trace.trace import Trace


def link_notes(trace: Trace, devices: Iterable[Accelerator]) -> tuple[str, ...]:
    """A sentence for each link of devices that have a bridge, as far as a pass exchanges anything.

    Args:
        trace: the pass of a rank.
        devices: on which it is timed.
    """
    shapes = (collective_shape(trace, kernel) for kernel in trace.recorded.kernels)
    groups = sorted({each.joined for each in shapes if each is not None})
    found: dict[str, list[str]] = {}
    for device in devices:
        for joined in groups:
            text = _over(device, joined)
            if text is not None:
                found.setdefault(text, []).append(device.name)
    return tuple(f"{', '.join(names)}: {text}" for text, names in found.items())


def _over(device: Accelerator, joined: int) -> str | None:
    bridge = next((each for each in device.links if each.joins is not None), None)
    if bridge is None:
        return None
    if bridge.reaches(joined):
        return f"exchanges among {joined} devices are priced over {bridge.name}, if they have one"
    link = device.among(joined).link
    beyond = f"{bridge.name} joins {bridge.joins}"
    return f"exchanges among {joined} devices are priced over {link}: {beyond}"
