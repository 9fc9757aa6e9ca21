"""The public functions trace() and sweep()."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from llmsim_magic.records.errors import InvalidValue, is_instance
from llmsim_magic.records.trace.training import DEFAULT_OPTIMIZER
from llmsim_magic.records.trace.workload import (
    DEFAULT_CONTEXT,
    PHASES,
    TRAIN,
    IsCancelled,
    Workload,
    never_cancelled,
)
from llmsim_magic.records.validation import as_nonempty_tuple, as_tuple, require_callable
from llmsim_magic.simulate.answer import answer, answer_with_inputs, timed_sweep, trace_workloads
from llmsim_magic.simulate.models.recipes import Progress, model_recipe, no_progress
from llmsim_magic.simulate.option_effect import require_effect_of_keywords
from llmsim_magic.simulate.options import request_of
from llmsim_magic.simulate.report import Report
from llmsim_magic.simulate.request import ALL, SWEEP_BATCHES, Request
from llmsim_magic.simulate.sweeps.sweep import Sweep


def trace(
    model: Any,
    *,
    phase: str = "prefill",
    batch: int = 1,
    context: int | None = None,
    dtype: str | None = None,
    attn: str | None = None,
    base: bool = False,
    inputs: Any = None,
    loss: Callable[[Any], Any] | None = None,
    trust_remote_code: bool = False,
    refresh: bool = False,
    replay: bool = True,
    hardware: str | Iterable[str] = (),
    weight_dtype: str | None = None,
    kv_dtype: str | None = None,
    runtime: str | None = None,
    launch: str | None = None,
    tp: int = 1,
    pp: int = 1,
    ep: int = 1,
    optimizer: str = DEFAULT_OPTIMIZER,
    precision: str | None = None,
    checkpointing: bool = False,
    lora: str | None = None,
    qlora: bool = False,
    accumulate: int = 1,
    packed: bool = False,
    zero: int = 0,
    dp: int = 1,
    progress: Progress = no_progress,
) -> Report:
    """Trace one pass, or one training step, of a model without its weights.

    Args:
        model: a hub id or address, a folder or `config.json`, a `PretrainedConfig` or `nn.Module`.
        phase: `prefill` reads `context` tokens; `decode` reads one, with `context` in the cache;
            `train` is one optimizer step: forward, backward and the optimizer.
        batch: number of sequences.
        context: tokens per sequence; 128, or fewer if the model has fewer positions.
        dtype: `bfloat16`, `float16` or `float32`; by default the config's.
        attn: `sdpa` (one fused kernel) or `eager` (separate matmuls and softmax).
        base: leave out the head, as `AutoModel` does.
        inputs: of any module: a tensor, a tuple or a dict, instead of batch and context; a pass of
            the module, or with `phase="train"` a step.
        loss: of a training step, a function of the model's output that returns a scalar tensor; by
            default the model's own loss.
        trust_remote_code: run code from the model's repository.
        refresh: read the config from the hub, not from the built-in catalogue or the local cache,
            and answer from no record that is kept.
        replay: run identical layers only once; the result is the same.
        hardware: devices to predict time and memory for, `local` for this machine's GPU (its CPU
            if it has none), `local-cpu` for its CPU, or `all`.
        weight_dtype: dtype of the stored weights, such as `int4`; by default the model's.
        kv_dtype: dtype of the stored keys and values; by default the model's.
        runtime: what executes the model: `transformers` (a plain call of it), `vllm` (an engine)
            or `all`; by default each, and without hardware the memory under transformers.
        launch: `eager` (kernels started one by one) or `graph` (captured once as a CUDA graph);
            by default each that the runtime has.
        tp: devices that share each layer (tensor parallel); one rank is traced.
        pp: stages that share the layers (pipeline parallel).
        ep: devices that share the experts (expert parallel).
        optimizer: of a training step: `adamw`, `sgd`, `adafactor`, `adamw_8bit`, `lion`, `muon`, ….
        precision: of a training step: `bf16`, `fp32`, or `amp` (weights in float32 under autocast
            to bfloat16); by default the dtype of the config.
        checkpointing: run each layer's forward again in backward instead of keeping its tensors.
        lora: train a LoRA adapter alone, such as `r=16`, on the layers that peft adapts by
            default (often `q_proj` and `v_proj`), or `r=16,targets=all-linear`.
        qlora: keep the linear layers of the base model in 4 bits; without `lora`, an adapter
            of `r=16,targets=all-linear` is trained.
        accumulate: micro-batches per step, each of `batch / accumulate` sequences.
        packed: pack the sequences of a batch into one row.
        zero: stage of ZeRO, whose states (1), gradients (2) and parameters (3) `dp` devices share.
        dp: devices that train on different sequences (data parallel); `batch` is that of each.
        progress: called with a message before each step.

    Returns:
        The report. Its tables are DataFrames; the report and its graphs display themselves.

    Raises:
        LlmsimError: one line that says what is wrong, what is legal and what to do.

    >>> import llmsim_magic as llmsim
    >>> llmsim.trace("Qwen/Qwen3-0.6B", phase="decode").ops.loc[18, "input_shapes"]
    [(1, 1, 1024)]
    """
    request = _trace_request(model, locals())
    require_callable("progress", progress, "that takes a message")
    if inputs is not None:
        return answer_with_inputs(request, inputs, progress, loss=loss)
    return answer(request, progress, loss=loss, with_slow=False)


def sweep(
    model: Any,
    *,
    batch: int | Iterable[int] = SWEEP_BATCHES,
    context: int | Iterable[int] | None = None,
    phase: str | Iterable[str] = PHASES,
    hardware: str | Iterable[str] = (),
    launch: str | None = None,
    dtype: str | None = None,
    attn: str | None = None,
    base: bool = False,
    trust_remote_code: bool = False,
    refresh: bool = False,
    replay: bool = True,
    optimizer: str = DEFAULT_OPTIMIZER,
    precision: str | None = None,
    checkpointing: bool = False,
    lora: str | None = None,
    qlora: bool = False,
    accumulate: int = 1,
    packed: bool = False,
    zero: int = 0,
    dp: int = 1,
    sure: bool = False,
    executor: Executor | None = None,
    cancelled: IsCancelled = never_cancelled,
    progress: Progress = no_progress,
) -> Sweep:
    """Trace a model under every combination of phase, batch and context.

    Args:
        model: a hub id, a folder or `config.json`, a config or a live module, as in `trace`.
        batch: batch sizes, in sequences.
        context: context lengths in tokens; by default 1 and 128, or the length of a learned
            position table that is shorter.
        phase: `prefill`, `decode`, `both` or `train`.
        hardware: one device of the catalogue, whose times `totals` then has.
        launch: as in `trace`; by default the first that is predicted on the device.
        dtype: as in `trace`.
        attn: as in `trace`.
        base: as in `trace`.
        trust_remote_code: as in `trace`.
        refresh: as in `trace`.
        replay: as in `trace`.
        optimizer: as in `trace`.
        precision: as in `trace`.
        checkpointing: as in `trace`.
        lora: as in `trace`.
        qlora: as in `trace`.
        accumulate: as in `trace`.
        packed: as in `trace`.
        zero: as in `trace`.
        dp: as in `trace`.
        sure: confirm a sweep of more than 1,000 workloads.
        executor: where to trace the workloads: an executor of `concurrent.futures` or
            `dask.distributed`. Workloads of a lost worker are traced in this process.
        cancelled: called between workloads; returns True to stop. Finished workloads are kept,
            as after an interrupt.
        progress: called with a message before each step.

    Returns:
        The sweep. Its `notes` name a phase that the model does not have (decode of an encoder);
        a workload that fails is a row of `totals` with the reason.

    Raises:
        LlmsimError: no workload can be traced, there are more than 1,000 and `sure` is False, or no
            time is predicted on the device.

    >>> import llmsim_magic as llmsim
    >>> sweep = llmsim.sweep("Qwen/Qwen3-0.6B", batch=[1], context=[128])
    >>> sweep.totals[["phase", "cache_bytes"]].values.tolist()
    [['prefill', 14680064], ['decode', 14794752]]
    """
    request = _sweep_request(model, locals())
    if executor is not None and not hasattr(type(executor), "submit"):
        raise InvalidValue.must_be("executor", executor, "a concurrent.futures.Executor")
    require_callable("cancelled", cancelled, "that returns whether to stop")
    require_callable("progress", progress, "that takes a message")
    recipe = model_recipe(model, request.build, progress, cancelled)
    found = trace_workloads(recipe, request, progress, cancelled, executor)
    return timed_sweep(found, request)


def _trace_request(model: Any, arguments: Mapping[str, Any]) -> Request:
    """The request of a call of `trace` with these arguments."""
    values = dict(arguments)
    context = values["context"]
    workload = Workload(
        values["phase"], values["batch"], DEFAULT_CONTEXT if context is None else context
    )
    if arguments["inputs"] is not None:
        _require_inputs_alone(workload, context, values)
    _require_loss_of_step(arguments["loss"], workload.phase)
    values |= {
        "phase": (workload.phase,),
        "batch": (workload.batch,),
        "context": () if context is None else (workload.context,),
        "hardware": as_tuple("hardware", values["hardware"]),
    }
    request = request_of(model, ("summary",), values)
    require_effect_of_keywords(request)
    return request


def _require_inputs_alone(workload: Workload, context: Any, values: Mapping[str, Any]) -> None:
    """Raise `InvalidValue` if inputs are given beside what would choose others."""
    of_pass = replace(workload, phase="prefill") if workload.phase == TRAIN else workload
    if context is not None or of_pass != Workload():
        raise InvalidValue(
            "inputs cannot be combined with batch, context or a phase other than train"
        )
    if values["accumulate"] != 1 or values["packed"]:
        raise InvalidValue(
            "inputs cannot be combined with accumulate or packed: give those of one micro-batch"
        )


def _require_loss_of_step(loss: Any, phase: str) -> None:
    """Raise `InvalidValue` unless a loss is a function, and of a training step."""
    if loss is None:
        return
    require_callable("loss", loss, "of the output that returns a scalar tensor")
    if phase != TRAIN:
        raise InvalidValue("loss has no effect without phase train; add it, or leave loss out")


def _sweep_request(model: Any, arguments: Mapping[str, Any]) -> Request:
    """The request of a call of `sweep` with these arguments."""
    values = dict(arguments)
    phase, context = values["phase"], values["context"]
    is_both = is_instance(phase, str) and phase == "both"
    values |= {
        "phase": PHASES if is_both else as_nonempty_tuple("phase", phase),
        "batch": as_nonempty_tuple("batch", values["batch"]),
        "context": () if context is None else as_nonempty_tuple("context", context),
        "hardware": as_tuple("hardware", values["hardware"]),
    }
    request = request_of(model, ("multi-config",), values)
    names = request.deployment.hardware
    if ALL in names or len(names) > 1:
        raise InvalidValue.must_be("hardware", ", ".join(names), "one device for a sweep")
    if not names and request.deployment.launch is not None:
        raise InvalidValue("launch has no effect without hardware; add it, or leave launch out")
    return request
