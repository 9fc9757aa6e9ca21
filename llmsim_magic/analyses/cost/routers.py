"""Routers of mixtures of experts: the number of experts chosen per token, read from the record."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from llmsim_magic.analyses.kernels.elementwise_work import short_name
from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.records.trace.recorded import Kernel
from llmsim_magic.records.trace.trace import Parameter, Trace, numel

_MATMULS = frozenset({"mm", "bmm", "addmm", "baddbmm"})
_COPIES = frozenset({"clone", "_to_copy"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedExperts:
    """Experts that a router chooses from.

    Attributes:
        router: path of the module that chooses.
        experts: number of experts.
        experts_per_token: experts that the router chooses for each token.
        runs_all: whether the pass multiplies each token by the matrices of every expert.
        parameters: names of the experts' parameters.
    """

    router: str
    experts: int
    experts_per_token: int
    runs_all: bool
    parameters: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Router:
    """A choice of `chosen` experts of `experts`, for each of `tokens`."""

    path: str
    experts: int
    chosen: int
    tokens: int


@memoize
def routed_experts(trace: Trace) -> tuple[RoutedExperts, ...]:
    """The experts of each router: a top-k or argmax over an axis that has one entry per expert.

    The experts are in the module that chooses, or else in the module around it: parameters with one
    matrix per expert, or that number of modules of one class.
    """
    found = []
    for router in _routers(trace):
        stacks, modules = _nearest_experts(trace, router)
        if not stacks and not modules:
            continue
        names = {parameter.name for parameter in stacks}
        for path in modules:
            names |= {p.name for p in trace.parameters if _is_within(p.owner, path)}
        read: list[float] = [_rows_of_module(trace, path) for path in modules]
        if stacks:
            read.append(_rows_of_stack(trace, stacks[0]))
        found.append(
            RoutedExperts(
                router=router.path,
                experts=router.experts,
                experts_per_token=router.chosen,
                runs_all=min(read) >= router.tokens,
                parameters=tuple(sorted(names)),
            )
        )
    return tuple(found)


def _routers(trace: Trace) -> Iterator[_Router]:
    """The last top-k of each module over scores of one axis, or its calls of argmax.

    An earlier top-k of the same module chooses groups of experts. A module that calls argmax calls
    it once for each expert of a token.
    """
    record = trace.recorded
    choices: dict[tuple[str, int], list[Kernel]] = defaultdict(list)
    for kernel in record.kernels:
        if kernel.operator is None or short_name(kernel.name) not in ("topk", "argmax"):
            continue
        scores = record.tensors[kernel.inputs[0]]
        chosen = record.tensors[kernel.outputs[0]].shape
        if "float" in scores.dtype and scores.shape[:-1] in (chosen, chosen[:-1]):
            choices[record.operators[kernel.operator].path, scores.shape[-1]].append(kernel)
    for (path, experts), kernels in choices.items():
        last = kernels[-1]
        rows = numel(record.tensors[last.inputs[0]].shape[:-1])
        called = record.calls_by_path.get(path)
        calls = called.number if called else 1
        if short_name(last.name) == "topk":
            chosen_per_token = record.tensors[last.outputs[0]].shape[-1]
        else:
            chosen_per_token = max(len(kernels) // calls, 1)
        if rows and chosen_per_token < experts:
            yield _Router(path=path, experts=experts, chosen=chosen_per_token, tokens=rows * calls)


def _nearest_experts(trace: Trace, router: _Router) -> tuple[list[Parameter], list[str]]:
    """Stacked parameters and modules of the experts: in the router's module, or around it."""
    for path in dict.fromkeys((router.path, router.path.rpartition(".")[0])):
        stacks = _stacks(trace, path, router.experts)
        modules = _siblings(trace, path, router.experts)
        if stacks or modules:
            return stacks, modules
    return [], []


