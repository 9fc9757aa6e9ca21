"""Options of a training step that may make it fit a device, or run faster."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.trace.training import Training
from llmsim_magic.records.trace.workload import Workload
from llmsim_magic.simulate.request import Build

SHARDED_OVER = 8  # devices of a usual server
LORA = "r=16,targets=all-linear"
_EIGHT_BITS: Mapping[str, str] = MappingProxyType(
    {
        "adam": "adamw_8bit",
        "adamw": "adamw_8bit",
        "adamw_fused": "adamw_8bit",
        "paged_adamw_32bit": "paged_adamw_8bit",
        "lion": "lion_8bit",
    }
)
_MOST_HALVES = 4
_FUSED: Mapping[str, str] = MappingProxyType({"adamw": "adamw_fused"})


@dataclass(frozen=True, slots=True)
class Change:
    """Changed options of a step.

    Attributes:
        name: The changes in words, such as `checkpointing and adamw_8bit`.
        build: How the model is built and trained with them.
    """

    name: str
    build: Build


@dataclass(frozen=True, slots=True)
class _Step:
    """The step that was asked for.

    Attributes:
        build: How its model is built and trained.
        batch: Its sequences, in all micro-batches.
        weight_dtype: The dtype of its parameters.
        is_live: Its model is a module, which is not built in another way.
        is_refused: A device does not compute in its dtype.
    """

    build: Build
    batch: int
    weight_dtype: str
    is_live: bool
    is_refused: bool

    @property
    def training(self) -> Training:
        assert self.build.training is not None  # noqa: S101 - of a training step
        return self.build.training


_Options = dict[str, Any]
_Single = Callable[[_Step], Iterator[tuple[str, _Options]]]


def changes(
    build: Build,
    workload: Workload,
    weight_dtype: str,
    *,
    combined: bool,
    is_live: bool = False,
    refused: bool = False,
) -> tuple[Change, ...]:
    """Each change of a training step that its options leave open.

    Args:
        build: How the model is built and trained.
        workload: A training step.
        weight_dtype: The dtype of the parameters that the step has.
        combined: Also make several changes together, as a step needs that no single one makes fit.
        is_live: The model is a module, which has its dtype and attention.
        refused: Also try other dtypes, because a device does not compute in that of the step.
    """
    step = _Step(build, workload.batch, weight_dtype, is_live, refused)
    found: dict[Build, Change] = {}
    for parts in (*_singles(step), *(_combinations(step) if combined else ())):
        changed = _changed(build, parts)
        if changed not in (None, build):
            found.setdefault(changed, Change(" and ".join(parts), changed))
    return tuple(found.values())


def _changed(build: Build, parts: Mapping[str, _Options]) -> Build | None:
    """The build with some options changed; None where they contradict what was asked for."""
    options = {name: value for each in parts.values() for name, value in each.items()}
    others = {name: options.pop(name) for name in ("attn", "dtype") if name in options}
    assert build.training is not None  # noqa: S101 - of a training step
    try:
        return replace(build, training=replace(build.training, **options), **others)
    except InvalidValue:
        return None


def _singles(step: _Step) -> Iterator[dict[str, _Options]]:
    for single in (
        _checkpointing,
        _fewer_sequences,
        _optimizers,
        _precisions,
        _other_dtypes,
        _attention,
        _adapters,
        _sharding,
    ):
        for name, options in single(step):
            yield {name: options}


def _combinations(step: _Step) -> Iterator[dict[str, _Options]]:
    """Several changes together, those that change the least of the training first."""
    first = dict(_checkpointing(step)) if not step.training.checkpointing else {}
    eight_bits = {name: each for name, each in _optimizers(step) if name in _EIGHT_BITS.values()}
    one = dict(_one_sequence(step))
    adapters = [{name: each} for name, each in _adapters(step)]
    *_, sharded = [{}, *({name: each} for name, each in _sharding(step))]
    for name, options in _still_fewer_sequences(step):
        yield {name: options}
    for parts in (
        first | dict(_fewer_sequences(step)),
        first | eight_bits,
        first | one,
        first | eight_bits | one,
        *(first | adapter for adapter in adapters),
        *(first | adapter | one for adapter in adapters[-1:]),
        first | sharded,
        first | sharded | one,
        first | sharded | eight_bits | one,
    ):
        if len(parts) > 1:
            yield parts


def _checkpointing(step: _Step) -> Iterator[tuple[str, _Options]]:
    is_on = step.training.checkpointing
    yield ("no checkpointing" if is_on else "checkpointing"), {"checkpointing": not is_on}


def _fewer_sequences(step: _Step) -> Iterator[tuple[str, _Options]]:
    """The same batch in micro-batches of half as many sequences, or the most below that."""
    yield from _halved(step)[:1]


def _still_fewer_sequences(step: _Step) -> Iterator[tuple[str, _Options]]:
    """The same batch in smaller micro-batches than that, down to one sequence."""
    yield from _halved(step)[1:_MOST_HALVES]
    yield from _one_sequence(step)


def _halved(step: _Step) -> list[tuple[str, _Options]]:
    """The batch in micro-batches of which each has at most half the sequences of the one before."""
    found, fewest = [], 2 * step.training.accumulate
    for count in range(fewest, step.batch + 1):
        if count >= fewest and step.batch % count == 0:
            found.append(_micro_batches(step, count))
            fewest = 2 * count
    return found


def _one_sequence(step: _Step) -> Iterator[tuple[str, _Options]]:
    """Micro-batches of one sequence."""
    if step.training.accumulate < step.batch:
        yield _micro_batches(step, step.batch)


def _micro_batches(step: _Step, count: int) -> tuple[str, _Options]:
    return f"{count} micro-batches of {step.batch // count}", {"accumulate": count}


def _optimizers(step: _Step) -> Iterator[tuple[str, _Options]]:
    for other in (_FUSED, _EIGHT_BITS):
        name = other.get(step.training.optimizer)
        if name is not None:
            yield name, {"optimizer": name}


def _precisions(step: _Step) -> Iterator[tuple[str, _Options]]:
    """Precisions of fewer bits: autocast and bfloat16 instead of float32."""
    if step.weight_dtype != "float32":
        return
    if step.training.precision != "amp":
        yield "precision amp", {"precision": "amp", "dtype": None}
    if not step.is_live:
        yield "precision bf16", {"precision": "bf16", "dtype": None}


def _other_dtypes(step: _Step) -> Iterator[tuple[str, _Options]]:
    """Dtypes of devices that do not compute in bfloat16."""
    if step.is_refused and not step.is_live:
        if step.training.precision != "amp":
            yield "dtype float16", {"precision": None, "dtype": "float16"}
        yield "precision fp32", {"precision": "fp32", "dtype": None}


def _attention(step: _Step) -> Iterator[tuple[str, _Options]]:
    if step.build.attn == "eager":
        yield "fused attention (sdpa)", {"attn": "sdpa"}


def _adapters(step: _Step) -> Iterator[tuple[str, _Options]]:
    """Train fewer parameters: those of an adapter, then on a base model in 4 bits."""
    lora = step.training.lora
    if lora is None:
        yield f"LoRA {LORA.partition(',')[0]}", {"lora": LORA}
    if not step.training.qlora:
        rank = (lora or LORA).partition(",")[0]
        yield f"QLoRA {rank}", {"lora": lora or LORA, "qlora": True}


def _sharding(step: _Step) -> Iterator[tuple[str, _Options]]:
    """Each further stage of ZeRO over the devices that there are, or those of a server."""
    devices = step.training.dp if step.training.dp > 1 else SHARDED_OVER
    for stage in range(step.training.zero + 1, 4):
        yield f"ZeRO {stage} over {devices} devices", {"zero": stage, "dp": devices}
