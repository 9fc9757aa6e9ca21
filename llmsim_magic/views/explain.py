"""Explains the FLOPs and bytes of an operator or module as text, with the arithmetic."""

import html
from collections.abc import Callable, Iterable, Iterator

from llmsim_magic.analyses.cost.operator_costs import costs
from llmsim_magic.analyses.cost.step_passes import forward_orders, saved_bytes
from llmsim_magic.analyses.cost.traffic import Access, traffic
from llmsim_magic.analyses.graph.dataflow import depends_on
from llmsim_magic.analyses.kernels import elementwise_work
from llmsim_magic.records.errors import InvalidValue, shorten
from llmsim_magic.records.trace.recorded import PASSES, Kernel, Operator, Pass, Record, Replay
from llmsim_magic.records.trace.trace import Trace, numel
from llmsim_magic.views import units
from llmsim_magic.views.nearest_paths import nearest_paths

Shapes = list[tuple[int, ...]]


class Explanation(str):
    """Text that a notebook displays preformatted."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return f'<pre style="white-space:pre-wrap">{html.escape(self)}</pre>'

    def __repr__(self) -> str:
        return str(self)


def explain(trace: Trace, path: str) -> Explanation:
    """Explain every operator at a module's path and, for a container, the sum below it.

    Args:
        trace: the pass.
        path: the path of a module, such as `model.layers.0.mlp`; "" is the model.

    Raises:
        InvalidValue: there is no module at `path`; the message names the nearest ones.
    """
    paths = dict.fromkeys(module.path for module in trace.modules)
    if path not in paths:
        legal = ", ".join(nearest_paths(str(path), filter(None, paths)))
        raise InvalidValue(
            f"explain: {trace.model.class_name} has no module {shorten(path)}; try {legal}"
        )
    here = [order for order, other in enumerate(trace.paths) if other == path]
    below = [
        order
        for order, other in enumerate(trace.paths)
        if other and (not path or other.startswith(f"{path}."))
    ]
    parts = [explain_operator(trace, order) for order in here]
    if below:
        parts.insert(0, explain_container(trace, path, [*here, *below]))
    if not parts:
        parts = [f"{path}: never called in {trace.workload}; no operator runs at this path"]
    return Explanation("\n\n".join((f"{trace.model.name}, {trace.workload}", *parts)))


def explain_container(trace: Trace, path: str, orders: Iterable[int]) -> str:
    """The costs of a container's operators in total, and by child."""
    orders = sorted(orders)
    module = next(module for module in trace.modules if module.path == path)
    depth = path.count(".") + 1 if path else 0
    parts: dict[str, list[int]] = {}
    for order in orders:
        inside = trace.paths[order] != path
        op = _operator(trace, order).op
        part = trace.paths[order].split(".")[depth] if inside else f"{op} (function)"
        parts.setdefault(part, []).append(order)
    lines = [
        f"{path or trace.model.class_name}: {module.type}, {len(orders)} operators, "
        f"orders {orders[0]} to {orders[-1]}",
        _format_costs(trace, orders),
    ]
    if trace.training is not None:
        lines += [
            f"  in {part}: {_format_costs(trace, mine)}" for part, mine in _by_pass(trace, orders)
        ]
    lines += [f"  {part}: {_format_costs(trace, mine)}" for part, mine in parts.items()]
    return "\n".join(lines)


def _by_pass(trace: Trace, orders: Iterable[int]) -> Iterator[tuple[Pass, list[int]]]:
    """The operators of each pass of a training step."""
    of_operator = [(_operator(trace, order).part, order) for order in orders]
    for part in PASSES:
        mine = [order for own, order in of_operator if own == part]
        if mine:
            yield part, mine


def _operator(trace: Trace, order: int) -> Operator:
    """The recorded operator; a replayed layer shares those of the layer that ran."""
    return trace.recorded.operators[trace.steps[order][0]]


def _format_costs(trace: Trace, orders: list[int]) -> str:
    each = [costs(trace)[order] for order in orders]
    unknown = sum(cost.flops is None for cost in each)
    note = f" (and {unknown} operators without a formula)" if unknown else ""
    return (
        f"FLOPs: {units.count(sum(cost.flops or 0 for cost in each))}{note}, "
        f"bytes read: {units.count(sum(cost.bytes_read for cost in each))}, "
        f"written: {units.count(sum(cost.bytes_written for cost in each))}"
    )


