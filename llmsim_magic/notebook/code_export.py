"""A request as code: the magic's line and the call in Python that give the same."""

import shlex
from collections.abc import Iterator

from llmsim_magic.records.trace.trace import Scalar
from llmsim_magic.records.trace.workload import PHASES
from llmsim_magic.simulate.request import Request

_RESULTS = {
    "summary": "report.summary",
    "ops": "report.ops",
    "deps": "report.dependency_graph({})",
    "topological": "report.topological_graph({})",
    "costs": "report.costs",
    "memory": "report.memory",
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
        if request.deployed.hardware:
            results.append("report.latency")
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
        "level": _unless(drawn.level, "operator"),
        "hardware": ",".join(request.deployed.hardware),
        "weight-dtype": request.deployed.weight_dtype,
        "kv-dtype": request.deployed.kv_dtype,
        "launch": _unless(request.deployed.launch, "graph"),
        "tp": _unless(build.parallel.tp, 1),
        "pp": _unless(build.parallel.pp, 1),
        "ep": _unless(build.parallel.ep, 1),
        "compare": request.beside,
        "explain": request.explained,
        "csv": request.csv,
        "overwrite": request.overwrite,
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
    if not many:
        yield from _deployed(request)


def _deployed(request: Request) -> Iterator[tuple[str, object]]:
    """How and where one workload runs."""
    deployed, parallel = request.deployed, request.build.parallel
    names = deployed.hardware
    for name, value, default in (
        ("hardware", names[0] if len(names) == 1 else list(names), []),
        ("weight_dtype", deployed.weight_dtype, None), ("kv_dtype", deployed.kv_dtype, None),
        ("launch", deployed.launch, "graph"),
        ("tp", parallel.tp, 1), ("pp", parallel.pp, 1), ("ep", parallel.ep, 1),
    ):  # fmt: skip
        if value != default:
            yield name, value


def _unless(value: Scalar, default: Scalar) -> Scalar | None:
    return None if value == default else value


def _drawn(request: Request) -> str:
    drawn = request.drawn
    layers = drawn.layers if drawn.layers == "all" else sorted(drawn.layers)
    given = {"depth": drawn.depth, "layers": layers, "level": _unless(drawn.level, "operator")}
    return ", ".join(f"{name}={value!r}" for name, value in given.items() if value)
