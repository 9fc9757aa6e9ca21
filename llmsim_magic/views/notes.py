"""Notes about a pass: assumptions of the trace and of its memory, and mixtures run in full."""

from collections.abc import Mapping, Sequence

from llmsim_magic.analyses.cost.mixture_of_experts import (
    active_parameters,
    expert_routings,
    routed_layers,
)
from llmsim_magic.analyses.memory.capacity import Fit, Remedy
from llmsim_magic.analyses.memory.memory import Memory
from llmsim_magic.records.hardware.execution import RUNTIMES
from llmsim_magic.records.trace.assumptions import BALANCED_CHOICE, BEFORE_STEP, assumption_note
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views import units

_NEEDS_SCALING = "gradients in float16 underflow without loss scaling"
_MODULES_OF_A_ROUTER = (1, 2, 3)  # those of one layer that choose: a gate, and its experts


def notes(trace: Trace) -> tuple[str, ...]:
    """The notes of a trace, then on a context without effect, mixtures that run all experts, fp16.

    Each is a sentence, and each occurs once.
    """
    own = (_name_routing(trace, note) for note in trace.notes)
    found = (*own, *_ignored_context(trace), *_dense_mixtures(trace), *_loss_scaling(trace))
    return tuple(dict.fromkeys(found))


def memory_notes(memories: Mapping[str, Memory]) -> tuple[str, ...]:
    """What the memory under each runtime assumes: sentences, each once.

    One that does not hold for every runtime names those for which it does.

    Args:
        memories: the memory under each runtime, by its name.
    """
    if len(memories) == 1:
        return tuple(dict.fromkeys(next(iter(memories.values())).assumptions))
    names: dict[str, list[str]] = {}
    for name, memory in memories.items():
        for sentence in dict.fromkeys(memory.assumptions):
            names.setdefault(sentence.removeprefix(f"{name}: "), []).append(RUNTIMES[name])
    return tuple(
        sentence if len(of) == len(memories) else f"{' and '.join(of)}: {sentence}"
        for sentence, of in names.items()
    )


def fit_note(
    fit: Fit, larger_device: str | None, other_runtimes: Sequence[str] = (), workload: str = ""
) -> str:
    """How much a model needs of a device that does not run it, and every remedy that was found.

    Args:
        fit: the model on the device under a runtime.
        larger_device: a device that holds the same setup, if there is one.
        other_runtimes: the runtimes under which the device holds it.
        workload: which one it is of, where there are several.
    """
    ranks = fit.setup.devices
    where = fit.device if ranks == 1 else f"each of {ranks} × {fit.device}"
    what = f"{_gigabytes(fit.needed)} of {_gigabytes(fit.available)}"
    one = f"{'one' if ranks == 1 else f'{ranks} ×'} {larger_device}"
    if fit.refusal is not None:
        can = "" if larger_device is None else f"; {one} can"
        return f"{fit.device} {fit.refusal}, so it cannot run this{can}"
    ways = [_remedy(fit, remedy) for remedy in fit.remedies]
    if larger_device is not None:
        more = [remedy for remedy in fit.remedies if dict(remedy.changes).keys() <= {"tp", "pp"}]
        ways.insert(len(more), f"on {one}")
    ways[:0] = [f"under {RUNTIMES[name]}" for name in other_runtimes]
    how = f"fits {_alternatives(ways)}" if ways else "no change that was tried makes it fit"
    of = f" of {workload}" if workload else ""
    return f"does not fit: {what}{of} on {where} under {RUNTIMES[fit.runtime]}; {how}"


def _remedy(fit: Fit, remedy: Remedy) -> str:
    """Changes as words: `with int4 weights on 16 × L4 (tp 8 pp 2)`."""
    changes, parallel = dict(remedy.changes), remedy.setup.parallel
    words = []
    if "weight_dtype" in changes:
        words.append(f"with {changes['weight_dtype']} weights")
    if "tp" in changes or "pp" in changes:
        words.append(f"on {parallel.ranks} × {fit.device} ({parallel})")
    if "batch" in changes:
        words.append(f"with batch {changes['batch']:,} or less")
    if "context" in changes:
        words.append(f"with context {changes['context']:,} or less")
    return " ".join(words)


def _alternatives(ways: list[str]) -> str:
    return " or ".join((", ".join(ways[:-1]), ways[-1]) if len(ways) > 1 else ways)


def _gigabytes(number: int) -> str:
    """Bytes in GB of 10⁹ with three digits, such as `21.7 GB`."""
    return f"{float(f'{number / 1e9:.3g}'):,g} GB"


def _name_routing(trace: Trace, note: str) -> str:
    """The note, or its own sentence if the balanced choices are those of the routers of experts."""
    layers = routed_layers(trace) if BALANCED_CHOICE in note else 0
    if not layers:
        return note
    count = f" ({layers} layers)" if layers > 1 else ""
    choices = {assumption_note(BALANCED_CHOICE, layers * each) for each in _MODULES_OF_A_ROUTER}
    before, after = note.removeprefix(BEFORE_STEP), f"assumes balanced expert routing{count}"
    return after if before in choices else note


def _ignored_context(trace: Trace) -> tuple[str, ...]:
    if not trace.ignores_context:
        return ()
    context, name = trace.workload.context, trace.model.class_name
    return (f"context {context} has no effect: the inputs of {name} do not depend on it",)


def _loss_scaling(trace: Trace) -> tuple[str, ...]:
    """That a step whose backward computes in float16 needs loss scaling."""
    record = trace.recorded
    if not any(
        kernel.flops and part == "backward" and record.tensors[kernel.outputs[0]].dtype == "float16"
        for kernel, part in zip(record.kernels, record.kernel_parts, strict=True)
    ):
        return ()
    trained = {each.dtype for each in trace.parameters if each.trainable}
    if "float16" not in trained:
        return (f"{_NEEDS_SCALING} (torch.amp.GradScaler), which the step leaves out",)
    return (
        f"{_NEEDS_SCALING}, which the step leaves out; GradScaler refuses those of weights in "
        "float16, so fp16=True of the Trainer keeps weights in float32 under autocast, which "
        "precision amp prices, with bfloat16 in place of float16",
    )


def _dense_mixtures(trace: Trace) -> tuple[str, ...]:
    """The mixtures that multiply every token by every expert, with the active parameters."""
    runs = "transformers" if trace.model.model_type else trace.model.class_name
    active = units.about_parameters(active_parameters(trace))
    return tuple(
        f"{runs} runs all {routing.experts} experts on every token; the model routes to "
        f"{routing.experts_per_token:g}: {active} active"
        for routing in expert_routings(trace)
        if routing.runs_all
    )
