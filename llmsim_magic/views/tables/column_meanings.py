"""What each column of each table means, with its unit: the source of the column reference."""

from collections.abc import Iterable
from types import MappingProxyType

_WORK = {
    "flops": "FLOPs of matmul, convolution and attention; a multiply-add is two",
    "elementwise_ops": "elementwise and reduction operations, which `flops` does not include",
    "causal_skippable_flops": "part of `flops` above the causal diagonal, which a kernel may skip",
    "bytes_read": "least traffic in bytes: each input and each weight read once",
    "bytes_written": "least traffic in bytes: each output written once",
    "bytes_weights": "bytes moved that are parameters or buffers",
    "bytes_activations": "bytes moved between operators",
    "bytes_cache": "bytes moved of the KV cache or the recurrent state",
    "arithmetic_intensity": "FLOPs per byte moved",
}
_BAND = {
    "time_s": "predicted seconds",
    "time_low_s": "lower end of the 90 % band of `time_s`, in seconds",
    "time_high_s": "upper end of the 90 % band of `time_s`, in seconds",
    "binds": "what limits the time: compute, memory, launch or interconnect",
}
_PASSES = {  # of a training step
    "forward_s": "under train, seconds of forward, of all micro-batches",
    "recompute_s": "under train, seconds of what checkpointing computes again; NA without it",
    "backward_s": "under train, seconds of backward, of all micro-batches",
    "optimizer_s": "under train, seconds of the optimizer",
}
_MFU = (
    "under train, model FLOPs utilization: FLOPs of forward and backward, without what is computed "
    "again, over those of the dense peak in the step's dtype in that time"
)
_STEP_BYTES = {
    "peak_bytes": "most bytes that a steady training step allocates on each device",
    "total_bytes": "bytes needed on each device",
    "usable_bytes": "memory of a device that a runtime can use, in bytes",
}
_SHAPES = {
    "input_shapes": "shapes of the tensors read, positional before keyword",
    "output_shapes": "shapes of the tensors returned",
    "weight_shapes": "shapes of the module's own parameters",
    "dtype": "torch dtype of the first output, or of the first input if there is none",
}
_FEATURES = {
    "in_features": "attribute `in_features` of the module",
    "out_features": "attribute `out_features` of the module",
    "num_embeddings": "attribute `num_embeddings` of the module",
    "embedding_dim": "attribute `embedding_dim` of the module",
}
_WORKLOAD = {
    "phase": "prefill, decode, train, or forward for inputs of your own",
    "batch": "sequences in the batch; of a training step, in all its micro-batches",
    "context": "tokens read by a prefill or a training step, or already cached by a decode step",
}
_RUNTIME = {"runtime": "transformers (a plain call of the model) or vllm (an engine)"}
_EXECUTION = {
    **_RUNTIME,
    "launch": "eager (kernels started one by one) or graph (captured once as a CUDA graph)",
}
_ORDER = {"order": "position in execution order, from 0"}
_QUANTITY = {"quantity": "name of the quantity", "means": "explanation of the row"}

# Columns of the structural difference, one for each model.
_OF_EACH = {
    "path": "path of the module in the {} model, with its layers as ranges; NA if it has none",
    "type": "class of the module in the {} model",
    "layers": "how many identical modules the row stands for in the {} model; 1 outside of layers",
    "params": "parameters of its own in the {} model, of one layer; a shared one is counted at its "
    "first owner",
    "params_total": "parameters of the module and everything below it in the {} model, of one "
    "layer",
    "weight_shapes": "shapes of the module's own parameters in the {} model",
    "layer_indices": "indices of the layers, in the outermost list, that the row stands for in the "
    "{} model",
}
_DIFFERENCES = {
    "status": "same, changed, added (only the second model has it) or removed (only the first)",
    **{
        f"{name}_{which}": meaning.format(which)
        for name, meaning in _OF_EACH.items()
        for which in ("first", "second")
    },
    "change": "what differs in the module itself: class, name, number of layers, weights, "
    "attributes; `none` is what a model does not have",
}

