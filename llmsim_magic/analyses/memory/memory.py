"""Memory of one device: weights, buffers, cache, activations, and what a runtime adds."""

from dataclasses import dataclass

from llmsim_magic.analyses.allocations.pass_allocations import pass_allocations
from llmsim_magic.analyses.allocations.step_memory import StepMemory, step_memory
from llmsim_magic.analyses.allocations.tensor_lifetimes import (
    Peak,
    operator_name,
    peak_of_record,
    peak_with_cache,
)
from llmsim_magic.analyses.engine.engine_allocations import engine_allocations
from llmsim_magic.analyses.engine.engine_trace import engine_notes
from llmsim_magic.analyses.memory.weights import Weights, weights
from llmsim_magic.analyses.quantization.storage_layouts import kv_dtype
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.hardware.dtypes import BITS
from llmsim_magic.records.hardware.runtime import Runtime
from llmsim_magic.records.trace.recorded import Record
from llmsim_magic.records.trace.trace import CacheSlot, Trace, numel
from llmsim_magic.records.trace.workload import Workload

# Workspace of cuBLAS (ATen/cuda/CublasHandlePool.cpp); on Hopper 32 MiB, and 1 MiB of cublasLt.
_WORKSPACE = 8 * 2**20 + 128 * 2**10
_HOPPER_WORKSPACE = 33 * 2**20
_UNFILLED = 0.15  # of what is not weights
_UNLIKE = 0.01  # of the segments of training steps
_KEYS_AND_VALUES = ("keys", "values")


@dataclass(frozen=True, slots=True)
class Reserved:
    """Bytes that the caching allocator takes from the driver, as a band."""

    low: int
    high: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on one rank.

    Under a plain call of the model, sizes are those of the allocator's blocks, and `total` is the
    peak of `torch.cuda.memory_allocated` while nobody else references the cache.

    Attributes:
        weights: Parameters as stored; tied ones count once.
        buffers: Tensors that the model keeps besides its parameters.
        cache: Keys, values and recurrent states after the pass.
        activations: What the pass allocates at its peak, without the cache: `activations + cache`
            is the peak above what was allocated before, for a caller that keeps the cache which
            it passed in. Of a training step: saved tensors and temporaries.
        replaced: Old keys or values that are still allocated at the peak, because `torch.cat`
            reads them while it writes the new ones. The total exceeds the other parts by it.
        context: What drivers and libraries hold outside the allocator.
        segments: What the allocator reserves for this pass in a new process, in which the cache
            that it replaces has blocks of its own; None under an engine.
        largest_weight: The largest parameter, as traced.
        counts_context: Whether the total includes the context, as an engine's budget does.
        step: The parts of a training step; None for inference.
        assumptions: Sentences for the user.
    """

    weights: int
    buffers: int
    cache: int
    activations: int
    replaced: int = 0
    context: int
    segments: int | None = None
    largest_weight: int = 0
    counts_context: bool = False
    step: StepMemory | None = None
    assumptions: tuple[str, ...]

    @property
    def total(self) -> int:
        """The peak of allocated bytes; under an engine, its whole budget with the context.

        The workspace of cuBLAS, of 8 to 33 MiB by device, is counted as reserved alone.
        """
        return self.allocated + (self.context if self.counts_context else 0)

    @property
    def allocated(self) -> int:
        """The peak of allocated bytes, of a training in a steady step."""
        kept = 0 if self.step is None else self.step.alive.gradients + self.step.alive.optimizer
        return self.weights + self.buffers + kept + self.cache + self.activations + self.replaced

    @property
    def required(self) -> int:
        """What the device must have room for beside the context: allocated bytes.

        A training runs for long, and needs what the allocator reserves for its steps.
        """
        if self.step is not None and self.reserved is not None:
            return self.reserved.high + self.context
        return self.allocated + self.context

    @property
    def reserved(self) -> Reserved | None:
        """What the caching allocator takes from the driver; None under an engine.

        At least the allocated bytes and the workspace of cuBLAS. At most the segments of this pass,
        or what loading and earlier passes leave, which later requests of other sizes do not fill.
        """
        if self.segments is None:
            return None
        if self.step is not None:
            return _reserved_by_steps(self.segments)
        left = most_reserved(self.allocated, self.weights, self.largest_weight)
        return Reserved(self.allocated + _WORKSPACE, max(self.segments, left) + _HOPPER_WORKSPACE)


def most_reserved(allocated: int, weights: int, largest_weight: int) -> int:
    """The most bytes in segments for a peak of allocated ones, beside workspaces.

    Loading leaves a segment as large as the largest weight, which it makes twice: 1.23 GB for the
    tied embedding of Phi-4-mini (pytorch/ao@36027d8 docs/source/eager_tutorials). Beside that, 4 to
    14 % of what is not weights was reserved more in eight training runs on an H100; that inference
    stays below too is a guess.
    """
    return allocated + largest_weight + int((allocated - weights) * _UNFILLED)


def _reserved_by_steps(segments: int) -> Reserved:
    """What the allocator takes for training steps: the segments of the replay, and workspaces.

    The thread that runs backward has a workspace of cuBLAS of its own. In nine of ten runs on an
    H100 the segments were within _UNLIKE of those of the replay.
    """
    low = int(segments * (1 - _UNLIKE)) + _WORKSPACE
    return Reserved(low, int(segments * (1 + _UNLIKE)) + 2 * _HOPPER_WORKSPACE)


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
        InvalidValue: If a dtype does not exist, or is given for a training step.
    """
    if trace.training is not None:
        if weight_dtype is not None or kv_dtype is not None:
            name = "kv_dtype" if weight_dtype is None else "weight_dtype"
            raise InvalidValue(f"{name} has no effect on a training step; leave it out")
        return _of_step(trace, runtime)
    stored = weights(trace, weight_dtype)
    plan = _engine_activations(trace) if _is_engine(runtime) else _plain_activations(trace)
    nbytes, why = _with_sampling(activations or plan.activations, plan.location, trace, runtime)
    return Memory(
        weights=stored.nbytes,
        buffers=buffer_bytes(trace),
        cache=cache_bytes(trace, kv_dtype),
        activations=nbytes,
        replaced=plan.replaced,
        context=runtime.context(trace.ranks) if runtime else 0,
        segments=plan.segments and plan.segments + stored.nbytes + buffer_bytes(trace),
        largest_weight=max((each.nbytes for each in trace.parameters), default=0),
        counts_context=_is_engine(runtime),
        assumptions=(
            *_storage_assumptions(stored, kv_dtype),
            why,
            *_replaced_assumptions(plan.replaced),
            *_runtime_assumptions(trace, runtime),
        ),
    )


