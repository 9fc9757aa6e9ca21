"""Names of exported files: after the model and its workload, so that models do not mix."""

import re

from llmsim_magic.catalog import models
from llmsim_magic.records.trace.trace import Trace

_MAX_NAME_BYTES = 120  # of a model's name, so that file names stay below 255 bytes
_WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


def file_stem(trace: Trace) -> str:
    """What the files of a pass begin with, such as `Qwen3-0.6B.prefill.b1.c128`."""
    workload = trace.workload
    sizes = [f"{letter}{size}" for letter, size in zip("bc", _sizes(trace), strict=False) if size]
    return ".".join((model_stem(trace), workload.phase, *sizes))


def _sizes(trace: Trace) -> tuple[int, ...]:
    """Batch and context; none for a pass on given inputs, whose sizes are in no option."""
    workload = trace.workload
    is_given = workload.phase == "forward" or not workload.context
    return () if is_given else (workload.batch, workload.context)


def model_stem(trace: Trace) -> str:
    """The name of a model as part of a file name that every system accepts.

    A model of the catalogue has the last part of its name. Another one has its owner, or the
    folder that it is in, before it, because two of them may have the same last part.
    """
    name = trace.model.name
    parts = [part for part in re.split(r"[/\\]+", name) if part.strip(".")]
    known = models.find(name) is not None
    text = "--".join(parts[-1:] if known else parts[-2:])
    safe = "".join(c if c.isalnum() or c in "._-" else "-" for c in text)
    safe = safe.encode()[-_MAX_NAME_BYTES:].decode(errors="ignore").strip(".-")
    if not safe or _WINDOWS_DEVICE.match(safe):
        return f"model-{safe}".strip("-")
    return safe
