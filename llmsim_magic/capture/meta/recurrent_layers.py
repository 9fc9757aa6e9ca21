"""Recurrent layers with a derivative: cuDNN's kernels, which have no meta kernel of their own."""

from collections.abc import Sequence
from typing import Any

import torch

from llmsim_magic.capture.kernels.fused_kernels import RecurrentArguments, recurrent_outputs
from llmsim_magic.capture.kernels.tensors import tensors_in
from llmsim_magic.capture.meta.partial_evaluation import PartialEvaluation

aten = torch.ops.aten
META = torch.device("meta")
# cuDNN's number of each kind of layer, and what each step keeps for the derivative: in multiples
# of the hidden size, its gates and the cell state of an LSTM.
_MODES: dict[Any, int] = {
    torch._VF.rnn_relu: 0,
    torch._VF.rnn_tanh: 1,
    torch._VF.lstm: 2,
    torch._VF.gru: 3,
}
_KEPT = {0: 1, 1: 1, 2: 4 + 1, 3: 3}


def has_derivative(arguments: RecurrentArguments) -> bool:
    """Whether autograd records a call of a recurrent layer."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors_in(arguments))


def differentiable_outputs(func: Any, arguments: RecurrentArguments) -> tuple[torch.Tensor, ...]:
    """Return the outputs of a recurrent layer on `meta`, as `recurrent_outputs`, with a derivative.

    Args:
        func: `torch._VF.lstm`, `gru`, `rnn_tanh` or `rnn_relu`.
        arguments: What it was called with.
    """
    states = arguments.states
    hidden, cell = states if isinstance(states, (tuple, list)) else (states, None)
    width = (hidden if cell is None else cell).shape[-1]
    projected = hidden.shape[-1]
    has_projection = projected != width
    sizes = [] if arguments.batch_sizes is None else arguments.batch_sizes.tolist()
    found = aten._cudnn_rnn(
        arguments.input,
        list(arguments.weights),
        (4 if arguments.has_biases else 2) + has_projection,
        None,
        hidden,
        cell,
        _MODES[func],
        width,
        projected if has_projection else 0,
        arguments.num_layers,
        arguments.batch_first,
        arguments.dropout,
        arguments.train,
        arguments.bidirectional,
        sizes,
        None,
    )
    return tuple(found[:2] if cell is None else found[:3])


def recurrent_kernel_outputs(
    evaluation: PartialEvaluation,
    input: torch.Tensor,
    weights: Sequence[torch.Tensor],
    weight_stride: int,
    weight_buffer: torch.Tensor | None,
    hidden: torch.Tensor,
    cell: torch.Tensor | None,
    mode: int,
    width: int,
    projected: int,
    layers: int,
    batch_first: bool,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_sizes: Sequence[int],
    dropout_state: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    """`_cudnn_rnn`: output, final states, what the derivative reads beside them, and no buffer.

    cuDNN does not document how much it keeps: the least is taken, the gates and, of an LSTM, the
    cell states of all steps.
    """
    states = hidden if cell is None else (hidden, cell)
    outputs = recurrent_outputs(
        RecurrentArguments(
            input=input,
            states=states,
            weights=weights,
            batch_sizes=None,
            bidirectional=bidirectional,
            has_biases=True,
            num_layers=layers,
            dropout=dropout,
            train=train,
            batch_first=batch_first,
        )
    )
    steps = input.shape[:-1].numel()
    kept = steps * width * layers * (2 if bidirectional else 1) * _KEPT[mode]
    reserve = input.new_empty(kept * input.element_size(), dtype=torch.uint8, device=META)
    none = input.new_empty(0, device=META)
    return (*outputs, *(none for _ in range(3 - len(outputs))), reserve, none)


def recurrent_derivative(
    evaluation: PartialEvaluation,
    input: torch.Tensor,
    weights: Sequence[torch.Tensor],
    weight_stride: int,
    weight_buffer: torch.Tensor,
    hidden: torch.Tensor,
    cell: torch.Tensor | None,
    *rest: Any,
) -> tuple[Any, ...]:
    """`_cudnn_rnn_backward`: gradients of the input, the states and the weights, if wanted."""
    wanted = rest[-1]
    states = (
        torch.empty_like(each, device=META) if each is not None and is_wanted else None
        for each, is_wanted in zip((input, hidden, cell), wanted, strict=False)
    )
    return (*states, [torch.empty_like(each, device=META) for each in weights if wanted[3]])
