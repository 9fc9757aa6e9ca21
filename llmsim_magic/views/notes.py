"""Notes about a pass: assumptions of the trace, and mixtures whose code runs every expert."""

from llmsim_magic.analyses.cost.mixture_of_experts import active_parameters, expert_routings
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views import units


def notes(trace: Trace) -> tuple[str, ...]:
    """The notes of a trace, then on a context without effect and mixtures that run all experts."""
    return (*trace.notes, *_ignored_context(trace), *_dense_mixtures(trace))


def _ignored_context(trace: Trace) -> tuple[str, ...]:
    if not trace.ignores_context:
        return ()
    context, name = trace.workload.context, trace.model.class_name
    return (f"context {context} has no effect: the inputs of {name} do not depend on it",)


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
