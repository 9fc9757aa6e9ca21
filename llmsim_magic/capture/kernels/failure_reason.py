"""Say in one line why a forward failed, without torch's advice on what a trace is made of."""

import re

from llmsim_magic.records.errors import clip, describe

_NO_META_KERNEL = re.compile(
    r"^(?P<op>\w+::[\w.]+): (attempted to run this operator with Meta tensors"
    r"|We could not find the fake impl)"
)
_NO_RULE = re.compile(r"There was no rule registered for HigherOrderOperator (?P<op>\w+)")
_NO_DEVICE = re.compile(
    r"Torch not compiled with \w+ enabled|compiled without \w+ support|not linked with support for"
    r"|accelerator device when none|Cannot get \w+ generator|Found no NVIDIA driver"
    r"|No \w+ GPUs are available|^type torch\.\w+\.\w+ not available"
)
_MODE = re.compile(r"<(class ')?llmsim_magic[^>]*>")
_TENSOR = re.compile(r"tensor\(\.\.\., device='meta', size=(?P<shape>\([\d, ]*\))[^)]*\)")


def explain(error: BaseException) -> str:
    """Return why a forward failed, in one line.

    What torch says of kernels without values, of its higher-order operators and of devices that
    this machine lacks is advice on code that a user does not have, so its meaning is returned.

    Args:
        error: What the forward raised.
    """
    text = describe(error)
    message = text.partition(": ")[2]
    if found := _NO_META_KERNEL.search(message):
        return (
            f"{found['op']} has no kernel that gives its result's shape without values; trace the "
            "model without it, or register one with torch.library.register_fake"
        )
    if found := _NO_RULE.search(message):
        return f"{found['op']} is a higher-order operator of torch that cannot be traced"
    if _NO_DEVICE.search(message):
        return (
            f"its forward asks for a device by itself ({clip(text, 100)}); a trace needs none: use "
            "that of an input, as in x.device, or ask only if the device is there"
        )
    return _TENSOR.sub(r"tensor of shape \g<shape>", _MODE.sub("the trace", text))