_OPS = {
    **_ORDER,
    "path": "path of the module; of a function, the module that calls it",
    "op": "class of the module, or name of the function",
    "kind": "module or function",
    "layer": "index of the decoder or encoder layer; NA outside layers",
    **_SHAPES,
    "params": "parameters that this operator owns; a shared one is counted at its first owner",
    "depends_on": "`order` of each operator whose output this one reads",
    "source": "file and line of the call in the modelling code",
    **_WORK,
    **_FEATURES,
}
_PASS = {"pass": "of a training step: forward, recompute, backward or optimizer"}
_STEP = {
    **_PASS,
    "saved_bytes": "bytes that autograd keeps for this operator until backward, without parameters "
    "and buffers; a storage counts once, at the first operator that keeps it; NA for what is "
    "recomputed",
    "backward_of": "`order` of the operator whose gradients this one computes; NA outside of "
    "backward",
}
_PHASE_TIMES = {
    f"{phase}_{name}": f"{phase}: {meaning}"
    for phase in ("prefill", "decode", "train")
    for name, meaning in {
        "s": "predicted seconds; NA where the model does not fit",
        "low_s": "lower end of the 90 % band, in seconds",
        "high_s": "upper end of the 90 % band, in seconds",
        "tokens_per_s": "tokens per second",
        "tokens_per_s_low": "tokens per second at the slow end of the band",
        "tokens_per_s_high": "tokens per second at the fast end of the band",
        "binds": "what limits most of the time, and its share",
    }.items()
}