def _of_step(trace: Trace, runtime: Runtime | None) -> Memory:
    """The memory of a training step."""
    step = step_memory(trace)
    buffers = buffer_bytes(trace)
    return Memory(
        weights=step.alive.parameters - buffers,
        buffers=buffers,
        cache=0,
        activations=step.alive.saved + step.alive.temporaries,
        context=runtime.context(trace.model.parallel.ranks) if runtime else 0,
        segments=step.segments,
        largest_weight=max((each.nbytes for each in trace.parameters), default=0),
        step=step,
        assumptions=(
            f"the peak of a steady step, whose optimizer has its states, is in {step.place}",
            "bytes of a training step are whole blocks of PyTorch's caching allocator; cuBLAS "
            "workspaces, 8 to 33 MiB for each of two threads, count as reserved, not as allocated",
        ),
    )


def activation_bytes(trace: Trace, runtime: Runtime) -> int:
    """Peak bytes of the activations of a prefill as a runtime runs it, without sampling.

    Tensors alone, not their blocks, so that they follow a formula of batch and context.
    """
    if _is_engine(runtime):
        return peak_of_record(engine_allocations(trace).recorded).nbytes
    return peak_with_cache(trace).nbytes - cache_bytes(trace)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """How a runtime's pass uses memory: see `Memory`.

    `location` is where its peak is. `segments` are those beyond weights and buffers.
    """

    activations: PassActivations
    location: str
    replaced: int = 0
    segments: int | None = None


def _is_engine(runtime: Runtime | None) -> bool:
    return runtime is not None and runtime.own_attention


def _engine_activations(trace: Trace) -> _Plan:
    record = engine_allocations(trace).recorded
    peak = peak_of_record(record)
    return _Plan(
        activations=PassActivations(trace.workload, peak.nbytes), location=_location(record, peak)
    )


def _plain_activations(trace: Trace) -> _Plan:
    """Of a plain call of the model, whose allocations are replayed on PyTorch's allocator."""
    found = pass_allocations(trace)
    # A slot may be a view of a longer storage, and no kernel need read every slot.
    cache = min(cache_bytes(trace), found.cache)
    return _Plan(
        activations=PassActivations(trace.workload, found.above.nbytes - cache),
        location=_location(trace.unrolled, found.above),
        replaced=max(found.allocated - found.above.nbytes, 0),
        segments=found.segments,
    )


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
    return numel(slot.shape) * bits // 8


def _with_sampling(
    peak: PassActivations, location: str, trace: Trace, runtime: Runtime | None
) -> tuple[int, str]:
    """Bytes at the peak of the pass or of sampling after it, if that is larger, and where it is."""
    where = f"peak activations in {location}, {peak.workload}"
    if runtime is None or not runtime.sampled_sequences or not trace.model.generates:
        return peak.nbytes, where
    sampling = runtime.sampling_bytes(_vocabulary(trace))
    if sampling <= peak.nbytes:
        return peak.nbytes, where
    logits = f"{runtime.logit_copies:g} × the float32 logits of {runtime.sampled_sequences}"
    return sampling, f"peak activations in sampling: {logits} sequences"


def _location(record: Record, peak: Peak) -> str:
    if peak.operator is None:
        return "what the pass returns"
    return operator_name(record, peak.operator)


def _vocabulary(trace: Trace) -> int:
    """The last dimension of the first result: the vocabulary of the logits."""
    record = trace.recorded
    shapes = [shape for shape in record.shapes(record.results) if shape]
    return shapes[0][-1] if shapes else 0


def _storage_assumptions(stored: Weights, dtype: str | None) -> tuple[str, ...]:
    cache = (
        f"cache: keys and values in {dtype}, recurrent states in their default dtype"
        if dtype
        else None
    )
    return (f"weights: {stored.assumption}", *filter(None, (cache,)))


def _replaced_assumptions(nbytes: int) -> tuple[str, ...]:
    if not nbytes:
        return ()
    return (
        f"the total exceeds its parts by {nbytes:,} bytes of old keys or values, which are still "
        "allocated while the new ones of their layer are written",
    )


def _runtime_assumptions(trace: Trace, runtime: Runtime | None) -> tuple[str, ...]:
    if runtime is None:
        return ()
    notes = engine_notes(trace) if _is_engine(runtime) else ()
    return f"{runtime.name}: {runtime.note}", *(f"{runtime.name}: {note}" for note in notes)
