"""Memory of one device: weights, cache, peak activations and the runtime's overhead."""

from dataclasses import dataclass

from llmsim_magic.analyses.engine.engine_allocations import engine_allocations
from llmsim_magic.analyses.engine.engine_trace import engine_notes
from llmsim_magic.analyses.memory.quantization import kv_dtype
from llmsim_magic.analyses.memory.tensor_lifetimes import Peak, peak_activations
from llmsim_magic.analyses.memory.weights import Weights, weights
from llmsim_magic.records.hardware.dtypes import BITS
from llmsim_magic.records.hardware.runtime import Runtime
from llmsim_magic.records.trace.trace import CacheSlot, Trace
from llmsim_magic.records.trace.workload import Workload

_KEYS_AND_VALUES = ("keys", "values")


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on one rank.

    `cache` holds keys, values and recurrent states after the pass. `activations` is their peak.
    `runtime` is the overhead of drivers and libraries. `assumptions` are sentences for the user.
    """

    weights: int
    buffers: int
    cache: int
    activations: int
    runtime: int
    assumptions: tuple[str, ...]

    @property
    def total(self) -> int:
        return self.weights + self.buffers + self.cache + self.activations + self.runtime


@dataclass(frozen=True, slots=True)
class PassActivations:
    """Peak bytes of the activations of a pass, without sampling, and the pass's workload."""

    workload: Workload
    nbytes: int


def memory(
    trace: Trace,
    *,
    weight_dtype: str | None = None,
    kv_dtype: str | None = None,
    runtime: Runtime | None = None,
    activations: PassActivations | None = None,
) -> Memory:
    """The memory of one pass on the rank that was traced.

    Args:
        trace: The pass.
        weight_dtype: Storage dtype of weights; as the checkpoint stores them if None.
        kv_dtype: Storage dtype of keys and values; as traced if None.
        runtime: The serving runtime whose overhead to add.
        activations: Activations to count, if the pass is too long to trace and `trace` is of a
            shorter one; those of `trace` if None.

    Raises:
        InvalidValue: If a dtype does not exist.
    """
    stored = weights(trace, weight_dtype)
    ranks = trace.model.parallel.ranks
    ran = _as_run(trace, runtime)
    peak = peak_activations(ran)
    found = activations or PassActivations(trace.workload, peak.nbytes)
    nbytes, why = _with_sampling(found, _location(ran, peak), ran, runtime)
    return Memory(
        weights=stored.nbytes,
        buffers=buffer_bytes(trace),
        cache=cache_bytes(trace, kv_dtype),
        activations=nbytes,
        runtime=runtime.context(ranks) if runtime else 0,
        assumptions=(
            *_storage_assumptions(stored, kv_dtype),
            why,
            *_runtime_assumptions(trace, runtime),
        ),
    )


def activation_bytes(trace: Trace, runtime: Runtime) -> int:
    """Peak bytes of the activations of a pass as a runtime runs it, without sampling."""
    return peak_activations(_as_run(trace, runtime)).nbytes


def _as_run(trace: Trace, runtime: Runtime | None) -> Trace:
    own = runtime is not None and runtime.own_attention
    return engine_allocations(trace) if own else trace


def buffer_bytes(trace: Trace) -> int:
    """Bytes of the model's buffers."""
    return sum(p.nbytes for p in trace.parameters if p.is_buffer and p.tied_to is None)


def cache_bytes(trace: Trace, dtype: str | None = None) -> int:
    """Bytes of the cache after the pass, with keys and values in a dtype if one is given.

    Recurrent states keep their dtype. Raises `InvalidValue` if the dtype does not exist.
    """
    bits = None if dtype is None else BITS[kv_dtype(dtype)]
    return sum(_slot_bytes(slot, bits) for slot in trace.cache)


def caches_keys_and_values(trace: Trace) -> bool:
    """Whether the pass leaves keys and values in a cache, whose dtype can be chosen."""
    return any(map(_is_key_or_value, trace.cache))


def _is_key_or_value(slot: CacheSlot) -> bool:
    return slot.name.rpartition(".")[2] in _KEYS_AND_VALUES and "float" in slot.dtype


def _slot_bytes(slot: CacheSlot, bits: int | None) -> int:
    if bits is None or not _is_key_or_value(slot):
        return slot.nbytes
    count = 1
    for size in slot.shape:
        count *= size
    return count * bits // 8


def _with_sampling(
    peak: PassActivations, location: str, trace: Trace, runtime: Runtime | None
) -> tuple[int, str]:
    """Bytes at the peak of the pass or of sampling after it, if that is larger, and where it is."""
    where = f"activations at their most in {location}, {peak.workload}"
    if runtime is None or not runtime.sampled_sequences or not trace.model.generates:
        return peak.nbytes, where
    sampling = runtime.sampling_bytes(_vocabulary(trace))
    if sampling <= peak.nbytes:
        return peak.nbytes, where
    logits = f"{runtime.logit_copies:g} × the float32 logits of {runtime.sampled_sequences}"
    return sampling, f"activations at their most in sampling: {logits} sequences"


def _location(trace: Trace, peak: Peak) -> str:
    if peak.operator is None:
        return "what the pass returns"
    operator = trace.operators[peak.operator]
    is_module = operator.kind == "module"
    return operator.path if is_module else f"{operator.path}:{operator.op}".removeprefix(":")


def _vocabulary(trace: Trace) -> int:
    """The last dimension of the first result: the vocabulary of the logits."""
    record = trace.recorded
    shapes = [shape for shape in record.shapes(record.results) if shape]
    return shapes[0][-1] if shapes else 0


def _storage_assumptions(stored: Weights, dtype: str | None) -> tuple[str, ...]:
    cache = f"keys and values in {dtype}, recurrent states as they are" if dtype else None
    return (f"weights {stored.assumption}", *filter(None, (cache,)))


def _runtime_assumptions(trace: Trace, runtime: Runtime | None) -> tuple[str, ...]:
    if runtime is None:
        return ()
    notes = engine_notes(trace) if runtime.own_attention else ()
    return f"{runtime.name}: {runtime.note}", *(f"{runtime.name}: {note}" for note in notes)