MEANINGS: MappingProxyType[str, dict[str, str]] = MappingProxyType(
    {
        "ops": {**_OPS, **_STEP},
        "modules": {
            "path": "path of the module; empty for the model itself",
            "type": "class of the module",
            "parent": "path of the parent; NA for the model itself",
            "depth": "levels below the model",
            "children": "number of direct children",
            "calls": "calls in this pass",
            "params": "parameters of its own; a shared one is counted at its first owner",
            "params_total": "parameters of the module and everything below it",
            "trainable": "parameters of its own with `requires_grad`",
            "tied_to": "name of the parameter that this module shares",
            **_SHAPES,
            "order_first": "`order` of its first operator; NA if it does not run",
            **_FEATURES,
            **_WORK,
        },
        "edges": {
            "source": "`order` of the operator that wrote the tensor",
            "target": "`order` of the operator that reads it",
            "shape": "shape of the tensor",
            "dtype": "torch dtype of the tensor",
            "through": "name of the cache tensor that carries it; in a training step also of a "
            "gradient or an optimizer's state, or `saved` for a tensor that autograd kept of "
            "forward; NA for a direct read",
            "source_operator": "path and function of the source",
            "target_operator": "path and function of the target",
        },
        "kernels": {
            "order": "position among the ATen ops of the pass, from 0",
            "op_order": "`order` of the operator that the kernel is part of",
            "kernel": "name of the ATen op",
            **_SHAPES,
            **_WORK,
            "is_view": "whether it only makes a view, which moves no data",
            **_PASS,
        },
        "summary": {**_QUANTITY, "value": "the quantity itself", "unit": "its unit"},
        "conditions": {
            "quantity": "what is limited: parameters, memory, a device that has to fit, or time",
            "holds": "whether the figure is within its limit",
            "value": "the figure itself",
            "limit": "the most that it may be",
            "unit": "the unit of both",
            "where": "workload, device and runtime of the figure",
            "detail": "the band of a time, or what would make a model fit; NA for the others",
        },
        "topological": {
            **_ORDER,
            "path": _OPS["path"],
            "op": _OPS["op"],
            **_PASS,
            "rank": "length of the longest chain of operators before it",
            "waits_for": "`order` of each operator whose output this one reads",
            "waits_for_operators": "the same as paths and function names",
            **_SHAPES,
        },
        "costs": {
            "op": "type of operator",
            "calls": "operators of this type",
            **_WORK,
            "flops_share": "fraction of the FLOPs of the pass",
            "bytes_share": "fraction of the bytes that the pass moves",
            **_BAND,
            "time_share": "fraction of the time of the pass",
            **_PASSES,
        },
        "layers": {
            "path": "path of the layer; NA in the last row, which sums everything outside layers",
            "layer": "index of the layer",
            "operators": "operators in the layer",
            "params": "parameters in the layer; a shared one is counted once",
            **_WORK,
            **_BAND,
            "share": "fraction of the time of the pass",
            **_PASSES,
        },
        "memory": {
            **_QUANTITY,
            **_RUNTIME,
            "bytes": "bytes on each device",
            "share": "fraction of the total; NA for what the total does not include",
        },
        "timeline": {
            "pass": "forward, backward with what it runs again, or optimizer",
            "path": "layers of a stack, or an operator outside of layers; empty for the optimizer",
            "layers": "number of layers; NA outside of layers",
            "peak_bytes": "most bytes that are allocated at once",
            "change_bytes": "bytes by which what is allocated grows, or shrinks",
            "saved_change_bytes": "of these, what is saved for backward",
            "gradients_change_bytes": "of these, gradients of parameters",
            "parameters_bytes": "parameters and buffers at the peak of the row",
            "gradients_bytes": "gradients then",
            "optimizer_bytes": "states of the optimizer then",
            "saved_bytes": "what is saved for backward then",
            "temporaries_bytes": "all other tensors then",
        },
        "latency": {
            "device": "name of the device",
            **_EXECUTION,
            **_WORKLOAD,
            **_BAND,
            "tokens_per_s": "tokens read per second on all devices; in decode one a sequence",
            "tokens_per_s_low": "tokens per second at the slow end of the band",
            "tokens_per_s_high": "tokens per second at the fast end of the band",
            **_PASSES,
            "mfu": _MFU,
            "binds": "what limits most of the time, and its share",
            "measured": "whether this device was measured, or only related ones",
            "fits": "whether the device holds the pass; the time of one that it does not is "
            "hypothetical",
        },
        "times": {
            **_ORDER,
            "path": _OPS["path"],
            "op": _OPS["op"],
            "pass": "under train, forward, recompute, backward or optimizer",
            **_EXECUTION,
            "class": "class of kernel whose calibration gives the time",
            **_BAND,
            "share": "fraction of the time of the pass",
            "flops": "FLOPs of its kernels",
            "bytes": "bytes moved by its kernels",
            "arithmetic_intensity": "FLOPs per byte moved",
            "of_peak": "fraction of the device's peak FLOP/s that is reached",
            "of_bandwidth": "fraction of the device's memory bandwidth that is reached",
        },
        "alternatives": {
            "device": "name of the device",
            "change": "what is changed of the training step that was asked for",
            "launch": _EXECUTION["launch"],
            "devices": "how many of them run the step together",
            "fits": "whether each device holds its part",
            "refusal": "why a device does not run it, whatever its memory",
            **_STEP_BYTES,
            **_BAND,
            "tokens_per_s": "tokens per second that all devices read together",
            "tokens_per_s_per_device": "tokens per second over the devices; of what fits, the most "
            "comes first",
            "mfu": _MFU,
        },
        "sizing": {
            "device": "name of the device",
            **_EXECUTION,
            "devices": "how many of them run it together",
            "fits": "whether each device holds its part",
            "refusal": "why a device does not run it, whatever its memory",
            "usable_bytes": "memory of a device that a runtime can use, in bytes",
            "total_bytes": "bytes needed on each device",
            "weights_bytes": "bytes of the weights",
            "cache_bytes": "bytes of the cache",
            "activations_bytes": "bytes of the activations at their peak",
            "context_bytes": "bytes that drivers and libraries hold outside the allocator",
            "binds": "the part that exceeds the memory, where the model does not fit",
            "peak_bytes": _STEP_BYTES["peak_bytes"],
            "largest_micro_batch": "under train, most sequences of a micro-batch that fit",
            "longest_context": "under train, most tokens of each sequence that fit",
            "devices_with_zero": "under train, fewest devices, a power of two, that hold the step "
            "by data parallelism where one does not",
            "zero": "under train, lowest stage of ZeRO that does so on these devices",
            "train_mfu": _MFU,
            "makes_it_fit": "changes that would make it fit, in words",
            "fits_with_tp": "smallest tensor parallelism that fits",
            "fits_with_batch": "largest batch that fits",
            "fits_with_context": "largest context that fits",
            "fits_with_weight_dtype": "widest weight dtype that fits",
            **_PHASE_TIMES,
        },
        "workloads": {
            **_WORKLOAD,
            "operators": "operators of the pass",
            **_WORK,
            "cache_bytes": "bytes of the cache after the pass",
            "peak_bytes": f"under train, {_STEP_BYTES['peak_bytes']}",
            **_EXECUTION,
            **_BAND,
            "tokens_per_s": "tokens per second that a pass reads",
            "error": "why the workload could not be traced; NA for the others",
        },
        "differences": _DIFFERENCES,
        "sweep_ops": {**_WORKLOAD, **_OPS, **_STEP},
        "shapes": {
            "path": _OPS["path"],
            "op": _OPS["op"],
            **_PASS,
            "call": "repetition of this operator at its path, from 0",
            "prefill 1×128": "input shapes → output shapes; one column for each workload",
            "symbolic": "the shapes as formulas of B (batch), S (tokens read) and C (cached)",
            "changes": "whether the shapes differ between workloads",
        },
    }
)


def meaning(table: str, column: str) -> str | None:
    """The meaning of a column, or None where nobody wrote it down.

    Args:
        table: Name of the table, which is also the name of its CSV file.
        column: Name of the column or of the index.
    """
    return MEANINGS.get(table, {}).get(column)


def missing(table: str, columns: Iterable[str]) -> list[str]:
    """The columns of a table that have no meaning here."""
    return [column for column in columns if meaning(table, column) is None]
