"""What is timed: this project, its peers, and a bare forward pass as the baseline.

Each function prepares a contender in its own process and returns what is to be timed. Torch and
the peers are imported there alone.
"""

import importlib
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from benchmarks.timing import Contender, Run, peak_gb, timed

if TYPE_CHECKING:
    import pandas as pd

    from llmsim_magic.capture.models.meta_model import MetaModel

SMALL = "Qwen/Qwen3-0.6B"
DEEP = "meta-llama/Llama-3.1-405B"
LAYERS = (2, 126)
HOOKS = "hooks on leaf modules, real weights, one thread"
KEPT = "ours, 8 workloads, asked before"
FORMULAS_KNOWN = "ours, 70 workloads, formulas known"
PHASES = ("prefill", "decode")
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CONTEXTS = (1, 128, 1024, 8192, 32768)
SIZES = {len(BATCHES[:n]) * len(CONTEXTS) * len(PHASES): BATCHES[:n] for n in (1, 2, 4, 7)}


def of_prefill() -> Iterator[Contender]:
    """Contenders of one prefill of the small model, already built."""
    prefill = (("prefill",), (1,), (128,))
    yield Contender("ours", "`run`, the record and its dataflow", partial(our_record, SMALL))
    yield Contender("ours, front door", "`llmsim.trace`", our_front_door)
    yield Contender("bare, one layer", "`model(...)` on meta", partial(bare_forward, 1))
    yield Contender("bare", "`model(...)` on meta", bare_forward)
    yield Contender("FlopCounterMode", "on meta", flop_counter)
    yield Contender("torchinfo", "`summary`, every level, on meta", torchinfo, "torchinfo")
    yield Contender("torchview", "`draw_graph`, depth 5, on meta", torchview, "torchview")
    yield Contender("torchlens", "`trace`, structure only, on meta", torchlens, "torchlens")
    yield Contender("straightforward", HOOKS, partial(straightforward, *prefill))


def of_sweeps() -> Iterator[Contender]:
    """Contenders of several workloads of the small model, tables included."""
    eight = ((1, 16), (1, 128))
    tables = "`llmsim.sweep`, `.ops`, `.shapes`"
    yield Contender("ours, 8 workloads", tables, partial(our_sweep, *eight))
    how = f"{tables}; records on disk, none in the session"
    yield Contender(KEPT, how, partial(our_kept_sweep, *eight))
    yield Contender("straightforward, 8 workloads", HOOKS, partial(straightforward, PHASES, *eight))
    for size, batches in SIZES.items():
        yield Contender(f"ours, {size} workloads", tables, partial(our_sweep, batches, CONTEXTS))
    known = partial(our_sweep_by_formulas, BATCHES, CONTEXTS)
    yield Contender(FORMULAS_KNOWN, f"{tables}; the session has the formulas", known)


def of_depth() -> Iterator[Contender]:
    """The deep model and its shallow twin: building, and each phase once built."""
    for layers in LAYERS:
        yield Contender(f"build, {layers} layers", "from the config", partial(our_build, layers))
        for phase in PHASES:
            prepare = partial(our_trace, DEEP, phase, layers)
            yield Contender(f"{phase}, {layers} layers", "`run`, once built", prepare)


def config_of(name: str, layers: int | None = None) -> Any:
    """The catalogue's config, with so many layers where that is given."""
    from llmsim_magic.capture.configs.resolve import find_config, load_config

    facts = find_config(name)
    keys = facts.keys if layers is None else facts.keys | {"num_hidden_layers": layers}
    return load_config(replace(facts, keys=keys)).config


def build(name: str, layers: int | None = None) -> "MetaModel":
    from llmsim_magic.simulate.models.building import build_model
    from llmsim_magic.simulate.models.recipes import model_recipe
    from llmsim_magic.simulate.request import Build

    return build_model(model_recipe(config_of(name, layers), Build()))


def read(weightless: "MetaModel", phase: str = "prefill") -> object:
    """Run one workload and take all that its record holds."""
    from llmsim_magic.analyses.graph.dataflow import edges
    from llmsim_magic.capture.run import run
    from llmsim_magic.records.trace.workload import Workload

    trace = run(weightless, Workload(phase))
    return trace.operators, trace.kernels, edges(trace)


def our_record(name: str, phase: str = "prefill", layers: int | None = None) -> Run:
    return partial(read, build(name, layers), phase)


def our_trace(name: str, phase: str, layers: int) -> Run:
    from llmsim_magic.capture.run import run
    from llmsim_magic.records.trace.workload import Workload

    return partial(run, build(name, layers), Workload(phase))


def our_build(layers: int) -> Run:
    import llmsim_magic

    def run() -> object:
        llmsim_magic.forget()
        return build(DEEP, layers)

    return run


def our_front_door() -> Run:
    import llmsim_magic

    return partial(llmsim_magic.trace, SMALL)


def our_sweep(batches: tuple[int, ...], contexts: tuple[int, ...]) -> Run:
    import llmsim_magic

    def run() -> object:
        sweep = llmsim_magic.sweep(SMALL, batch=batches, context=contexts)
        return sweep.ops, sweep.shapes

    return run


