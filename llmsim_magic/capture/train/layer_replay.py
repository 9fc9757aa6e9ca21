"""Replay the layers of a training step: run the first two of each kind, and repeat them for others.

A layer that repeats an earlier one is a single node of autograd, whose backward makes gradients of
the same layout. Once the step is over, what the layers that ran did in backward is known, and
whether those gradients were laid out so.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from llmsim_magic.capture.kernels.tensors import TensorTable
from llmsim_magic.capture.meta.partial_evaluation import PartialEvaluation
from llmsim_magic.capture.record.events import LayerSpan, ReplayCall
from llmsim_magic.capture.replay.layer_equality import LayerCall, StateBeforeLayer, describe_call
from llmsim_magic.capture.replay.layer_matching import Layer
from llmsim_magic.capture.replay.layer_state import PLAIN_TYPES

_RUNS_BEFORE_REPLAY = 2  # what the first layer reads may be held or freed in another way


class UnequalBackward(Exception):
    """A layer that was replayed, or its backward, is not provably that of the layer it repeats."""


@dataclass(slots=True, eq=False, kw_only=True)
class LayerRun:
    """A layer that ran.

    Attributes:
        layer: The layer.
        key: Equal for a call that does the same; None if it cannot be replayed.
        span: Of its forward.
        node_range: The nodes of autograd that it made, as a range of their numbers.
        inputs: The numbers of the tensors in its arguments.
        outputs: The numbers of the tensors in its output.
        output: The output's structure and the layouts of its tensors.
        gradients: The gradients of tensors in arguments and output, by the tensors' numbers.
        backward: The span of its backward, once that is known.
        assumed: Values that the partial evaluation assumed.
    """

    layer: Layer
    key: Any = None
    span: LayerSpan
    node_range: tuple[int, int]
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    output: "Output | None" = None
    gradients: dict[int, int] = field(default_factory=dict)
    backward: LayerSpan | None = None
    assumed: Any = None
    is_repeated: bool = False

    def watch(self, table: TensorTable, tensors: list[torch.Tensor]) -> None:
        """Note the gradients of tensors when backward has computed them."""
        for tensor in tensors:
            if tensor.requires_grad:
                tensor.register_hook(partial(self._note, table, table.add(tensor)))

    def _note(self, table: TensorTable, number: int, gradient: torch.Tensor) -> None:
        self.gradients[number] = table.add(gradient)


@dataclass(slots=True, kw_only=True)
class Output:
    """The structure of a layer's output, and how to make its tensors again.

    `leaves` has a plain value, or the place of a tensor in `layouts`.
    """

    leaves: list[Any]
    places: dict[int, int]
    structure: Any
    layouts: list[tuple[Any, Any, torch.dtype]]
    requires_grad: list[bool]

    def make_tensors(self) -> list[torch.Tensor]:
        return [
            torch.empty_strided(shape, strides, dtype=dtype, device="meta")
            for shape, strides, dtype in self.layouts
        ]

    def with_tensors(self, tensors: list[torch.Tensor]) -> Any:
        leaves = [
            tensors[self.places[place]] if place in self.places else leaf
            for place, leaf in enumerate(self.leaves)
        ]
        return tree_unflatten(leaves, self.structure)


def output_of(value: Any, inputs: list[torch.Tensor]) -> Output | None:
    """Describe an output; None if it has other values than dense tensors of its own on `meta`."""
    leaves, structure = tree_flatten(value)
    used = {tensor.untyped_storage()._cdata for tensor in inputs}
    found = Output(leaves=[], places={}, structure=structure, layouts=[], requires_grad=[])
    for place, leaf in enumerate(leaves):
        if not isinstance(leaf, torch.Tensor):
            if type(leaf) not in PLAIN_TYPES:
                return None
            found.leaves.append(leaf)
            continue
        address = leaf.untyped_storage()._cdata
        is_plain = type(leaf) is torch.Tensor and leaf.is_meta and not leaf.storage_offset()
        if leaf.requires_grad and leaf.is_leaf:
            return None  # made before the step, as no layer makes one
        if not is_plain or leaf.layout is not torch.strided or address in used:
            return None
        used.add(address)
        found.places[place] = len(found.layouts)
        found.leaves.append(None)
        found.layouts.append((leaf.shape, leaf.stride(), leaf.dtype))
        found.requires_grad.append(leaf.requires_grad)
    return found


class LayerReplayer:
    """Decides which layers of a step repeat earlier ones.

    Args:
        evaluation: The partial evaluation of the step.
        table: The tensors of the step.
    """

    def __init__(self, evaluation: PartialEvaluation, table: TensorTable) -> None:
        self._evaluation = evaluation
        self._table = table
        self._runs: dict[int, list[LayerRun]] = {}
        self._differentiated: set[int] = set()  # inputs of layers that require gradients

    def describe(self, layer: Layer, arguments: Any) -> tuple[LayerCall, Any] | None:
        """Describe a call and its key; None if it cannot be compared."""
        call = describe_call(self._evaluation, layer, arguments, {})
        if call is None or call.states:
            return None
        key = (
            call.key,
            [tensor.requires_grad for tensor in call.tensors],
            [part.training for part in layer.module.modules()],
            torch.is_grad_enabled(),
        )
        return call, key

    def repeated(self, layer: Layer, key: Any, tensors: list[torch.Tensor]) -> LayerRun | None:
        """The run that a call repeats; None if the layer has to run.

        A tensor that several layers differentiate, such as the states of an encoder, has a gradient
        to which each adds: those layers all run.
        """
        numbers = {self._table.add(each) for each in tensors if each.requires_grad}
        is_shared = not numbers.isdisjoint(self._differentiated)
        self._differentiated |= numbers
        equal = [run for run in self._runs.get(layer.kind, ()) if run.key == key]
        if is_shared or len(equal) < _RUNS_BEFORE_REPLAY or not numbers:
            return None
        run = equal[-1]
        run.is_repeated = True
        return run

    def add(self, run: LayerRun) -> None:
        """Let later layers repeat a run."""
        self._runs.setdefault(run.layer.kind, []).append(run)

    def forget(self) -> None:
        """Drop the keys, which refer to tensors on the host."""
        for runs in self._runs.values():
            for run in runs:
                run.key = None
        self._runs.clear()


class StateOfLayer:
    """What a layer that runs may not change if later layers are to repeat it."""

    def __init__(self, replayer: LayerReplayer, layer: Layer, call: LayerCall) -> None:
        self._before = StateBeforeLayer(layer, call)
        self._replayer = replayer
        self._layer = layer

    def is_unchanged(self, evaluation: PartialEvaluation, arguments: Any) -> bool:
        """Whether the layer wrote into none of its arguments, and changed no attribute."""
        described = self._replayer.describe(self._layer, arguments)
        return (
            described is not None
            and self._before.is_unchanged(described[0])
            and not self._before.written()
            and not self._before.host_writes(evaluation)
        )


@dataclass(slots=True, eq=False, kw_only=True)
class ReplayedLayer:
    """A layer that repeats a run.

    Attributes:
        run: The run.
        forward: The event of its forward.
        layer: The layer.
        inputs: The numbers of the tensors in its arguments.
        outputs: The numbers of the tensors in its output.
        gradients: As in `LayerRun`.
        backward: The event of its backward, if it had one.
    """

    run: LayerRun
    forward: ReplayCall
    layer: Layer
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    gradients: dict[int, int] = field(default_factory=dict)
    backward: ReplayCall | None = None

    def pairs(self, table: TensorTable) -> tuple[tuple[int, int], ...]:
        """The gradients of the run, each with that of this layer.

        Raises:
            UnequalBackward: One has no gradient or another layout where the other has one.
        """
        run = self.run
        mine = (*self.inputs, *self.outputs)
        found = []
        for number, own in zip((*run.inputs, *run.outputs), mine, strict=True):
            one, other = run.gradients.get(number), self.gradients.get(own)
            if one is None and other is None:
                continue
            if one is None or other is None or _layout(table, one) != _layout(table, other):
                raise UnequalBackward
            found.append((one, other))
        return tuple(dict.fromkeys(found))


def _layout(table: TensorTable, number: int) -> tuple[Any, ...]:
    tensor = table.tensors[number]
    return tensor.shape, tensor.strides, tensor.dtype, tensor.offset


class ReplayedLayerFunction(torch.autograd.Function):
    """The single node of autograd of a layer that is replayed."""

    @staticmethod
    def forward(
        ctx: Any, output: Output, backward: Callable[..., Any], *inputs: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.backward_of_layer = backward
        ctx.layouts = [(each.shape, each.stride(), each.dtype) for each in inputs]
        with torch._C._DisableTorchDispatch():
            made = output.make_tensors()
        ctx.mark_non_differentiable(
            *(each for each, needs in zip(made, output.requires_grad, strict=True) if not needs)
        )
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[Any, ...]:
        with torch._C._DisableTorchDispatch():
            made = [
                torch.empty_strided(shape, strides, dtype=dtype, device="meta")
                for shape, strides, dtype in ctx.layouts
            ]
        ctx.backward_of_layer(gradients, made)
        return (None, None, *made)
