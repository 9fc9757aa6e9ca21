"""Say in one line why a forward failed, in words for the author of the model."""

import re

from llmsim_magic.records.errors import clip, describe, is_own

_NO_META_KERNEL = re.compile(
    r"^(?P<op>\w+::[\w.]+): (attempted to run this operator with Meta tensors"
    r"|We could not find the fake impl)"
)
_NO_RULE = re.compile(r"There was no rule registered for HigherOrderOperator (?P<op>\w+)")
_NO_DEVICE = re.compile(
    r"Torch not compiled with \w+ enabled|compiled without \w+ support|not linked with support for"
    r"|accelerator device when none|Cannot get \w+ generator|Found no NVIDIA driver"
    r"|driver version is insufficient|No \w+ GPUs are available"
    r"|has no attribute '_(cuda|xpu|mps|mtia)_|Expected a cuda device"
    r"|^type torch\.\w+\.\w+ not available"
)
_MODE = re.compile(r"<(class ')?llmsim_magic[^>]*>")
_TENSOR = re.compile(r"tensor\(\.\.\., device='meta', size=(?P<shape>\([\d, ]*\))[^)]*\)")


def failure_reason(error: BaseException) -> str:
    """Return why a forward failed, in one line.

    Torch's errors about meta kernels, higher-order operators and missing devices advise on how the
    trace runs the model, which its author cannot change. They are replaced.

    Args:
        error: The exception that the forward raised.
    """
    text = describe(error)
    if is_own(error):
        return text
    message = text.partition(": ")[2]
    if found := _NO_META_KERNEL.search(message):
        return (
            f"{found['op']} has no kernel that gives its result's shape without values; trace the "
            "model without it, or register one with torch.library.register_fake"
        )
    if found := _NO_RULE.search(message):
        return untraceable_operator(found["op"])
    if _NO_DEVICE.search(message):
        return (
            f"its forward asks for a device that this machine lacks ({clip(text, 100)}); use the "
            "device of an input, as in x.device, or check first that the device is available"
        )
    return _TENSOR.sub(r"tensor of shape \g<shape>", _MODE.sub("the trace", text))


def untraceable_operator(name: str) -> str:
    """Say that a forward calls a higher-order operator that cannot be traced, and what to do."""
    return (
        f"the forward calls {name}, a higher-order operator of torch that cannot be traced; write "
        "what it does in plain Python"
    )
