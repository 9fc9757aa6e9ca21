"""Record a training step of which layers that repeat earlier ones are replayed."""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

from llmsim_magic.capture.kernels.tensors import tensors_in, unrecorded
from llmsim_magic.capture.meta.partial_evaluation import PartialEvaluation
from llmsim_magic.capture.record.events import BackwardCall, LayerSpan, ReplayCall
from llmsim_magic.capture.replay.layer_matching import Layer
from llmsim_magic.capture.train.layer_replay import (
    LayerReplayer,
    LayerRun,
    Output,
    ReplayedLayer,
    ReplayedLayerFunction,
    StateOfLayer,
    UnequalBackward,
    output_of,
)
from llmsim_magic.capture.train.step_recorder import (
    AUTOGRAD,
    NO_NODE,
    StepRecorder,
    node_number,
)
from llmsim_magic.records.trace.recorded import Pass, Role


class _BackwardKernel(NamedTuple):
    """The place of a kernel of backward, the number of its node, and the id of its parameter.

    Only a node that adds to the gradient of a parameter has one.
    """

    position: tuple[int, int, int]
    node: int
    parameter: int


class ReplayingRecorder(StepRecorder):
    """As `StepRecorder`, with replayed layers.

    Args:
        owners: Role and name of the model's storages, by storage address.
        evaluation: The partial evaluation of the step.
        model: The model.
    """

    def __init__(
        self,
        owners: Mapping[int, tuple[Role, str]],
        evaluation: PartialEvaluation,
        model: torch.nn.Module,
    ) -> None:
        super().__init__(owners)
        self._evaluation = evaluation
        self._replays = LayerReplayer(evaluation, self.table)
        self._runs: list[LayerRun] = []
        self._replayed: list[ReplayedLayer] = []
        self._called: set[str] = set()  # layers, by path
        self._replayed_nodes: set[int] = set()  # numbers of the nodes of replayed layers
        self._uses = Counter(
            id(parameter)
            for part in model.modules()
            for parameter in part._parameters.values()
            if parameter is not None
        )
        self._recomputed: dict[str, tuple[int, int, int]] = {}  # where a layer begins again
        self._recomputed_with_others: set[str] = set()  # by a checkpoint that holds more before it
        self._backward_kernels: list[_BackwardKernel] = []
        self._is_after_replay = False  # no kernel of backward has run since that of a replay

    def start(self, part: Pass) -> None:
        """Note that a pass of the step begins."""
        super().start(part)
        if part == "backward":
            self._replays.forget()

    def layer(self, layer: Layer, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a layer, or replay it if it repeats earlier ones.

        A checkpoint around several layers runs them again in backward, so they all run.
        """
        if self._now == "backward":
            if self._is_replayed(layer):  # in a checkpoint that holds more than the layer
                raise UnequalBackward
            self._recomputed[layer.path] = self._position()
            node = node_number(torch._C._current_autograd_node())
            if node == self._recomputing_node:
                self._recomputed_with_others.add(layer.path)
            self._recomputing_node = node
            return self._run_layer(layer, forward, args, kwargs)
        self._check_first_call(layer)
        if self._is_in_checkpoint() or not self._has_own_parameters(layer):
            return self._run_layer(layer, forward, args, kwargs)
        with unrecorded():
            described = self._replays.describe(layer, (args, kwargs))
            if described is None:
                return self._run_layer(layer, forward, args, kwargs)
            call, key = described
            run = self._replays.repeated(layer, key, call.tensors)
            if run is not None and run.output is not None:
                return self._replay(layer, run, run.output, call.tensors)
            before = StateOfLayer(self._replays, layer, call)
            inputs = self.table.add_all(call.tensors)
            start, node = self._position(), AUTOGRAD._get_sequence_nr()
            assumed, values = self._evaluation.assumed.copy(), call.host_values
            is_leaf = any(each.requires_grad and each.is_leaf for each in call.tensors)
            random_states = self._evaluation.random_states()
            del call, described
        output = self._run_layer(layer, forward, args, kwargs)
        with unrecorded():
            run = LayerRun(
                layer=layer,
                span=self._span(start),
                node_range=(node, AUTOGRAD._get_sequence_nr()),
                inputs=inputs,
                assumed=self._evaluation.assumed - assumed,
            )
            self._runs.append(run)
            tensors = tensors_in((args, kwargs))
            run.output = output_of(output, tensors)
            draws = random_states != self._evaluation.random_states()
            is_repeatable = run.output is not None and not is_leaf and not draws
            if is_repeatable and before.is_unchanged(self._evaluation, (args, kwargs)):
                for each in values:
                    each.release()
                run.key = key
                run.outputs = self.table.add_all(output)
                run.watch(self.table, [*tensors, *tensors_in(output)])
                self._replays.add(run)
        return output

    def _replay(
        self, layer: Layer, run: LayerRun, output: Output, tensors: list[torch.Tensor]
    ) -> Any:
        """Makes the output of a layer that repeats a run."""
        self._drop_ended_helpers()
        if run.span.in_helper:
            self._caller()  # so that its helper is not shown as one operator
        inputs = self.table.add_all(tensors)
        event = ReplayCall(
            path=layer.path,
            of=run.layer.path,
            span=run.span,
            before_kernel=len(self.kernels),
            tensors=(),
            held=(),
            is_first=self._layers.add_replay(layer.path),
        )
        replayed = ReplayedLayer(run=run, forward=event, layer=layer, inputs=inputs, outputs=())
        given = list({id(each): each for each in tensors if each.requires_grad}.values())
        numbers = self.table.add_all(given)
        backward = partial(self._replay_backward, replayed, numbers)
        self._replayed_nodes.add(AUTOGRAD._get_sequence_nr())
        made = list(ReplayedLayerFunction.apply(output, backward, *given))
        replayed.outputs = self.table.add_all(made)
        for storage in {self.table.tensors[number].storage for number in replayed.outputs}:
            self.table.written.add(storage)
        event.tensors = tuple(
            zip((*run.inputs, *run.outputs), (*inputs, *replayed.outputs), strict=True)
        )
        self.events.append(event)
        self._replayed.append(replayed)
        self._saved_before.clear()  # the first operator of the layer has it
        if run.assumed:
            self._evaluation.assumed += run.assumed
        return output.with_tensors(made)

    def _replay_backward(
        self,
        replayed: ReplayedLayer,
        inputs: tuple[int, ...],
        gradients: tuple[torch.Tensor | None, ...],
        made: list[torch.Tensor],
    ) -> None:
        """Notes the backward of a replayed layer, and gives its parameters gradients.

        Raises:
            UnequalBackward: It is not the one backward of the step.
        """
        if self._now != "backward" or replayed.backward is not None or torch.is_grad_enabled():
            raise UnequalBackward
        with unrecorded(), torch._C._DisableTorchDispatch():
            table = self.table
            event = ReplayCall(
                path=replayed.layer.path,
                of=replayed.run.layer.path,
                span=replayed.run.span,
                before_kernel=len(self.kernels),
                tensors=(),
                held=(),
                is_first=False,
                resumes=replayed.forward,
            )
            replayed.backward = event
            self._is_after_replay = True
            self.events.append(event)
            for number, gradient in zip(replayed.outputs, gradients, strict=True):
                if gradient is not None:
                    replayed.gradients[number] = table.add(gradient)
            for number, gradient in zip(inputs, made, strict=True):
                replayed.gradients[number] = table.add(gradient)
                table.written.add(table.tensors[replayed.gradients[number]].storage)
            for parameter in replayed.layer.module.parameters():
                if parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)

    def end_backward(self) -> None:
        """Complete the events of replayed layers by what the layers that they repeat did.

        Raises:
            UnequalBackward: A layer's backward is not like that of the one that it repeats.
        """
        for run in self._runs:
            if run.is_repeated:
                if run.layer.path in self._recomputed_with_others:
                    raise UnequalBackward
                run.backward = self._backward_span(run)
                _check_gradients(run.layer.module)
        for replayed in self._replayed:
            pairs, event = replayed.pairs(self.table), replayed.backward
            if (event is None) is not (replayed.run.backward is None):
                raise UnequalBackward
            if event is not None and replayed.run.backward is not None:
                event.span, event.tensors = replayed.run.backward, pairs
        if self.is_read_inside():
            raise UnequalBackward

    def _backward_span(self, run: LayerRun) -> LayerSpan | None:
        """The events and kernels of a layer's backward.

        Raises:
            UnequalBackward: Kernels of others are among them or directly after them.
        """
        (first, last), found = run.node_range, self._backward_kernels
        own = [place for place, kernel in enumerate(found) if first <= kernel.node < last]
        if not own:
            return None
        end = own[-1] + 1
        while end < len(found) and found[end].node == NO_NODE:
            end += 1
        parameters = set(map(id, run.layer.module.parameters()))
        if not all(
            first <= kernel.node < last or kernel.parameter in parameters
            for kernel in found[own[0] : end]
        ):
            raise UnequalBackward
        start = found[own[0]].position
        events, kernels, calls = min(start, self._recomputed.get(run.layer.path, start))
        last_event, last_kernel, _ = found[end - 1].position
        self._check_gradients_at_border(run, range(kernels, last_kernel + 1))
        return LayerSpan(
            (events, last_event + 1), (kernels, last_kernel + 1), (calls, calls), in_helper=False
        )

    def _check_gradients_at_border(self, run: LayerRun, kernels: range) -> None:
        """Check that a layer's backward makes its inputs' gradients from those of its outputs.

        Raises:
            UnequalBackward: The loss depends on its inputs in other ways as well: here or elsewhere
                a gradient from outside is added to that of an input.
        """
        given, needed = (
            {self._storage_of(run.gradients[each]) for each in numbers if each in run.gradients}
            for numbers in (run.outputs, run.inputs)
        )
        first = self._backward_kernels[0].position[1]
        outside = self._written(range(first, kernels.start)) - given
        read = {
            self._storage_of(number)
            for place in kernels
            for number in self.kernels[place].kernel.inputs
        }
        if not outside.isdisjoint(read) or needed - given - self._written(kernels):
            raise UnequalBackward

    def _storage_of(self, number: int) -> int:
        return self.table.tensors[number].storage

    def _written(self, kernels: range) -> set[int]:
        return {
            self._storage_of(number)
            for place in kernels
            for number in self.kernels[place].kernel.writes
        }

    def _check_first_call(self, layer: Layer) -> None:
        """Check that no layer is called again that was replayed, or that others repeat.

        Raises:
            UnequalBackward: Its second call adds to the gradients of the first.
        """
        if layer.path not in self._called:
            self._called.add(layer.path)
            return
        repeated = {run.layer.path for run in self._runs if run.is_repeated}
        if layer.path in repeated or self._is_replayed(layer):
            raise UnequalBackward

    def _is_replayed(self, layer: Layer) -> bool:
        return any(each.layer is layer for each in self._replayed)

    def _has_own_parameters(self, layer: Layer) -> bool:
        """Whether no parameter of a layer stands anywhere else in the model."""
        return all(
            self._uses[id(parameter)] == 1
            for part in layer.module.modules()
            for parameter in part._parameters.values()
            if parameter is not None
        )

    def _is_in_checkpoint(self) -> bool:
        """Whether the caller of the layer runs inside a checkpoint."""
        outermost, caller = self._open[:1], self._open[-1:]
        return bool(caller) and caller[0].saved_tensor_hook_id != outermost[0].saved_tensor_hook_id

    def _begin_recomputation(self, path: str) -> None:
        self._recomputed.setdefault(path, self._position())

    def _backward_of(self, node: Any) -> BackwardCall:
        number = node_number(node)
        if number in self._replayed_nodes:  # a sum with a gradient from outside of the layer
            raise UnequalBackward
        if number == NO_NODE and self._is_after_replay:  # it would belong to the replayed layer
            raise UnequalBackward
        self._is_after_replay = False
        parameter = id(getattr(node, "variable", None))
        self._backward_kernels.append(_BackwardKernel(self._position(), number, parameter))
        return super()._backward_of(node)


def _check_gradients(module: torch.nn.Module) -> None:
    """Check the gradients of a layer that ran against those that replayed layers were given.

    Raises:
        UnequalBackward: A parameter has none, or one of another layout.
    """
    for parameter in module.parameters():
        if not parameter.requires_grad:
            continue
        gradient = parameter.grad
        if gradient is None or gradient.stride() != parameter.stride():
            raise UnequalBackward
