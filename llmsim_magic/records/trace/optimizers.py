"""The optimizers of a training step, by name: where each is from and what it keeps."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from llmsim_magic.records.errors import InvalidValue, is_instance, one_of
from llmsim_magic.records.spelling import likeness, nearest

_ONE = "one state in the parameter's dtype"
_BLOCKS = (
    "1 byte for each element and 4 bytes for each block of 256, or float32 where a parameter has "
    "fewer than 4,096 elements"
)
_TRAINER = "unlike here, the Trainer of transformers keeps states of embeddings in float32"
_PAGED = (
    "states of 100,000 elements or more are in managed memory, which moves to the host when the "
    "device is full and is not counted by torch's allocator"
)

# What a report says of each; nothing of torch's own, which run as they are.
OPTIMIZERS: Mapping[str, str] = MappingProxyType(
    {
        "adamw": "",
        "adamw_fused": "",
        "adam": "",
        "sgd": "",
        "sgd_momentum": "",
        "adafactor": "",
        "muon": "",
        "adagrad": "",
        "rmsprop": "",
        "nadam": "",
        "radam": "",
        "adamax": "",
        "adadelta": "",
        "adamw_8bit": f"AdamW8bit of bitsandbytes: two states, each {_BLOCKS}; {_TRAINER}",
        "paged_adamw_8bit": (
            f"PagedAdamW8bit of bitsandbytes: two states, each {_BLOCKS}; {_PAGED}; {_TRAINER}"
        ),
        "paged_adamw_32bit": f"PagedAdamW32bit of bitsandbytes: two states in float32; {_PAGED}",
        "lion": f"Lion as its authors published it (google/automl): {_ONE}",
        "lion_8bit": f"Lion8bit of bitsandbytes: one state, {_BLOCKS}; {_TRAINER}",
        "transformers_adafactor": (
            "Adafactor of transformers with the settings of its Trainer: a row and a column of "
            "each matrix in float32"
        ),
    }
)

# The names by which the Trainer of transformers calls some of them.
_ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "adamw_torch": "adamw",
        "adamw_torch_fused": "adamw_fused",
        "adamw_bnb_8bit": "adamw_8bit",
        "paged_adamw": "paged_adamw_32bit",
    }
)


def optimizer_notes(name: str) -> tuple[str, ...]:
    """What a report says of an optimizer that is not torch's own."""
    return (f"the optimizer is {OPTIMIZERS[name]}",) if OPTIMIZERS[name] else ()


def optimizer_name(value: Any) -> str:
    """Return the name in `OPTIMIZERS` of what a user asked for.

    Args:
        value: A name in any case, such as `AdamW`; also the Trainer's, such as `adamw_torch`.

    Raises:
        InvalidValue: No optimizer has the name; the message lists all, the nearest first.
    """
    if not is_instance(value, str):
        raise InvalidValue.must_be("optimizer", value, one_of(OPTIMIZERS))
    given = str(value)
    name = given.strip().lower().replace("-", "_")
    name = _ALIASES.get(name, name)
    if name in OPTIMIZERS:
        return name
    ordered = sorted(OPTIMIZERS, key=lambda each: -likeness(given, each))
    raise InvalidValue.must_be(
        "optimizer", value, one_of(ordered), nearest(given, OPTIMIZERS, _ALIASES)
    )
