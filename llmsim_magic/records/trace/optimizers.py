"""The optimizers of a training step, by name: where each is from and what it keeps."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from llmsim_magic.records.errors import InvalidValue, is_instance, one_of
from llmsim_magic.records.spelling import likeness, nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerFacts:
    """An optimizer as a report describes it.

    Attributes:
        is_torch: Whether it is a class of `torch.optim`, which runs as it is. Any other follows
            the published code of its library.
        states: What it keeps for each parameter, and with which kernels it runs: a sentence
            without a full stop.
    """

    is_torch: bool
    states: str

    @property
    def notes(self) -> tuple[str, ...]:
        """What a report says of one that is not torch's own: where it is from and what it keeps."""
        return () if self.is_torch else (f"the optimizer is {self.states}",)


def _torch(states: str) -> OptimizerFacts:
    return OptimizerFacts(is_torch=True, states=states)


def _published(states: str) -> OptimizerFacts:
    return OptimizerFacts(is_torch=False, states=states)


_TWO = "two states in the parameter's dtype"
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

OPTIMIZERS: Mapping[str, OptimizerFacts] = MappingProxyType(
    {
        "adamw": _torch(f"AdamW of torch, foreach: {_TWO}"),
        "adamw_fused": _torch(f"AdamW of torch with fused=True: {_TWO}, no temporaries"),
        "adam": _torch(f"Adam of torch, foreach: {_TWO}"),
        "sgd": _torch("SGD of torch without momentum, foreach: no states"),
        "sgd_momentum": _torch(f"SGD of torch with momentum 0.9, foreach: {_ONE}"),
        "adafactor": _torch(
            "Adafactor of torch, one parameter after the other: a row and a column of each matrix"
        ),
        "muon": _torch(
            f"Muon of torch for matrices: {_ONE}; AdamW of torch, foreach, for embeddings, the "
            f"output head and all parameters that are no matrices: {_TWO}"
        ),
        "adagrad": _torch(f"Adagrad of torch, foreach: {_ONE}, from the start"),
        "rmsprop": _torch(f"RMSprop of torch, foreach: {_ONE}"),
        "nadam": _torch(f"NAdam of torch, foreach: {_TWO}"),
        "radam": _torch(f"RAdam of torch, foreach: {_TWO}"),
        "adamax": _torch(f"Adamax of torch, foreach: {_TWO}"),
        "adadelta": _torch(f"Adadelta of torch, foreach: {_TWO}"),
        "adamw_8bit": _published(
            f"AdamW8bit of bitsandbytes: two states, each {_BLOCKS}; {_TRAINER}"
        ),
        "paged_adamw_8bit": _published(
            f"PagedAdamW8bit of bitsandbytes: two states, each {_BLOCKS}; {_PAGED}; {_TRAINER}"
        ),
        "paged_adamw_32bit": _published(
            f"PagedAdamW32bit of bitsandbytes: two states in float32; {_PAGED}"
        ),
        "lion": _published(f"Lion as its authors published it (google/automl): {_ONE}"),
        "lion_8bit": _published(f"Lion8bit of bitsandbytes: one state, {_BLOCKS}; {_TRAINER}"),
        "transformers_adafactor": _published(
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
