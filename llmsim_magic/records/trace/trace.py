"""The record of one forward pass, the only input of analyses and views."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import repeat
from typing import Any, TypeVar

import msgspec

from llmsim_magic.records.errors import LlmsimError, describe
from llmsim_magic.records.printable import printable_record
from llmsim_magic.records.trace.parallel import Parallel
from llmsim_magic.records.trace.recorded import Kernel, Operator, Record, Replay, Storage, Tensor
from llmsim_magic.records.trace.training import Training
from llmsim_magic.records.trace.unroll import ModuleCalls, module_calls, unroll
from llmsim_magic.records.trace.workload import Workload

BASE_HEAD = "headless (--base)"
Scalar = int | float | bool | str
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Module:
    """A module of the hierarchy."""

    path: str
    type: str
    is_list: bool
    attributes: dict[str, Scalar]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A parameter or buffer; `tied_to` is the first name of a shared one, else None.

    `packed` is the number of weights that each stored item holds: two of four bits in a byte.
    """

    name: str
    owner: str
    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    trainable: bool
    is_buffer: bool
    tied_to: str | None
    packed: int = 1

    @property
    def numel(self) -> int:
        return numel(self.shape) * self.packed

    @property
    def nbytes(self) -> int:
        return numel(self.shape) * self.itemsize


class CacheSlot(msgspec.Struct, frozen=True, gc=False):
    """One tensor of the cache or recurrent state after the pass."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """The traced model: `name` as requested, and `origin` of its config.

    `generates` says whether the model writes text, or codes, token by token. The traced model is
    unquantised: `quantisation` is the checkpoint's `quantization_config`, and `quantized_names` has
    the parameters that each module name in it matches. A parallel model is traced as one rank, and
    `plan` has the parallel style of each split parameter.
    """

    name: str
    class_name: str
    model_type: str | None
    head: str
    attention: str | None
    dtype: str
    origin: str
    generates: bool = False
    quantisation: dict[str, Any] | None = None
    quantized_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    parallel: Parallel = field(default_factory=Parallel)
    plan: dict[str, str] = field(default_factory=dict)

    @property
    def is_base(self) -> bool:
        """Whether the class without a head was asked for."""
        return self.head == BASE_HEAD


# An operator of the pass: the index of the recorded operator, and the replay it is in, if any.
Step = tuple[int, Replay | None]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One forward pass of one model under one workload.

    `recorded` has the operators that were run. A layer that repeats an earlier one is in `replays`
    instead; `unrolled` has all layers. Every string is printable. `ignores_context` says that a
    longer context was found to give the model the same inputs. `training` says how a training step
    runs, and is None for other phases.
    """

    model: ModelInfo
    workload: Workload
    modules: tuple[Module, ...]
    parameters: tuple[Parameter, ...]
    recorded: Record
    replays: tuple[Replay, ...]
    cache: tuple[CacheSlot, ...]
    notes: tuple[str, ...]
    versions: dict[str, str]
    ignores_context: bool = False
    training: Training | None = None

    def __getstate__(self) -> dict[str, Any]:
        """The record alone, without what was computed from it."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @cached_property
    def unrolled(self) -> Record:
        """The record with replayed layers written out; tensors are numbered by first use."""
        return unroll(self.recorded, self.replays)

    @property
    def ranks(self) -> int:
        """The devices that run it together: those of the model, times those of data parallelism."""
        return self.model.parallel.ranks * (self.training.dp if self.training else 1)

    @property
    def has_shards(self) -> bool:
        """Whether its parameters are those of one device, a part of the model's."""
        shards_parameters = self.training is not None and self.training.zero == 3
        return shards_parameters or not self.model.parallel.is_one

    @property
    def layout(self) -> str:
        """How the devices share it, such as `tp 2, zero 3, dp 4`, or `one device`."""
        return layout(self.model.parallel, self.training)

    @property
    def operators(self) -> tuple[Operator, ...]:
        return self.unrolled.operators

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        return self.unrolled.kernels

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.unrolled.tensors

    @property
    def storages(self) -> tuple[Storage, ...]:
        return self.unrolled.storages

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Every operator of the pass in execution order, as a recorded operator and its replay."""
        found: list[Step] = []
        done = 0
        for replay in self.replays:
            found += zip(range(done, replay.before_operator), repeat(None), strict=False)
            found += zip(range(*replay.operators), repeat(replay), strict=False)
            done = replay.before_operator
        found += zip(range(done, len(self.recorded.operators)), repeat(None), strict=False)
        return tuple(found)

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """The path of every operator of the pass, in order."""
        paths = [operator.path for operator in self.recorded.operators]
        return tuple(
            paths[operator] if replay is None else replay.map_path(paths[operator])
            for operator, replay in self.steps
        )

    def expand_replays(self, values: Sequence[Value]) -> list[Value]:
        """Values per recorded operator, repeated for every operator of the pass."""
        return [values[operator] for operator, _ in self.steps]

    @cached_property
    def calls(self) -> dict[str, ModuleCalls]:
        """The calls of every executed module, by path, including replayed layers."""
        return module_calls(self.recorded, self.replays)

    @cached_property
    def run_counts(self) -> Counter[int]:
        """The number of times the pass runs each recorded operator, including replays."""
        return Counter(operator for operator, _ in self.steps)

    def recorded_path(self, path: str) -> str:
        """The path of the recorded counterpart of a module or parameter in a replayed layer."""
        end = len(path)
        while self._recorded_layer_of and end > 0:
            of = self._recorded_layer_of.get(path[:end])
            if of is not None:
                return of + path[end:]
            end = path.rfind(".", 0, end)
        return path

    @cached_property
    def _recorded_layer_of(self) -> dict[str, str]:
        return {replay.path: replay.of for replay in self.replays}

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, data: bytes | str) -> "Trace":
        """The trace that `to_json` encoded, with every string printable.

        Raises:
            LlmsimError: If the data is not an encoded trace.
        """
        try:
            return printable_record(msgspec.json.decode(data, type=cls))
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise LlmsimError(
                f"trace: the data is not an encoded trace: {describe(error)}"
            ) from error


def layout(parallel: Parallel, training: Training | None) -> str:
    """How devices share a model and its training, in words; `one device` if there is one."""
    parts = ("" if parallel.is_one else str(parallel), training.sharding if training else "")
    return ", ".join(filter(None, parts)) or str(parallel)


def numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
