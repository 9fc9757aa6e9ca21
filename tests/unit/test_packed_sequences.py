"""Recurrent layers over packed sequences have the FLOPs and shapes of a real forward."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    unpack_sequence,
)

import llmsim_magic as llmsim
from tests.helpers.real_forward import really_run, shapes_in

WIDTH, HIDDEN, TIME = 5, 7, 9
LENGTHS = [9, 7, 3, 2]
UNSORTED = [3, 9, 2, 7]
SLOW = pytest.mark.slow
CELLS: tuple[tuple[Callable[..., nn.Module], dict[str, Any]], ...] = (
    *product((nn.LSTM, nn.GRU, nn.RNN), ({}, {"num_layers": 3, "dropout": 0.5, "bias": False})),
    (nn.LSTM, {"proj_size": 3, "num_layers": 2}),
    (nn.RNN, {"nonlinearity": "relu"}),
)


def real(model: nn.Module, *inputs: Any) -> tuple[int, list[tuple[int, ...]]]:
    """FLOPs and output shapes of a real forward, by torch's own loops instead of oneDNN."""
    with torch.backends.mkldnn.flags(enabled=False):
        seen = really_run(model.eval(), *inputs)
    return seen.flops, list(shapes_in(seen.output))


def traced(model: nn.Module, *inputs: Any) -> tuple[int, list[tuple[int, ...]]]:
    """FLOPs and output shapes of the trace."""
    report = llmsim.trace(model, inputs=inputs)
    return report.summary.value["flops"], report.modules.output_shapes.iloc[0]


def initial_states(cell: nn.Module, batch: int) -> Any:
    rows = cell.num_layers * (2 if cell.bidirectional else 1)
    hidden = torch.zeros(rows, batch, getattr(cell, "proj_size", 0) or HIDDEN)
    return (hidden, torch.zeros(rows, batch, HIDDEN)) if isinstance(cell, nn.LSTM) else hidden


def test_a_packed_sequence_is_one_input_of_as_many_samples_as_its_first_step() -> None:
    model, packed = (
        nn.GRU(WIDTH, HIDDEN),
        pack_padded_sequence(torch.zeros(TIME, 4, WIDTH), LENGTHS),
    )
    report = llmsim.trace(model, inputs=packed)
    assert report.summary.value["flops"] == 2 * sum(LENGTHS) * 3 * HIDDEN * (WIDTH + HIDDEN)
    assert report.trace.workload.batch == len(LENGTHS)


ALL_OPTIONS = tuple(product((False, True), repeat=3))
OPTIONS = [
    options if options in (ALL_OPTIONS[0], ALL_OPTIONS[-1]) else pytest.param(*options, marks=SLOW)
    for options in ALL_OPTIONS
]


@pytest.mark.parametrize(("batch_first", "bidirectional", "has_states"), OPTIONS)
@pytest.mark.parametrize(("cell", "settings"), CELLS)
def test_a_recurrent_layer_costs_what_it_really_computes(
    cell: Any, settings: dict[str, Any], batch_first: bool, bidirectional: bool, has_states: bool
) -> None:
    model = cell(WIDTH, HIDDEN, batch_first=batch_first, bidirectional=bidirectional, **settings)
    padded = torch.zeros(4, TIME, WIDTH) if batch_first else torch.zeros(TIME, 4, WIDTH)
    states = (initial_states(model, 4),) if has_states else ()
    packed = pack_padded_sequence(padded, LENGTHS, batch_first)
    assert traced(model, packed, *states) == real(model, packed, *states)
    assert traced(model, padded, *states) == real(model, padded, *states)


class Tagger(nn.Module):
    """Packs its input by lengths, runs a recurrent layer and tags every step of the padding."""

    def __init__(self, pack: Callable[[Tensor, Any], PackedSequence], cell: Any = nn.LSTM) -> None:
        super().__init__()
        self.pack = pack
        self.rnn = cell(WIDTH, HIDDEN, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * HIDDEN, 3)

    def forward(self, x: Tensor, lengths: Any) -> tuple[Tensor, Tensor]:
        packed = self.pack(x, lengths)
        padded, sizes = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.out(padded), sizes


def unsorted(x: Tensor, lengths: Any) -> PackedSequence:
    return pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)


PACKS: dict[str, Callable[[Tensor, Any], PackedSequence]] = {
    "as given": unsorted,
    "on the host": lambda x, lengths: unsorted(x, torch.as_tensor(lengths).cpu()),
    "a list": lambda x, lengths: unsorted(x, torch.as_tensor(lengths).tolist()),
    "sorted": lambda x, lengths: pack_padded_sequence(
        x, torch.as_tensor(lengths).sort(descending=True).values, batch_first=True
    ),
    "time first": lambda x, lengths: pack_padded_sequence(
        x.transpose(0, 1), lengths, enforce_sorted=False
    ),
    "of a mask": lambda x, lengths: unsorted(
        x, (torch.arange(TIME) < torch.as_tensor(lengths)[:, None]).sum(1)
    ),
    "of each sample": lambda x, lengths: pack_sequence(
        [sample[: int(length)] for sample, length in zip(x, lengths, strict=True)],
        enforce_sorted=False,
    ),
    "unpacked and packed again": lambda x, lengths: pack_sequence(
        unpack_sequence(unsorted(x, lengths)), enforce_sorted=False
    ),
    "of a multiple": lambda x, lengths: unsorted(x, (torch.as_tensor(lengths) * 2 + 1) // 2),
}


@pytest.mark.parametrize("given", [list, torch.tensor], ids=["list", "tensor"])
@pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS)
def test_lengths_that_are_known_give_the_steps_of_a_real_forward(
    pack: Callable[[Tensor, Any], PackedSequence], given: Callable[[list[int]], Any]
) -> None:
    model, x, lengths = Tagger(pack), torch.zeros(4, TIME, WIDTH), given(UNSORTED)
    flops, shapes = traced(model, x, lengths)
    assert (flops, shapes) == real(model, x, lengths)
    matrices = 2 * 4 * HIDDEN * (WIDTH + HIDDEN)  # of both directions
    assert flops == 2 * sum(UNSORTED) * matrices + 2 * 4 * TIME * 2 * HIDDEN * 3


LENGTHS_OF_DATA: dict[str, Callable[[Tensor], Any]] = {
    "a sum": lambda x: (x.abs().sum(-1) > 0).sum(1),
    "on the host": lambda x: (x.abs().sum(-1) > 0).sum(1).cpu(),
    "a list": lambda x: (x.abs().sum(-1) > 0).sum(1).tolist(),
}


@pytest.mark.parametrize("lengths_of", LENGTHS_OF_DATA.values(), ids=LENGTHS_OF_DATA)
def test_lengths_that_depend_on_the_data_are_refused(lengths_of: Callable[[Tensor], Any]) -> None:
    model = Tagger(lambda x, lengths: unsorted(x, lengths_of(x)))
    with pytest.raises(llmsim.LlmsimError, match="lengths of pack_padded_sequence depend on the"):
        llmsim.trace(model, inputs=(torch.zeros(4, TIME, WIDTH), None))


def test_lengths_that_do_not_fit_are_refused_as_by_torch() -> None:
    model, x = Tagger(unsorted), torch.zeros(4, TIME, WIDTH)
    with pytest.raises(RuntimeError) as expected:
        model(x, [3, 0, 2, 7])
    with pytest.raises(llmsim.LlmsimError) as caught:
        llmsim.trace(model, inputs=(x, [3, 0, 2, 7]))
    assert str(expected.value).partition(",")[0] in str(caught.value)
