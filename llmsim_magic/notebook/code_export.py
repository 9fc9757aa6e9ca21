"""Write a request as code: the line of the magic, and the call in Python."""

import shlex
from collections.abc import Iterator
from typing import Any

from llmsim_magic.simulate.options import GRAPH, OPTIONS, SWEEP, TRACE, text_of
from llmsim_magic.simulate.request import ALL, Request
from llmsim_magic.simulate.views import VIEWS, views_of


def magic_line(request: Request) -> str:
    """The line of the magic, such as `%llmsim gpt2 --ops`, that parses to this request."""
    words = [str(request.model), *(f"--{view}" for view in request.views)]
    for option in OPTIONS:
        value = option.value(request)
        if value == option.default:
            continue
        words += [option.flag] if option.is_flag else [option.flag, text_of(option, value)]
    return f"%llmsim {shlex.join(words)}"


def python_call(request: Request, *, is_variable: bool = False) -> str:
    """Python code that computes the same tables and graphs.

    Args:
        request: the request; several workloads become a `sweep`.
        is_variable: whether the model is the name of a variable, which is not quoted.
    """
    model = str(request.model) if is_variable else repr(request.model)
    call = SWEEP if request.is_sweep else TRACE
    keywords = "".join(f", {name}={value!r}" for name, value in _keywords(request, call))
    if request.is_sweep:
        code = f"sweep = llmsim.sweep({model}{keywords})"
        results = [VIEWS["multi-config"].python]
    else:
        code = f"report = llmsim.trace({model}{keywords})"
        results = [_result(view.python, view.name, request) for view in views_of(request)]
    return "\n".join(("import llmsim_magic as llmsim", "", code, *results))


def _result(code: str, name: str, request: Request) -> str:
    if name == "explain":
        return f"report.explain({request.explain!r})"
    drawn = ", ".join(f"{name}={value!r}" for name, value in _keywords(request, GRAPH))
    return code.format(drawn)


def _keywords(request: Request, call: str) -> Iterator[tuple[str, Any]]:
    """The keyword arguments that a request sets for a public function."""
    for option in OPTIONS:
        value = option.value(request)
        if call not in option.calls or value == option.default:
            continue
        if call == SWEEP and option.name == "hardware" and (ALL in value or len(value) > 1):
            continue  # a sweep has the times of one device
        if isinstance(value, frozenset):
            yield option.name, sorted(value)
        elif isinstance(value, tuple):
            yield option.name, value[0] if call == TRACE and len(value) == 1 else list(value)
        else:
            yield option.name, value
