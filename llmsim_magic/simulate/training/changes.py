"""Options of a training step that may make it fit a device, or run faster."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from types import MappingProxyType
from typing import Any

from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.trace.training import DEFAULT_QLORA, ZERO_STAGES, Training
from llmsim_magic.records.trace.workload import Workload
from llmsim_magic.simulate.options import OPTIONS, text_of
from llmsim_magic.simulate.request import Build

SHARDED_OVER = 8  # devices of a usual server
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
        build: How the model is built and trained with them.
        name: The changed options as they are typed after the others: `--checkpointing`; or
            `without --checkpointing`.
    """

    build: Build
    name: str


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
    options = (*_singles(step), *(_combinations(step) if combined else ()))
    builds = dict.fromkeys(_changed(build, each) for each in options)
    return tuple(
        Change(each, changed_options(build, each)) for each in builds if each not in (None, build)
    )


def changed_options(before: Build, after: Build) -> str:
    """The options that differ, as they are typed.

    What is typed after other options replaces them. One that has its default value again cannot
    be: it is named as what to leave out.
    """
    typed, left_out = [], []
    for option in OPTIONS:
        if not option.field.startswith(("build.", "training.")):
            continue
        value = attrgetter(option.field.removeprefix("build."))
        if value(before) == value(after):
            continue
        if value(after) == option.default:
            left_out.append(f"without {option.flag}")
        elif option.is_flag:
            typed.append(option.flag)
        else:
            typed.append(f"{option.flag} {text_of(option, value(after))}")
    return ", ".join([*([" ".join(typed)] if typed else []), *left_out])


def _changed(build: Build, changed: _Options) -> Build | None:
    """The build with some options changed; None where they contradict what was asked for."""
    options = dict(changed)
    others = {name: options.pop(name) for name in ("attn", "dtype") if name in options}
    assert build.training is not None  # noqa: S101 - of a training step
    try:
        return replace(build, training=replace(build.training, **options), **others)
    except InvalidValue:
        return None


def _singles(step: _Step) -> Iterator[_Options]:
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
        yield from single(step)


def _combinations(step: _Step) -> Iterator[_Options]:
    """Several changes together, those that change the least of the training first."""
    first: _Options = {} if step.training.checkpointing else {"checkpointing": True}
    eight_bits = _only(each for each in _optimizers(step) if each["optimizer"] != _fused(step))
    one, fewer = _only(_one_sequence(step)), _only(_fewer_sequences(step))
    adapters = tuple(_adapters(step))
    *_, sharded = [{}, *_sharding(step)]
    yield from _still_fewer_sequences(step)
    for parts in (
        (first, fewer),
        (first, eight_bits),
        (first, one),
        (first, eight_bits, one),
        *((first, adapter) for adapter in adapters),
        *((first, adapter, one) for adapter in adapters[-1:]),
        (first, sharded),
        (first, sharded, one),
        (first, sharded, eight_bits, one),
    ):
        given = list(filter(None, parts))
        if len(given) > 1:
            yield {name: value for each in given for name, value in each.items()}


def _only(found: Iterator[_Options]) -> _Options:
    return next(found, {})


def _checkpointing(step: _Step) -> Iterator[_Options]:
    yield {"checkpointing": not step.training.checkpointing}


def _fewer_sequences(step: _Step) -> Iterator[_Options]:
    """The same batch in micro-batches of half as many sequences, or the most below that."""
    yield from _halved(step)[:1]


def _still_fewer_sequences(step: _Step) -> Iterator[_Options]:
    """The same batch in smaller micro-batches than that, down to one sequence."""
    yield from _halved(step)[1:_MOST_HALVES]
    yield from _one_sequence(step)


def _halved(step: _Step) -> list[_Options]:
    """The batch in micro-batches of which each has at most half the sequences of the one before."""
    found, fewest = [], 2 * step.training.accumulate
    for count in range(fewest, step.batch + 1):
        if count >= fewest and step.batch % count == 0:
            found.append({"accumulate": count})
            fewest = 2 * count
    return found


def _one_sequence(step: _Step) -> Iterator[_Options]:
    """Micro-batches of one sequence."""
    if step.training.accumulate < step.batch:
        yield {"accumulate": step.batch}


def _fused(step: _Step) -> str | None:
    return _FUSED.get(step.training.optimizer)


def _optimizers(step: _Step) -> Iterator[_Options]:
    for name in (_fused(step), _EIGHT_BITS.get(step.training.optimizer)):
        if name is not None:
            yield {"optimizer": name}


def _precisions(step: _Step) -> Iterator[_Options]:
    """Precisions of fewer bits: autocast and bfloat16 instead of float32."""
    if step.weight_dtype != "float32":
        return
    if step.training.precision != "amp":
        yield {"precision": "amp", "dtype": None}
    if not step.is_live:
        yield {"precision": "bf16", "dtype": None}


def _other_dtypes(step: _Step) -> Iterator[_Options]:
    """Dtypes of devices that do not compute in bfloat16."""
    if step.is_refused and not step.is_live:
        if step.training.precision != "amp":
            yield {"precision": None, "dtype": "float16"}
        yield {"precision": "fp32", "dtype": None}


def _attention(step: _Step) -> Iterator[_Options]:
    """Fused attention."""
    if step.build.attn == "eager":
        yield {"attn": "sdpa"}


def _adapters(step: _Step) -> Iterator[_Options]:
    """Train fewer parameters: those of an adapter, then on a base model in 4 bits."""
    lora = step.training.lora
    if lora is None:
        yield {"lora": DEFAULT_QLORA}
    if not step.training.qlora:
        yield {"lora": lora or DEFAULT_QLORA, "qlora": True}


def _sharding(step: _Step) -> Iterator[_Options]:
    """Each further stage of ZeRO over the devices that there are, or those of a server."""
    devices = step.training.dp if step.training.dp > 1 else SHARDED_OVER
    for stage in ZERO_STAGES[step.training.zero + 1 :]:
        yield {"zero": stage, "dp": devices}
