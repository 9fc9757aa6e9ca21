"""Refuse options that have no effect on what a request shows, for every interface.

An option that views name in `View.uses` has an effect on those views alone; others, on every view.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from llmsim_magic.analyses.memory.memory import caches_keys_and_values
from llmsim_magic.records.errors import InvalidValue, LlmsimError, clip
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import Workload
from llmsim_magic.simulate.options import BY_NAME, OPTIONS, Option, text_of
from llmsim_magic.simulate.request import ALL, Deployment, Request
from llmsim_magic.simulate.views import OPTION_VIEWS, VIEWS, views_of

ABSENT_FROM_PANEL = (
    "explain", "compare", "csv", "json", "sure", "max_memory", "max_params", "max_time",
)  # fmt: skip
_TOKENS = frozenset({"input_ids", "decoder_input_ids"})
_EVERY_VIEW = (*VIEWS.values(), *OPTION_VIEWS)


def require_effect(request: Request, given: Iterable[str]) -> None:
    """Check the options of a line: each must change what the views of the request show.

    Args:
        request: the request of the line.
        given: names of the options on the line.

    Raises:
        InvalidValue: an option without effect; the message names what it needs.
    """
    for name in sorted(options_without_effect(request).intersection(given)):
        option = BY_NAME[name]
        needed = " or ".join(f"--{view}" for view in _users(option))
        raise InvalidValue(
            f"{_as_typed(option, request)} has no effect without {needed}; add it, or leave "
            f"{option.flag} out"
        )


def require_effect_of_keywords(request: Request) -> None:
    """Check the keywords of a call whose report has every table, shown or not.

    Raises:
        InvalidValue: an option without effect; the message names what it needs.
    """
    every = replace(request, views=tuple(VIEWS))
    for name in options_without_effect(every):
        option = BY_NAME[name]
        value = option.value(request)
        if value != option.default:
            raise InvalidValue(
                f"{name}={value!r} has no effect without {' or '.join(_users(option))}; add it, or "
                f"leave {name} out"
            )


def require_panel_options(request: Request) -> None:
    """Check the options of a panel, which shows one workload on one device.

    Raises:
        InvalidValue: an option that the panel lacks, or several values of one.
    """
    for name in ABSENT_FROM_PANEL:
        option = BY_NAME[name]
        if option.value(request) != option.default:
            instead = "use its Save button" if name == "csv" else f"leave {option.flag} out"
            raise InvalidValue(
                f"{_as_typed(option, request)} cannot be combined with the panel; {instead}"
            )
    for name in ("phase", "batch", "context"):
        if len(BY_NAME[name].value(request)) > 1:
            raise InvalidValue(
                f"{_as_typed(BY_NAME[name], request)} cannot be combined with the panel, which "
                f"shows one workload at a time; give one {name}, or use --multi-config without "
                "--panel"
            )
    hardware = request.deployment.hardware
    if len(hardware) > 1 or ALL in hardware:
        raise InvalidValue(
            f"{_as_typed(BY_NAME['hardware'], request)} cannot be combined with the panel, which "
            "shows one device at a time; name one device, or leave --panel out"
        )


def require_effect_on_cache(deployment: Deployment, traces: Sequence[Trace]) -> None:
    """Check the dtype of keys and values, which has an effect only where a model caches some.

    Args:
        deployment: The stored dtypes.
        traces: Every pass that a report shows.

    Raises:
        InvalidValue: A dtype was chosen and no pass caches keys or values.
    """
    if deployment.kv_dtype is None or any(map(caches_keys_and_values, traces)):
        return
    names = " or ".join(dict.fromkeys(trace.model.name for trace in traces))
    raise InvalidValue(
        f"kv_dtype {deployment.kv_dtype} has no effect on {names}, which caches no keys and "
        "values; leave it out"
    )


def mark_ignored_context(trace: Trace, trace_workload: Callable[[Workload], Trace]) -> Trace:
    """The trace, with `ignores_context` set if other contexts give the model the same inputs.

    Only a model without tokens and cache, such as a vision tower, is traced again: on a longer
    context, and where that changes nothing on a shorter one, as the longer may be cut to a limit.

    Args:
        trace: A pass with a chosen context.
        trace_workload: Traces another workload of the model.
    """
    inputs = _inputs(trace)
    if trace.cache or _TOKENS & inputs.keys():
        return trace
    context = trace.workload.context
    try:
        for other in (2 * context + 1, max(context // 2, 1)):
            if _inputs(trace_workload(replace(trace.workload, context=other))) != inputs:
                return trace
    except LlmsimError:  # a limit on the context
        return trace
    return replace(trace, ignores_context=True)


def _inputs(trace: Trace) -> dict[str | None, int]:
    """The bytes of each input of a pass, by name."""
    storages = trace.recorded.storages
    return {storage.name: storage.nbytes for storage in storages if storage.role == "input"}


def options_without_effect(request: Request) -> frozenset[str]:
    """Names of the options that have no effect on what the views of a request show."""
    of_some_views = {name for view in _EVERY_VIEW for name in view.uses}
    used = {name for view in views_of(request) for name in view.uses}
    if request.csv is not None or request.json_file is not None:
        used.add("overwrite")
    if request.limits.seconds is not None:
        used.add("launch")
    return frozenset((of_some_views | {"overwrite"}) - used)


def effective_values(request: Request) -> dict[str, Any]:
    """The values of a request's options by name, with defaults for those without effect."""
    without_effect = options_without_effect(request)
    return {
        option.name: option.default if option.name in without_effect else option.value(request)
        for option in OPTIONS
    }


def _users(option: Option) -> Collection[str]:
    """Names of the views and options without which an option has no effect."""
    if option.name == "overwrite":
        return ("csv", "json")
    users = [view.name for view in _EVERY_VIEW if option.name in view.uses]
    return list(dict.fromkeys(name.split()[0] for name in users))


def _as_typed(option: Option, request: Request) -> str:
    """An option with its value as on a line, such as `--layers 99`."""
    value = option.value(request)
    if option.is_flag:
        return option.flag
    return f"{option.flag} {clip(text_of(option, value))}"
