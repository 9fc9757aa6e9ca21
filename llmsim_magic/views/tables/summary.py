"""The summary table: the model, the workload and the totals of one pass."""

from collections.abc import Mapping
from types import MappingProxyType

import pandas as pd

from llmsim_magic.analyses.cost.mixture_of_experts import expert_routings
from llmsim_magic.analyses.cost.operator_costs import Totals, operator_types, totals
from llmsim_magic.analyses.cost.parameter_dtypes import parameter_dtypes
from llmsim_magic.analyses.cost.step_passes import pass_costs, saved_bytes
from llmsim_magic.analyses.engine.engine_coverage import engine_gap
from llmsim_magic.analyses.engine.engine_trace import engine_notes, engine_trace
from llmsim_magic.analyses.kernels import elementwise_work
from llmsim_magic.records.deferred_interrupt import defer_interrupt
from llmsim_magic.records.trace.recorded import Pass
from llmsim_magic.records.trace.trace import Trace

Row = tuple[str, object, str, str]  # quantity, value, unit, meaning
_PASSES: Mapping[Pass, str] = MappingProxyType(
    {
        "forward": "the model and its loss",
        "recompute": "forward of checkpointed layers again, before their backward",
        "backward": "gradients of activations and of parameters",
        "optimizer": "the update of the parameters",
    }
)


@defer_interrupt
def summary_table(trace: Trace) -> pd.DataFrame:
    """One row per quantity, index `quantity`: its `value`, its `unit` and what it `means`."""
    sums = totals(trace)
    rows = [
        *_model_rows(trace),
        *_size_rows(trace, sums),
        *_cost_rows(sums),
        *_pass_rows(trace),
        *_engine_rows(trace, sums),
        *_kernel_coverage_rows(trace),
        *_operator_type_rows(trace),
    ]
    names, values, unit, meaning = zip(*rows, strict=True)
    return pd.DataFrame(
        {"value": pd.Series(values, dtype=object).array, "unit": unit, "means": meaning},
        index=pd.Index(names, name="quantity"),
    )


def _model_rows(trace: Trace) -> list[Row]:
    """Which model ran, and on what workload."""
    model, workload = trace.model, trace.workload
    return [
        ("model", model.name, "", f"config from: {model.origin}"),
        ("class", model.class_name, "", f"head: {model.head}"),
        ("attention", model.attention or pd.NA, "", _attention_meaning(model.attention)),
        ("dtype", parameter_dtypes(trace), "", "dtype of the parameters"),
        *_device_rows(trace),
        ("phase", workload.phase, "", str(workload)),
        ("batch", workload.batch, "sequences", ""),
        (
            "context",
            pd.NA if trace.ignores_context else workload.context or pd.NA,
            "tokens",
            _context_meaning(trace),
        ),
        *_training_rows(trace),
    ]


def _device_rows(trace: Trace) -> list[Row]:
    """How many devices run the pass, if there are several."""
    if trace.ranks == 1:
        return []
    meaning = f"{trace.layout}; bytes and FLOPs below are those of one"
    return [("devices", trace.ranks, "devices", meaning)]


def _context_meaning(trace: Trace) -> str:
    if trace.ignores_context:
        return "without effect: the inputs do not depend on it"
    if trace.training is not None:
        return "tokens of each sequence"
    return "tokens read by prefill, or already cached before decode"


def _training_rows(trace: Trace) -> list[Row]:
    """How a training step runs."""
    if trace.training is None:
        return []
    options = str(trace.training)
    return [("optimizer", trace.training.optimizer, "", f"how the step runs: {options}")]


def _size_rows(trace: Trace, sums: Totals) -> list[Row]:
    """Counts of operators and parameters, and the bytes that they occupy."""
    of_one = ", of one device" if trace.has_shards else ""
    return [
        ("operators", sums.operators, "calls", "leaf modules and functions, in execution order"),
        ("modules", len(trace.modules), "modules", "containers included"),
        ("kernels", sums.kernels, "ATen ops", "views included"),
        ("parameters", sums.parameters, "parameters", f"shared parameters counted once{of_one}"),
        ("parameters_active", sums.active, "parameters", _active_parameters_meaning(trace)),
        ("parameters_trainable", sums.trainable, "parameters", "with requires_grad=True"),
        ("parameter_bytes", sums.parameter_bytes, "bytes", "parameters in their dtype"),
        ("buffer_bytes", sums.buffer_bytes, "bytes", "tensors kept beside parameters"),
        ("cache_bytes", sums.cache_bytes, "bytes", _cache_meaning(trace)),
    ]


