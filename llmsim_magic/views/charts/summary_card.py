"""The card of a pass: the model, its size, its work and its structure at a glance."""

from collections.abc import Iterator, Sequence
from operator import attrgetter

from llmsim_magic.analyses.cost.mixture_of_experts import expert_routings
from llmsim_magic.analyses.cost.operator_costs import Totals, operator_types, totals
from llmsim_magic.analyses.cost.parameter_dtypes import parameter_dtypes
from llmsim_magic.analyses.cost.step_passes import pass_costs, saved_bytes
from llmsim_magic.analyses.graph.layer_folding import LayerGroup, identical_layers
from llmsim_magic.analyses.kernels import elementwise_work
from llmsim_magic.analyses.memory.memory import Memory
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views import units
from llmsim_magic.views.charts.chart import Card, Fact

_MOST_TYPES = 5
Facts = Iterator[Fact]


def summary_card(trace: Trace, memory: Memory | None) -> Card:
    """What a pass is of, how large the model is, what the pass does and what it takes.

    Args:
        trace: the pass.
        memory: the memory under transformers; None if it cannot be predicted.
    """
    sums = totals(trace)
    is_one = trace.ranks == 1
    what = "step" if trace.training is not None else "pass"
    return Card(
        (
            ("Model", tuple(_model(trace))),
            (
                "Parameters per device" if trace.has_shards else "Parameters",
                tuple(_parameters(trace, sums)),
            ),
            (
                f"Memory {'under' if is_one else 'per device,'} transformers",
                () if memory is None else tuple(_memory(memory, sums)),
            ),
            (f"Work {f'of the {what}' if is_one else 'per device'}", tuple(_work(trace, sums))),
            ("Structure", tuple(_structure(trace, sums))),
        )
    )


def _model(trace: Trace) -> Facts:
    model, workload = trace.model, trace.workload
    yield Fact("model", model.name, meaning=f"config from: {model.origin}")
    yield Fact("class", model.class_name, meaning=f"head: {model.head}")
    yield Fact("workload", str(workload))
    if trace.training is not None:
        yield Fact("training", str(trace.training))
    if trace.ranks > 1:
        yield Fact("devices", units.count(trace.ranks), meaning=trace.layout)
    yield Fact("dtype", parameter_dtypes(trace))
    if model.attention:
        yield Fact("attention", model.attention)


def _parameters(trace: Trace, sums: Totals) -> Facts:
    yield _count("total", sums.parameters)
    routed = [
        f"{routing.experts_per_token:g} of {routing.experts} experts"
        for routing in expert_routings(trace)
    ]
    meaning = " or ".join(routed) if routed else "all"
    yield _count("active per token", sums.active, meaning)
    if sums.trainable != sums.parameters:
        yield _count("trainable", sums.trainable)
    yield _nbytes("bytes", sums.parameter_bytes)


def _memory(memory: Memory, sums: Totals) -> Facts:
    if memory.step is not None:
        yield _nbytes("peak of a step", memory.total, f"in {memory.step.place}")
        for name, nbytes in memory.step.alive._asdict().items():
            if nbytes:
                yield _nbytes(name, nbytes, f"{units.share(nbytes / memory.total)} of the peak")
        return
    yield _nbytes("peak allocated", memory.total)
    stored = "" if memory.weights == sums.parameter_bytes else "as they are stored"
    yield _nbytes("weights and buffers", memory.weights + memory.buffers, stored)
    yield _nbytes("cache", memory.cache)
    yield _nbytes("peak activations", memory.activations)


def _work(trace: Trace, sums: Totals) -> Facts:
    yield Fact("FLOPs", units.si(sums.flops), f"{sums.flops:,}")
    if trace.training is not None:
        for cost in filter(attrgetter("flops"), pass_costs(trace)):
            yield Fact(f"FLOPs of {cost.part}", units.si(cost.flops), f"{cost.flops:,}")
    if sums.causal_skippable_flops:
        skipped = sums.causal_skippable_flops
        meaning = f"{units.si(skipped)} above the causal diagonal"
        yield Fact("of these skippable", units.share(skipped / sums.flops), f"{skipped:,}", meaning)
    elementwise = sums.elementwise_ops
    yield Fact("elementwise operations", units.si(elementwise), f"{elementwise:,}")
    yield _nbytes("bytes read", sums.bytes_read, "at least")
    yield _nbytes("bytes written", sums.bytes_written, "at least")
    if sums.arithmetic_intensity is not None:
        intensity = sums.arithmetic_intensity
        yield Fact("FLOPs per byte", units.three_digits(intensity), f"{intensity:.9g}")
    if trace.cache:
        yield _nbytes("cache after the pass", sums.cache_bytes)
    if trace.training is not None:
        saved = sum(kept or 0 for kept in saved_bytes(trace))
        yield _nbytes("saved for backward", saved, "by autograd")


def _structure(trace: Trace, sums: Totals) -> Facts:
    groups = identical_layers(trace)
    if groups:
        numbers = list(_layers_by_stack(groups))
        shown = ", ".join(numbers[:3]) + (f" and {len(numbers) - 3} more" if numbers[3:] else "")
        yield Fact("layers", units.count(sum(len(g.indices) for g in groups)), meaning=shown)
    yield Fact("modules", units.count(len(trace.modules)))
    types = operator_types(trace)
    largest = sorted(types, key=lambda name: -types[name])[:_MOST_TYPES]
    listed = ", ".join(f"{types[name]} {name}" for name in largest)
    if len(types) > len(largest):
        listed += f" and {len(types) - len(largest)} more types"
    yield Fact("operators", units.count(sums.operators), meaning=listed)
    yield Fact("ATen kernels", units.count(sums.kernels))
    uncounted = elementwise_work.kernels_without_formula(trace)
    if uncounted:
        number, names = sum(uncounted.values()), ", ".join(uncounted)
        yield Fact("kernels not counted", units.count(number), meaning=names)


def _layers_by_stack(groups: Sequence[LayerGroup]) -> Iterator[str]:
    """`28 × model.layers`, or `28 × model.layers of 2 kinds`, for each stack."""
    for stack in dict.fromkeys(group.first.stack for group in groups):
        of_stack = [group for group in groups if group.first.stack == stack]
        kinds = f" of {len(of_stack)} kinds" if len(of_stack) > 1 else ""
        yield f"{sum(len(group.indices) for group in of_stack)} × {stack or 'layer'}{kinds}"


def _count(label: str, number: int, meaning: str = "") -> Fact:
    return Fact(label, units.parameters(number), f"{number:,}", meaning)


def _nbytes(label: str, number: int, meaning: str = "") -> Fact:
    return Fact(label, units.nbytes(number), f"{number:,} bytes", meaning)
