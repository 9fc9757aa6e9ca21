"""The GPU of this machine: what its driver says of it, and whether it has memory to measure it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from llmsim_magic.catalog import accelerators
from llmsim_magic.records.errors import CannotMeasure, clip
from llmsim_magic.records.hardware.accelerator import Accelerator

GIB = 2**30
# By compute capability, and by the name that AMD's compiler gives an architecture.
_ARCHITECTURES = {
    "7.0": "volta",
    "7.5": "turing",
    "8.0": "ampere",
    "8.6": "ampere-ga10x",
    "8.7": "ampere-jetson",
    "8.9": "ada",
    "9.0": "hopper",
    "10.0": "blackwell",
    "10.3": "blackwell",
    "12.0": "blackwell-gb20x",
    "gfx90a": "cdna2",
    "gfx942": "cdna3",
    "gfx950": "cdna4",
    "gfx1100": "rdna3",
}


def cuda_name() -> str | None:
    """The name of the GPU that torch computes on by default; None if there is none.

    Raises:
        CannotMeasure: There is one, and its driver refuses it.
    """
    if not torch.cuda.is_available():
        return None
    try:
        return torch.cuda.get_device_name()
    except RuntimeError as error:
        raise CannotMeasure("the GPU of this machine", first_line(error)) from error


def first_line(error: Exception) -> str:
    """What an error of CUDA says, without its advice on how to debug the kernel."""
    return clip(str(error).partition("\n")[0], 120)


def require_memory(device: torch.device, needed: int) -> None:
    """Raise `CannotMeasure` if a GPU has less than `needed` bytes of free memory."""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    check_memory(torch.cuda.get_device_name(device), needed, free, total)


def check_memory(name: str, needed: int, free: int, total: int) -> None:
    """Raise `CannotMeasure` if `free` bytes of `total` are less than `needed`."""
    if free >= needed:
        return
    need = f"it needs {needed / GIB:.1f} GiB of free memory for its buffers"
    if total < needed:
        raise CannotMeasure(name, f"it is too small: {need} and has {total / GIB:.1f} GiB")
    raise CannotMeasure(
        name,
        f"it is busy: {need}, and {free / GIB:.1f} of {total / GIB:.1f} GiB are free; "
        "free what this or another program holds there",
    )


def cuda_accelerator(
    properties: Any, bandwidth: float, peaks: Mapping[str, float], torch_version: str
) -> Accelerator:
    """A GPU with its datasheet's rates, or with the measured ones if the catalogue lacks it.

    Args:
        properties: what `torch.cuda.get_device_properties` returns.
        bandwidth: measured, in bytes/s.
        peaks: measured FLOP/s by arithmetic.
        torch_version: what it was measured with.
    """
    rates = ", ".join(f"{peak / 1e12:.0f} TFLOP/s in {name}" for name, peak in peaks.items())
    measured = f"{bandwidth / 1e9:.0f} GB/s, {rates}, measured here with torch {torch_version}"
    here = {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "compute_units": properties.multi_processor_count,
    }
    datasheet = accelerators.of_driver(properties.name, properties.total_memory)
    if datasheet is not None:
        return replace(datasheet, **here, source=f"{datasheet.source}; {measured}")
    return Accelerator(
        **here,
        vendor="AMD" if torch.version.hip else "NVIDIA",
        kind="gpu",
        architecture=_architecture(properties),
        bandwidth_bytes_per_s=bandwidth,
        peak_flops=dict(peaks),
        link=None,
        interconnect_bytes_per_s=None,
        llc_bytes=getattr(properties, "L2_cache_size", 0) or None,
        tdp_w=None,
        source=measured,
    )


def _architecture(properties: Any) -> str:
    compiled_for = properties.gcnArchName.partition(":")[0] if torch.version.hip else ""
    capability = f"{properties.major}.{properties.minor}"
    known = _ARCHITECTURES.get(compiled_for) or _ARCHITECTURES.get(capability)
    return known or compiled_for or f"compute capability {capability}"