def explain_operator(trace: Trace, order: int) -> str:
    """The shapes, parameters, FLOPs, bytes and dependencies of one operator."""
    record, (place, replay) = trace.recorded, trace.steps[order]
    operator, kernels = record.operators[place], record.kernels_by_operator[place]
    cost, bytes_moved = costs(trace)[order], traffic(record)[place]
    own_name = replay.map_path if replay else str
    storage_name = _storage_names(record, replay)
    where = f" at {operator.source}" if operator.source else ""
    lines = [
        f"{trace.paths[order] or trace.model.class_name}: {operator.op}, "
        f"operator {order}{_pass_of(trace, order)}{where}",
        f"  reads {units.shapes(record.shapes(operator.inputs))}, "
        f"gives {units.shapes(record.shapes(operator.outputs))}",
    ]
    lines += [
        f"  {own_name(p.name)}: {units.shape(p.shape)} = {units.count(p.numel)} parameters"
        for p in cost.parameters
    ]
    lines += _flops_lines(record, kernels, cost.flops)
    lines += _elementwise_lines(record, kernels, cost.elementwise_ops)
    for title, accesses, nbytes in (
        ("bytes read", bytes_moved.reads, bytes_moved.bytes_read),
        ("bytes written", bytes_moved.writes, bytes_moved.bytes_written),
    ):
        lines += _bytes_lines(title, record, storage_name, accesses, nbytes)
    total = bytes_moved.bytes_read + bytes_moved.bytes_written
    if cost.flops and total:
        lines.append(
            f"arithmetic intensity: {units.count(cost.flops)} / {units.count(total)} = "
            f"{cost.flops / total:.2f} FLOPs per byte"
        )
    lines += _saved_lines(trace, order)
    sources = depends_on(trace)[order]
    waits = ", ".join(f"{source} ({_operator_name(trace, source)})" for source in sources)
    lines.append(f"waits for: {waits or 'nothing in this pass'}")
    return "\n".join(lines)


def _pass_of(trace: Trace, order: int) -> str:
    """` in backward, of operator 69`: the pass of a training step."""
    if trace.training is None:
        return ""
    forward = forward_orders(trace)[order]
    of = "" if forward is None else f", of operator {forward}"
    return f" in {_operator(trace, order).part}{of}"


def _saved_lines(trace: Trace, order: int) -> Iterator[str]:
    """What autograd keeps for an operator of a training step."""
    kept = saved_bytes(trace)[order] if trace.training is not None else 0
    if kept:
        yield f"saved for backward: {units.count(kept)} bytes that no earlier operator keeps"


def _storage_names(record: Record, replay: Replay | None) -> Callable[[int], str | None]:
    """Maps a recorded storage to its name in the layer where the operator ran."""
    replayed = replay.map_storages(record.tensors) if replay else {}

    def name(storage: int) -> str | None:
        if storage in replayed:
            return record.storages[replayed[storage][0]].name
        named = record.storages[storage].name
        return replay.map_path(named) if replay and named else named

    return name


def _operator_name(trace: Trace, order: int) -> str:
    operator = _operator(trace, order)
    return trace.paths[order] if operator.kind == "module" else operator.op


def _flops_lines(record: Record, kernels: Iterable[Kernel], flops: int | None) -> Iterator[str]:
    if flops is None:
        yield "FLOPs: not counted: a kernel here has no formula"
        return
    yield f"FLOPs: {units.count(flops)}" + (
        "" if flops else ": no matmul, convolution or attention"
    )
    for kernel in kernels:
        if kernel.flops:
            yield f"  {kernel.name}: {_flops_arithmetic(record, kernel)} (a multiply-add is two)"
            if skipped := elementwise_work.causal_skippable_flops(record, kernel):
                yield (
                    f"    causal: {units.count(skipped)} of them lie above the diagonal; "
                    "a kernel may skip those"
                )


