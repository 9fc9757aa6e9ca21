"""A training step at the level of its passes: each is the outermost module of its operators."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from msgspec import structs

from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.records.trace.recorded import PASSES, Calls, Pass, Record
from llmsim_magic.records.trace.trace import Module, Trace

_FLOATS = ("float", "bfloat", "complex")


@memoize
def split_by_pass(trace: Trace) -> Trace:
    """The trace with the passes of a training step as modules; other traces are unchanged.

    `model.layers.0` is `forward.model.layers.0` in forward and `backward.model.layers.0` in
    backward, so that whatever groups operators by module keeps the passes apart. Orders stay as
    they are. Replayed layers are written out.
    """
    if trace.training is None:
        return trace
    record = trace.unrolled if trace.replays else trace.recorded
    parts = [operator.part for operator in trace.expand_replays(trace.recorded.operators)]
    operators = tuple(
        structs.replace(operator, path=inside(part, path), part=part)
        for operator, path, part in zip(record.operators, trace.paths, parts, strict=True)
    )
    paths: dict[Pass, set[str]] = {part: set() for part in PASSES}
    for path, part in set(zip(trace.paths, parts, strict=True)):
        paths[part].update(_around(path))
    return replace(
        trace,
        modules=tuple(_modules(trace, paths)),
        recorded=replace(record, operators=operators, calls=tuple(_calls(record, paths))),
        replays=(),
    )


def inside(part: Pass, path: str) -> str:
    """The path of a module as a part of a pass."""
    return f"{part}.{path}" if path else part


def _around(path: str) -> Iterator[str]:
    """The path, and those of all modules around it."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def _modules(trace: Trace, paths: dict[Pass, set[str]]) -> Iterator[Module]:
    """The model, and each pass with the modules that run in it."""
    root = next(module for module in trace.modules if not module.path)
    yield root
    for part, run in paths.items():
        if part == "optimizer":
            if run and trace.training is not None:
                yield Module(part, trace.training.optimizer, False, {})
            continue
        for module in trace.modules if run else ():
            if module.path in run:
                yield replace(module, path=inside(part, module.path))


def _calls(record: Record, paths: dict[Pass, set[str]]) -> Iterator[Calls]:
    """The calls of modules in each pass; backward turns gradients of outputs into those of inputs.

    A gradient has the shape of its tensor, which stands for it.
    """
    for calls in record.calls:
        for part, run in paths.items():
            if calls.path not in run or part == "optimizer":
                continue
            own = structs.replace(calls, path=inside(part, calls.path))
            if part == "backward":
                given, returned = _floating(record, own.outputs), _floating(record, own.inputs)
                own = structs.replace(own, inputs=given, outputs=returned, held=())
            yield own


def _floating(record: Record, tensors: Iterable[int]) -> tuple[int, ...]:
    return tuple(index for index in tensors if record.tensors[index].dtype.startswith(_FLOATS))