def _cost_rows(sums: Totals) -> list[Row]:
    """Arithmetic and memory traffic of the pass."""
    intensity = sums.arithmetic_intensity
    return [
        (
            "flops",
            sums.flops,
            "FLOPs",
            "matmul, convolution and attention; a multiply-add counts as two",
        ),
        (
            "causal_skippable_flops",
            sums.causal_skippable_flops,
            "FLOPs",
            "part of flops above the causal diagonal, which a kernel may skip",
        ),
        ("elementwise_ops", sums.elementwise_ops, "operations", "elementwise and reductions"),
        ("bytes_read", sums.bytes_read, "bytes", "least traffic, summed over operators"),
        ("bytes_written", sums.bytes_written, "bytes", "least traffic, summed over operators"),
        ("bytes_weights", sums.bytes_weights, "bytes", "bytes moved for parameters and buffers"),
        ("bytes_activations", sums.bytes_activations, "bytes", "bytes moved between operators"),
        ("bytes_cache", sums.bytes_cache, "bytes", "bytes moved for the cache or state"),
        (
            "arithmetic_intensity",
            pd.NA if intensity is None else intensity,
            "FLOPs/byte",
            "FLOPs per byte moved",
        ),
    ]


def _pass_rows(trace: Trace) -> list[Row]:
    """The work of each pass of a training step, and what autograd keeps for backward."""
    if trace.training is None:
        return []
    rows: list[Row] = []
    for cost in pass_costs(trace):
        rows += [
            (f"operators_{cost.part}", cost.operators, "calls", _PASSES[cost.part]),
            (f"flops_{cost.part}", cost.flops, "FLOPs", f"part of flops: {_PASSES[cost.part]}"),
        ]
    saved = sum(kept or 0 for kept in saved_bytes(trace))
    meaning = "kept by autograd from forward until backward, parameters and buffers aside"
    return [*rows, ("saved_bytes", saved, "bytes", meaning)]


def _engine_rows(trace: Trace, sums: Totals) -> list[Row]:
    """The FLOPs under vLLM, where it serves the model and its kernels do other work."""
    if trace.training is not None or engine_gap(trace) is not None:
        return []
    flops = totals(engine_trace(trace)).flops
    if flops == sums.flops:
        return []
    return [("flops_vllm", flops, "FLOPs", f"under vLLM: {'; '.join(engine_notes(trace))}")]


def _kernel_coverage_rows(trace: Trace) -> list[Row]:
    """The number of kernels whose arithmetic has no formula, and their names."""
    uncounted = elementwise_work.kernels_without_formula(trace)
    if uncounted:
        names = ", ".join(f"{name} ×{number}" for name, number in uncounted.items())
        meaning = f"no formula: {names}"
    else:
        meaning = "the arithmetic of every kernel is counted"
    return [("kernels_not_counted", sum(uncounted.values()), "ATen ops", meaning)]


def _operator_type_rows(trace: Trace) -> list[Row]:
    types = operator_types(trace)
    return [
        ("operator_types", len(types), "types", "distinct operator types"),
        *((f"operators.{name}", number, "calls", "") for name, number in types.items()),
    ]


def _active_parameters_meaning(trace: Trace) -> str:
    """How many experts a token uses, and the routing that is assumed."""
    routings = [
        f"{routing.experts_per_token:g} of {routing.experts} experts"
        + (", of which the pass runs all" if routing.runs_all else "")
        for routing in expert_routings(trace)
    ]
    if not routings:
        return "active per token: all"
    return f"active per token: {' or '.join(routings)}, assuming balanced routing"


def _attention_meaning(attention: str | None) -> str:
    if attention == "eager":
        return "writes the full score matrix to memory"
    if attention:
        return "one fused operator, as on a GPU"
    return "the module declares no attention implementation"


def _cache_meaning(trace: Trace) -> str:
    if trace.training is not None:
        return "a training step keeps no cache"
    if not trace.cache:
        return "the model keeps no cache"
    return f"in {len(trace.cache)} tensors, after this pass"