def our_kept_sweep(batches: tuple[int, ...], contexts: tuple[int, ...]) -> Run:
    """A sweep that was asked before, by another process."""
    os.environ["LLMSIM_CACHE"] = tempfile.mkdtemp()
    return our_sweep(batches, contexts)


def our_sweep_by_formulas(batches: tuple[int, ...], contexts: tuple[int, ...]) -> Run:
    """A sweep of a model whose formulas are known, and none of its workloads."""
    from llmsim_magic.records.trace.workload import Workload
    from llmsim_magic.simulate.cache import session_cache
    from llmsim_magic.simulate.models.recipes import model_recipe
    from llmsim_magic.simulate.models.workloads import question_of, symbolic_trace
    from llmsim_magic.simulate.request import Build

    sweep = our_sweep(batches, contexts)
    sweep()
    recipe = model_recipe(SMALL, Build())
    questions = [question_of(Workload(phase), True) for phase in PHASES]
    known = [(each.kind, symbolic_trace(recipe, each)) for each in questions]

    def run() -> object:
        for kind, symbolic in known:
            assert symbolic is not None
            session_cache.keep_symbolic(recipe.owner, kind, symbolic)
        return sweep()

    return run


def on_meta(name: str, layers: int | None = None) -> tuple[Any, dict[str, Any]]:
    """A model on `meta` and the keywords of one prefill."""
    import torch

    ids = torch.zeros(1, 128, dtype=torch.long, device="meta")
    return build(name, layers).module, {"input_ids": ids}


def bare_forward(layers: int | None = None) -> Run:
    import torch

    model, keywords = on_meta(SMALL, layers)

    def run() -> object:
        with torch.no_grad():
            return model(**keywords)

    return run


def torchinfo() -> Run:
    from torchinfo import summary

    model, keywords = on_meta(SMALL)
    return partial(summary, model, input_data=keywords, device="meta", depth=9, verbose=0)


def torchview() -> Run:
    from torchview import draw_graph

    model, keywords = on_meta(SMALL)
    return partial(draw_graph, model, input_data=keywords, device="meta", depth=5)


def torchlens() -> Run:
    """On meta it traces structure only, and wants every buffer there as well."""
    from torchlens import trace
    from torchlens.options import CaptureOptions

    model, keywords = on_meta(SMALL)
    options = CaptureOptions(structure_only=True, inference_only=True)
    return partial(trace, model.to("meta"), None, keywords, capture=options)


def flop_counter() -> Run:
    from torch.utils.flop_counter import FlopCounterMode

    forward = bare_forward()

    def run() -> object:
        with FlopCounterMode(display=False) as counter:
            forward()
        return counter.get_total_flops()

    return run


def straightforward(
    phases: tuple[str, ...], batches: tuple[int, ...], contexts: tuple[int, ...]
) -> Run:
    """Real random weights in the config's dtype, one forward for each workload.

    It has one thread, as all others have: several of them, on a machine that does other work as
    well, take ten times as long. Decode is one token without a cache, less work than a real step.
    """
    import pandas as pd
    import torch
    import transformers

    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_config(config_of(SMALL)).eval()

    def run() -> object:
        tables = []
        for phase, batch, context in product(phases, batches, contexts):
            count = context if phase == "prefill" else 1
            table = hooked(model, torch.zeros(batch, count, dtype=torch.long))
            tables.append(table.assign(phase=phase, batch=batch, context=context))
        return pd.concat(tables)

    return run


def hooked(model: Any, ids: Any) -> "pd.DataFrame":
    """What forward hooks on the leaf modules see, a row for each call."""
    import pandas as pd
    import torch

    rows = []

    def note(path: str, module: Any, args: Any, output: Any) -> None:
        count = sum(parameter.numel() for parameter in module.parameters())
        rows.append((path, type(module).__name__, shapes(args), shapes(output), count))

    hooks = [
        module.register_forward_hook(partial(note, path))
        for path, module in model.named_modules()
        if next(module.children(), None) is None
    ]
    with torch.no_grad():
        model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    return pd.DataFrame(rows, columns=["path", "module", "input_shapes", "output_shapes", "params"])


def shapes(value: Any) -> list[tuple[int, ...]]:
    values = value if isinstance(value, tuple) else (value,)
    return [tuple(each.shape) for each in values if hasattr(each, "shape")]


def large(name: str) -> dict[str, float]:
    """In a fresh process: seconds to build and to trace, and the peak above the imports."""
    config = config_of(name)
    importlib.import_module("llmsim_magic.capture.run")
    importlib.import_module(type(config).__module__.replace("configuration_", "modeling_"))
    imports_gb = peak_gb()
    start = time.perf_counter()
    weightless = build(name)
    build_s = time.perf_counter() - start
    return {
        "build": build_s,
        "cold": timed(partial(read, weightless)),
        "warm": timed(partial(read, weightless)),
        "memory": peak_gb() - imports_gb,
    }
