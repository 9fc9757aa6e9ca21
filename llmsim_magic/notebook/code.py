"""A request as code: the magic's line and the call in Python that give the same."""

import shlex
from collections.abc import Iterator

from llmsim_magic.records.workload import PHASES
from llmsim_magic.simulate.request import Request

_RESULTS = {
    "summary": "report.summary",
    "ops": "report.ops",
    "deps": "report.dependency_graph({})",
    "topological": "report.topological_graph({})",
    "costs": "report.costs",
}


def magic_line(request: Request) -> str:
    """`%llmsim gpt2 --ops --phase decode`: `parse_line` makes the same request of it."""
    words = [str(request.model), *(f"--{view}" for view in request.views)]
    for option, value in _options(request):
        words += [f"--{option}"] if value is True else [f"--{option}", str(value)]
    return f"%llmsim {shlex.join(words)}"


def python_call(request: Request, *, is_variable: bool = False) -> str:
    """The lines that make the same tables and graphs, one workload or many."""
    model = str(request.model) if is_variable else repr(request.model)
    given = "".join(f", {name}={value!r}" for name, value in _keywords(request))
    if request.is_sweep:
        call, results = f"sweep = llmsim.sweep({model}{given})", ["sweep.totals", "sweep.shapes"]
    else:
        call = f"report = llmsim.trace({model}{given})"
        results = [_RESULTS[view].format(_drawn(request)) for view in request.views]
        if request.explained is not None:
            results.append(f"report.explain({request.explained!r})")
    return "\n".join(("import llmsim_magic as llmsim", "", call, *results))


def _options(request: Request) -> Iterator[tuple[str, object]]:
    """What is not as it is by default, by the names of the magic's options."""
    build, drawn = request.build, request.drawn
    phase = "both" if request.phases == PHASES else ",".join(request.phases)
    layers = drawn.layers if drawn.layers == "all" else ",".join(map(str, sorted(drawn.layers)))
    options = {
        "phase": phase,
        "batch": ",".join(map(str, request.batches)),
        "context": ",".join(map(str, request.contexts)),
        "dtype": build.dtype,
        "base": build.base,
        "attn": build.attn,
        "trust-remote-code": build.trust_remote_code,
        "refresh": build.refresh,
        "depth": drawn.depth,
        "layers": layers,
        "level": None if drawn.level == "operator" else drawn.level,
        "explain": request.explained,
        "csv": request.csv,
        "no-replay": not request.replay,
        "sure": request.sure,
    }
    return ((name, value) for name, value in options.items() if value)


def _keywords(request: Request) -> Iterator[tuple[str, object]]:
    """The same for `trace`, or `sweep` where there are several workloads."""
    build, many = request.build, request.is_sweep
    for name, values in (
        ("phase", request.phases), ("batch", request.batches), ("context", request.contexts),
    ):  # fmt: skip
        if values:
            yield name, list(values) if many else values[0]
    for name, value in (
        ("dtype", build.dtype), ("attn", build.attn), ("base", build.base),
        ("trust_remote_code", build.trust_remote_code), ("refresh", build.refresh),
    ):  # fmt: skip
        if value:
            yield name, value
    if not request.replay:
        yield "replay", False


def _drawn(request: Request) -> str:
    drawn = request.drawn
    layers = drawn.layers if drawn.layers == "all" else sorted(drawn.layers)
    level = drawn.level if drawn.level != "operator" else None
    given = {"depth": drawn.depth, "layers": layers, "level": level}
    return ", ".join(f"{name}={value!r}" for name, value in given.items() if value)
