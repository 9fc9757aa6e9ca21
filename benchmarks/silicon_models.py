"""Models with random weights on a device: their times, their memory and their kernels.

Rows are dictionaries for JSON. Seconds are medians; `_min` and `_max` stand beside them. `weights`
is what was allocated before, the keys and values that a decode step reads among it; `peak_above` is
what the pass adds at its peak. The caller holds on to the old keys and values, as `generate` does
not.
"""

import gc
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial

import torch
from torch.profiler import ProfilerActivity

from benchmarks.silicon_rows import Row
from llmsim_magic.capture.inputs.context_length import longest_context
from llmsim_magic.capture.measure.model_passes import build, repeatable_pass
from llmsim_magic.capture.measure.timers import Run, in_graph, seconds_of, synchronize, timings
from llmsim_magic.capture.modalities.signature import HuggingFaceModel
from llmsim_magic.catalog.models import Entry
from llmsim_magic.records.errors import describe
from llmsim_magic.records.trace.workload import Workload

WEIGHTS_SHARE = 0.8  # of the free memory; the rest is for the cache and activations
PROFILED_KERNELS = 60
LONG_S = 0.4  # a pass as long is timed three times
SLOW_S = 2.0  # a pass as long, such as a scan in Python, is not captured
_HEADS = ("ForCausalLM", "LMHeadModel", "ForMaskedLM")

LOADS = (
    *(
        Workload("prefill", *sizes)
        for sizes in ((1, 128), (1, 1024), (4, 2048), (16, 512), (1, 8192))
    ),
    *(Workload("decode", *sizes) for sizes in ((1, 128), (16, 1024), (64, 512), (1, 8192))),
)
PROFILED = Workload("prefill", 1, 1024)


def fits(load: Workload, positions: int | None) -> bool:
    """Whether a model with so many positions reads a load; a decode step adds a token."""
    tokens = load.context + (load.phase == "decode")
    return positions is None or tokens <= positions


def fitting(entries: Mapping[str, Entry], free_bytes: int) -> list[str]:
    """The language models in 16 bits that fit into a share of the free memory.

    One of each architecture comes first, and small ones take turns with large ones, so that a run
    that is out of time has seen both.
    """
    families: dict[str, list[Entry]] = {}
    for entry in sorted(entries.values(), key=lambda entry: entry.params):
        heads = entry.config.get("architectures") or ("",)
        is_plain = heads[0].endswith(_HEADS) and "quantization_config" not in entry.config
        if is_plain and 2 * entry.params <= WEIGHTS_SHARE * free_bytes:
            families.setdefault(entry.config["model_type"], []).append(entry)
    names = []
    while families:
        turn = sorted((each.pop() for each in families.values()), key=lambda each: each.params)
        names += [turn.pop(0 if place % 2 else -1).name for place in range(len(turn))]
        families = {kind: rest for kind, rest in families.items() if rest}
    return names


def positions(model: HuggingFaceModel) -> int | None:
    """The number of tokens that a model has positions for; beyond it an index is out of range."""
    declared = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(filter(None, (declared, longest_context(model))), default=None)


def measured(
    name: str, device: torch.device, loads: Collection[Workload], has_time: Callable[[], bool]
) -> Iterator[Row]:
    """A row for each load that the model reads, and a profile; what fails is a row with `error`."""
    _empty(device)  # of the model before
    try:
        model = build(name, device, torch.bfloat16)
    except Exception as error:  # transformers may raise anything
        yield {"kind": "infer", "model": name, "error": describe(error)}
        return
    limit = positions(model)
    for load in loads:
        if not fits(load, limit) or (load.phase == "decode" and not model.can_generate()):
            continue
        if not has_time():
            return
        try:
            yield {"kind": "infer", "model": name, **infer(model, load, device)}
            if load == PROFILED:
                yield {"kind": "profile", "model": name, **profile(model, load, device)}
        except Exception as error:
            yield {"kind": "infer", "model": name, **_sizes(load), "error": describe(error)}
        _empty(device)


@torch.no_grad()
def infer(model: HuggingFaceModel, load: Workload, device: torch.device) -> Row:
    """Time and memory of one pass, eager, and in a CUDA graph if it can be captured."""
    _empty(device)
    run, cache_bytes = repeatable_pass(model, load, device)
    run()  # allocates the workspaces of libraries, which stay
    memory = _memory(run, device)
    once = seconds_of(run, device)
    time_it = partial(timings, warmups=1, least=3, most=3) if once > LONG_S else timings
    eager = time_it(run, device)
    row = _sizes(load) | {
        "eager_s": eager.median,
        "eager_min": eager.least,
        "eager_max": eager.most,
        "n": len(eager.seconds),
        **memory,
        "cache_bytes": cache_bytes,
    }
    if once > SLOW_S:
        return row | {"graph_error": f"not captured: a pass takes {once:.1f} s"}
    try:
        graph = time_it(in_graph(run, device), device)
    except RuntimeError as error:  # it waits for a value, or has no memory for a second copy
        synchronize(device)
        return row | {"graph_error": describe(error)}
    return row | {"graph_s": graph.median, "graph_min": graph.least, "graph_max": graph.most}


@torch.no_grad()
def profile(model: HuggingFaceModel, load: Workload, device: torch.device) -> Row:
    """The kernels of one eager pass by operator and shapes, those that take longest first."""
    run, _ = repeatable_pass(model, load, device)
    run()
    synchronize(device)
    is_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with torch.profiler.profile(activities=activities, record_shapes=True) as found:
        run()
        synchronize(device)
    spent = "self_device_time_total" if is_cuda else "self_cpu_time_total"
    rows = [
        {
            "kernel": event.key,
            "input_shapes": str(event.input_shapes)[:160],
            "count": event.count,
            "device_us": round(getattr(event, spent), 1),
        }
        for event in found.key_averages(group_by_input_shape=True)
        if event.key.startswith("aten") and getattr(event, spent) > 0
    ]
    rows.sort(key=lambda row: -row["device_us"])
    return {"batch": load.batch, "context": load.context, "rows": rows[:PROFILED_KERNELS]}


def _sizes(load: Workload) -> Row:
    return {"phase": load.phase, "batch": load.batch, "context": load.context}


def _memory(run: Run, device: torch.device) -> Row:
    """Bytes before a run, what it adds at its peak, and what the allocator then has reserved."""
    if device.type != "cuda":
        return {}
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    output = run()
    synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    del output
    reserved = torch.cuda.max_memory_reserved(device)
    return {"weights": before, "peak_above": peak - before, "peak_reserved": reserved}


def _empty(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
