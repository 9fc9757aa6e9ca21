"""What an interactive or exported graph holds: every operator of a pass, and what feeds it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from llmsim_magic.analyses.allocations.tensor_lifetimes import alive_by_operator
from llmsim_magic.analyses.cost.operator_costs import costs
from llmsim_magic.analyses.graph.layer_folding import (
    LayerGroup,
    distinguishing_features,
    layer_groups,
    representatives,
)
from llmsim_magic.analyses.graph.layers import Layer, operators_by_layer
from llmsim_magic.analyses.graph.outline import Outline, outline
from llmsim_magic.analyses.kernels.operator_kinds import operator_kinds
from llmsim_magic.analyses.time.pass_time import OperatorTime
from llmsim_magic.records.trace.recorded import Operator
from llmsim_magic.records.trace.selection import Selection
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views import units


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorFacts:
    """What is known of one operator.

    Attributes:
        order: its place in the pass.
        path: the path of its module.
        op: the class of the module that ran, or the name of the function.
        is_module: whether it is a call of a module.
        kind: the kind of work, such as `matmul`.
        inputs: shape and dtype of each tensor that it is given.
        outputs: shape and dtype of each tensor that it returns.
        weights: name and shape of each parameter that it reads.
        source: file and line of the call; None if unknown.
        params: number of parameters.
        flops: None if a kernel has no formula.
        bytes_read: least bytes read.
        bytes_written: least bytes written.
        memory: most bytes of activations allocated while it runs.
        time_s: predicted seconds; None without a device.
        bottleneck: what limits its time, such as `memory`; None without a device or a kernel.
    """

    order: int
    path: str
    op: str
    is_module: bool
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...]
    source: str | None
    params: int
    flops: int | None
    bytes_read: int
    bytes_written: int
    memory: int
    time_s: float | None
    bottleneck: str | None

    @property
    def name(self) -> str:
        """The last part of the path of a module, or the name of a function."""
        return self.path.rpartition(".")[2] or self.op if self.is_module else self.op


class Contents:
    """Every operator of a pass with its facts, the edges between all of them, and the layers."""

    def __init__(self, trace: Trace, times: Sequence[OperatorTime] | None = None) -> None:
        self.trace = trace
        self.times = times

    @cached_property
    def groups(self) -> tuple[LayerGroup, ...]:
        """The groups of identical layers."""
        return layer_groups(self.trace, ())

    @cached_property
    def counterparts(self) -> tuple[int, ...]:
        """For each operator its counterpart in the first layer of its group; itself elsewhere."""
        return representatives(self.trace, self.groups)

    @cached_property
    def outline(self) -> Outline:
        """Every operator as a node, with every layer by itself."""
        return outline(self.trace, Selection(layers="all"))

    @property
    def orders(self) -> tuple[int, ...]:
        """The orders of the operators that run a kernel."""
        return tuple(node.order for node in self.outline.nodes)

    def members(self, group: LayerGroup) -> list[list[int]]:
        """The orders of the operators of each layer of a group; equal places do equal work."""
        stack, drawn = group.first.stack, set(self.orders)
        by_index = {
            layer.index: orders
            for layer, orders in operators_by_layer(self.trace).items()
            if layer.stack == stack
        }
        return [[order for order in by_index[index] if order in drawn] for index in group.indices]

    def is_in_repeated_layer(self, path: str) -> bool:
        """Whether a module is, or is inside, a layer other than the first of its group."""
        parts = path.split(".")
        return any(".".join(parts[: end + 1]) in self._repeated for end in range(len(parts)))

    @cached_property
    def _repeated(self) -> frozenset[str]:
        return frozenset(
            Layer(group.first.stack, index).path
            for group in self.groups
            for index in group.indices[1:]
        )

    def features(self) -> dict[str, str]:
        """How the first layer of each group differs from the others, by its path."""
        found = distinguishing_features(self.trace, self.groups)
        return {layer.path: feature for layer, feature in found.items()}

    def recorded(self, order: int) -> Operator:
        """The recorded operator at a place of the pass."""
        return self.trace.recorded.operators[self.trace.steps[order][0]]

    def facts(self, order: int) -> OperatorFacts:
        """What is known of one operator; weights of a replayed layer have its own names."""
        operator, cost = self.recorded(order), costs(self.trace)[order]
        replay = self.trace.steps[order][1]
        own_name = replay.map_path if replay else str
        time = None if self.times is None else self.times[order]
        return OperatorFacts(
            order=order,
            path=self.trace.paths[order],
            op=operator.op,
            is_module=operator.kind == "module",
            kind=operator_kinds(self.trace)[order],
            inputs=self._tensors(operator.inputs),
            outputs=self._tensors(operator.outputs),
            weights=tuple(
                f"{own_name(parameter.name)} {units.shape(parameter.shape)} {parameter.dtype}"
                for parameter in cost.parameters
            ),
            source=operator.source,
            params=cost.params,
            flops=cost.flops,
            bytes_read=cost.bytes_read,
            bytes_written=cost.bytes_written,
            memory=alive_by_operator(self.trace)[order],
            time_s=None if time is None else time.seconds,
            bottleneck=time.binds if time is not None and time.seconds else None,
        )

    def tensor(self, index: int) -> str:
        """`[1, 128, 1024] bfloat16`: a recorded tensor."""
        found = self.trace.recorded.tensors[index]
        return f"{units.shape(found.shape)} {found.dtype}"

    def _tensors(self, indices: Sequence[int]) -> tuple[str, ...]:
        return tuple(map(self.tensor, indices))