def _stacks(trace: Trace, path: str, experts: int) -> list[Parameter]:
    """Parameters inside a module that have a matrix for each expert, and biases beside them.

    A stack of matrices is `[experts, …, …]`, or `[experts · rows, columns]` of which a matmul reads
    one expert's rows. A bias is `[experts, …]`.
    """
    owned: dict[str, list[Parameter]] = defaultdict(list)
    for parameter in trace.parameters:
        if not parameter.is_buffer and _is_within(parameter.owner, path):
            owned[parameter.owner].append(parameter)
    found: list[Parameter] = []
    for parameters in owned.values():
        stacks = [each for each in parameters if _is_stack(trace, each, experts)]
        rest = [each for each in parameters if each.shape[:1] == (experts,) and each not in stacks]
        found += [*stacks, *rest] if stacks else []
    return found


def _is_stack(trace: Trace, parameter: Parameter, experts: int) -> bool:
    shape = parameter.shape
    if len(shape) == 3:
        return shape[0] == experts
    if len(shape) != 2 or shape[0] % experts or shape[0] == experts:
        return False
    return any(
        numel(weights) * experts == parameter.numel
        for _, weights in _multiplied(trace).get(parameter.name, ())
    )


def _siblings(trace: Trace, path: str, experts: int) -> list[str]:
    """Paths of modules of one class, one per expert, that are the children of one module.

    The parent is a `ModuleList`, or any module whose children have children of their own. Children
    without parameters are ignored.
    """
    owners = {parameter.owner for parameter in trace.parameters if not parameter.is_buffer}
    filled = {owner[:end] for owner in owners for end in _ends(owner)}
    modules = {module.path: module for module in trace.modules}
    children: dict[str, list[str]] = defaultdict(list)
    for each in modules:
        parent = each.rpartition(".")[0]
        if each in filled and _is_within(parent, path):
            children[parent].append(each)
    for parent, paths in children.items():
        if len(paths) != experts or len({modules[each].type for each in paths}) != 1:
            continue
        if modules[parent].is_list or all(each in children for each in paths):
            return paths
    return []


def _is_within(path: str, module: str) -> bool:
    """Whether a path is that of a module or of one inside it."""
    return not module or path == module or path.startswith(f"{module}.")


def _ends(path: str) -> Iterator[int]:
    """The length of a path and of each path above it."""
    end = len(path)
    while end > 0:
        yield end
        end = path.rfind(".", 0, end)


def _rows_of_stack(trace: Trace, parameter: Parameter) -> float:
    """The mean number of rows that the matmuls of a stack multiply by an expert."""
    found = _multiplied(trace).get(parameter.name, ())
    return sum(rows * numel(weights) for rows, weights in found) / parameter.numel


def _rows_of_module(trace: Trace, path: str) -> int:
    """Rows that an expert reads in the pass; 0 if it does not run."""
    called = trace.calls.get(path)
    if called is None or not called.first.inputs:
        return 0
    return called.number * numel(trace.recorded.tensors[called.first.inputs[0]].shape[:-1])


@memoize
def _multiplied(trace: Trace) -> dict[str, tuple[tuple[int, tuple[int, ...]], ...]]:
    """For each matmul of a parameter, by name: rows of each matrix, and the weights' shape.

    A matmul of a copy counts too, such as one in the layout that the matmul needs.
    """
    record = trace.recorded
    found: dict[str, list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
    names = {place: each.name for place, each in enumerate(record.storages) if each.name}
    for kernel in record.kernels:
        kind = short_name(kernel.name)
        if kind in _COPIES and kernel.inputs:
            copied, copy = (record.tensors[each[0]] for each in (kernel.inputs, kernel.outputs))
            if copied.storage in names:
                names.setdefault(copy.storage, names[copied.storage])
        if kind not in _MATMULS or len(kernel.inputs) < 2:
            continue  # operands whose values are known are no tensors of the record
        left, right = (record.tensors[index] for index in kernel.inputs[-2:])
        for weights, rows in ((right, left.shape[-2]), (left, right.shape[-1])):
            if weights.storage in names:
                found[names[weights.storage]].append((rows, weights.shape))
    return {name: tuple(each) for name, each in found.items()}
