"""How a training step runs: optimizer, precision, checkpointing, adapters and sharding."""

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from llmsim_magic.records.errors import InvalidValue, is_instance, one_of
from llmsim_magic.records.trace.lora import parse_lora
from llmsim_magic.records.trace.optimizers import optimizer_name
from llmsim_magic.records.trace.workload import whole_number
from llmsim_magic.records.validation import choice, flag

# The dtype of the weights by precision.
PRECISION_DTYPES = {"bf16": "bfloat16", "fp32": "float32", "amp": "float32"}
PRECISIONS = tuple(PRECISION_DTYPES)
# Names of precisions in torch and Lightning.
_OTHER_PRECISIONS = {
    "bfloat16": "bf16",
    "bf16-true": "bf16",
    "float32": "fp32",
    "32-true": "fp32",
    "bf16-mixed": "amp",
    "mixed": "amp",
    "autocast": "amp",
}
MIXED_DTYPE = "bfloat16"  # in which sharded parameters are gathered under `amp`
ZERO_STAGES = (0, 1, 2, 3)
DEFAULT_OPTIMIZER = "adamw"
DEFAULT_QLORA = "r=16,targets=all-linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The options of a training step.

    Attributes:
        optimizer: its name in `OPTIMIZERS`, such as `adamw`; also as `optimizer_name` accepts it.
        precision: `bf16` or `fp32` for weights and arithmetic, `amp` for weights in float32 under
            autocast to bfloat16, or in shards of float32 that stage 3 gathers in bfloat16; None
            for the dtype of the config.
        checkpointing: run each layer's forward again in backward instead of keeping its tensors.
        lora: LoRA adapters, as text that `parse_lora` reads; None trains every parameter.
        qlora: keep the base model's linear layers in 4 bits; without `lora`, its adapters are on
            all linear layers.
        accumulate: micro-batches per step, of `batch / accumulate` sequences each.
        packed: pack the sequences of a batch into one row.
        zero: stage of ZeRO: 1 shards the optimizer's states over `dp` devices, 2 the gradients
            too, 3 the parameters too.
        dp: devices that train on different sequences (data parallel).

    Raises:
        InvalidValue: an unknown optimizer, precision or stage, a number below 1, or sharding
            without devices.
    """

    optimizer: str = DEFAULT_OPTIMIZER
    precision: str | None = None
    checkpointing: bool = False
    lora: str | None = None
    qlora: bool = False
    accumulate: int = 1
    packed: bool = False
    zero: int = 0
    dp: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "optimizer", optimizer_name(self.optimizer))
        if self.precision is not None:
            choice("precision", self.precision, PRECISIONS, _OTHER_PRECISIONS)
        for name in ("checkpointing", "qlora", "packed"):
            object.__setattr__(self, name, flag(name, getattr(self, name)))
        if self.qlora and self.lora is None:
            object.__setattr__(self, "lora", DEFAULT_QLORA)
        if self.lora is not None:
            object.__setattr__(self, "lora", str(parse_lora(self.lora)))
        for name in ("accumulate", "dp"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name)))
        object.__setattr__(self, "zero", zero_stage("zero", self.zero))
        if self.zero and self.dp == 1:
            raise InvalidValue(
                f"zero={self.zero} shards over the devices of dp: give dp=N with N above 1"
            )

    def micro_batch(self, batch: int) -> int:
        """Sequences of each micro-batch of a step.

        Raises:
            InvalidValue: The batch cannot be divided evenly.
        """
        count = self.accumulate
        if batch % count:
            raise InvalidValue(
                f"batch {batch} cannot be divided into {count} micro-batches: give a multiple of "
                f"{count}, such as {-(-batch // count) * count}"
            )
        return batch // count

    @property
    def is_mixed(self) -> bool:
        """Whether shards in float32 are gathered in the dtype in which the kernels compute."""
        return self.zero == 3 and self.precision == "amp" and not self.qlora

    @property
    def changed(self) -> dict[str, object]:
        """The options that differ from their defaults, by name."""
        default = Training()
        return {
            field.name: value
            for field in fields(self)
            if (value := getattr(self, field.name)) != getattr(default, field.name)
        }

    @property
    def changes(self) -> str:
        """The options that differ from their defaults, in words; empty if none does."""
        return _in_words(self.changed)

    @property
    def sharding(self) -> str:
        """How devices of data parallelism share a step, such as `zero 3, dp 8`; empty for one."""
        changed = self.changed
        return _in_words({name: changed[name] for name in ("zero", "dp") if name in changed})

    def __str__(self) -> str:
        return _in_words({"optimizer": self.optimizer} | self.changed)


def zero_stage(name: str, value: object) -> int:
    """The stage of ZeRO that a value is.

    Args:
        name: The option.
        value: An integer; NumPy's are accepted.

    Raises:
        InvalidValue: It is no stage; the message has the one that text such as `stage3` contains.
    """
    try:
        stage = -1 if is_instance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except Exception:  # of a user's class
        stage = -1
    if stage in ZERO_STAGES:
        return stage
    digits = re.findall("[0-9]+", str(value)[:80]) if is_instance(value, str) else []
    meant = next((digit for digit in digits if digit in map(str, ZERO_STAGES)), None)
    raise InvalidValue.must_be(name, value, one_of(map(str, ZERO_STAGES)), meant)


def _in_words(options: Mapping[str, object]) -> str:
    return ", ".join(
        name if value is True else f"{name} {value}" for name, value in options.items()
    )