def _elementwise_lines(record: Record, kernels: Iterable[Kernel], ops: int | None) -> Iterator[str]:
    if not ops:
        return
    yield f"elementwise operations: {units.count(ops)}"
    for kernel in kernels:
        if number := elementwise_work.elementwise_ops(record, kernel):
            shapes = units.shapes(record.shapes(kernel.inputs))
            yield f"  {kernel.name} of {shapes}: {units.count(number)}"


def _bytes_lines(
    title: str,
    record: Record,
    storage_name: Callable[[int], str | None],
    accesses: Iterable[Access],
    total: int,
) -> Iterator[str]:
    yield f"{title}: {units.count(total)}"
    for access in accesses:
        tensor = record.tensors[access.tensor]
        name = storage_name(tensor.storage)
        label = f"{access.role} {name}" if name else access.role
        reason = " (each element once)" if 0 in tensor.strides else " (only what is looked up)"
        remark = reason if access.nbytes < tensor.nbytes else ""
        yield (
            f"  {label} {units.shape(tensor.shape)} {tensor.dtype}: "
            f"{units.count(access.nbytes // tensor.itemsize)} × {tensor.itemsize} = "
            f"{units.count(access.nbytes)}{remark}"
        )


Factor = int | tuple[int, int]


def _matmul(shapes: Shapes) -> list[Factor]:
    """`[m, k] × [k, n]`: 2 · m · k · n."""
    left, right = shapes[-2:]
    return [2, *left, right[-1]]


def _attention(shapes: Shapes) -> list[Factor]:
    """Scores and weighted sum of values: 2 · batch · heads · queries · keys · (d_qk + d_v)."""
    query, key, value = shapes[:3]
    return [2, *query[:-1], key[-2], (query[-1], value[-1])]


def _attention_gradients(shapes: Shapes) -> list[Factor]:
    """Scores again and four products of the gradients: 2 · rows · (3 · d_qk + 2 · d_v)."""
    _, query, key, value = shapes[:4]
    return [2, *query[:-1], key[-2], (3 * query[-1], 2 * value[-1])]


def _grouped_matmul(shapes: Shapes) -> list[Factor]:
    """Each row is multiplied by one expert's `[k, n]`: 2 · rows · k · n."""
    rows, weights = shapes[:2]
    return [2, *rows, weights[-1]]


def _matrix_vector(shapes: Shapes) -> list[Factor]:
    """`[m, k] × [k]`: 2 · m · k; `[k] · [k]`: 2 · k."""
    return [2, *shapes[0]]


_FACTORS: dict[str, Callable[[Shapes], list[Factor]]] = {
    "mm": _matmul,
    "addmm": _matmul,
    "bmm": _matmul,
    "baddbmm": _matmul,
    "scaled_dot_product_attention": _attention,
    "_scaled_dot_product_flash_attention_backward": _attention_gradients,
    "_scaled_dot_product_efficient_attention_backward": _attention_gradients,
    "_scaled_dot_product_cudnn_attention_backward": _attention_gradients,
    "_grouped_mm": _grouped_matmul,
    "mv": _matrix_vector,
    "dot": _matrix_vector,
}


def _flops_arithmetic(record: Record, kernel: Kernel) -> str:
    """The factors of a kernel's FLOPs, or the source of their formula if they are unknown."""
    factors_of = _FACTORS.get(elementwise_work.short_name(kernel.name))
    shapes = record.shapes(kernel.inputs)
    total = units.count(kernel.flops or 0)
    factors = factors_of(shapes) if factors_of else _convolution(record, kernel)
    product = numel(tuple(sum(f) if isinstance(f, tuple) else f for f in factors))
    if product != kernel.flops:
        return f"{units.shapes(shapes)}: {total}, by torch.utils.flop_counter"
    texts = (f"({f[0]} + {f[1]})" if isinstance(f, tuple) else str(f) for f in factors)
    return f"{units.shapes(shapes)}: {' × '.join(texts)} = {total}"


def _convolution(record: Record, kernel: Kernel) -> list[Factor]:
    """Each output position applies the whole filter: 2 · batch · positions · filter elements."""
    inputs, outputs = record.shapes(kernel.inputs), record.shapes(kernel.outputs)
    if len(inputs) < 2 or not outputs:
        return []
    return [2, outputs[0][0], *outputs[0][2:], *inputs[1]]
