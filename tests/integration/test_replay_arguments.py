"""A layer is replayed for arguments that equal those of an earlier one, and for no others."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from llmsim_magic.capture.models.live_model_copy import copy_without_weights
from llmsim_magic.capture.models.meta_model import MetaModel
from llmsim_magic.capture.run import run_with_inputs
from llmsim_magic.records.trace.trace import Trace
from tests.helpers.replay_comparison import differences


def replayed(model: MetaModel, x: torch.Tensor) -> Trace:
    """The trace with replays, held against the one in which every layer runs."""
    full, found = (run_with_inputs(model, (x,), {}, replay=replay) for replay in (False, True))
    assert not full.replays
    assert list(differences(full, found)) == []
    return found


class Scaled(nn.Module):
    """A layer that reads the values of an argument on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        return self.linear(x)[:, : int(sizes[0])]


class Narrowing(nn.Module):
    """Gives its layers other values, or the same values in a new tensor."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes
        self.layers = nn.ModuleList([Scaled() for _ in sizes])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer, size in zip(self.layers, self.sizes, strict=True):
            layer(x, torch.tensor([size]))
        return x


@pytest.mark.parametrize(
    ("sizes", "ran"), [([4, 4, 4], {"layers.0"}), ([4, 3, 4], {"layers.0", "layers.1"})]
)
def test_a_layer_is_replayed_for_equal_values_and_not_for_others(
    sizes: list[int], ran: set[str]
) -> None:
    model = copy_without_weights(Narrowing(sizes), "narrowing")
    trace = replayed(model, torch.zeros(1, 5, 8))
    paths = {operator.path for operator in trace.recorded.operators}
    assert {path.removesuffix(".linear") for path in paths if path.endswith("linear")} == ran


class Reading(nn.Module):
    """A layer that reads a value of an argument, and one more argument."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, table: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + other[0] * table[0, : int(table[0, 1])].sum()


class Changing(nn.Module):
    """Gives all its layers the same two tensors, and changes one before the fourth layer."""

    def __init__(self, change: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
        super().__init__()
        self.change = change
        self.embed = nn.Linear(8, 8)
        self.layers = nn.ModuleList([Reading() for _ in range(6)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table, other = torch.arange(64).view(8, 8) % 5 + 1, self.embed(x[0])
        for place, layer in enumerate(self.layers):
            if place == 3:
                self.change(table, other)
            x = layer(x, table, other)
        return x


def with_other_data(table: torch.Tensor, other: torch.Tensor) -> None:
    table.data = table.t()


def with_other_layout(table: torch.Tensor, other: torch.Tensor) -> None:
    other.data = other.t()


@pytest.mark.parametrize(
    ("change", "ran"),
    [
        (lambda table, other: None, {"layers.0"}),
        (lambda table, other: table.sum(), {"layers.0"}),
        (lambda table, other: table.add_(1), {"layers.0", "layers.3"}),
        (lambda table, other: table.t_(), {"layers.0", "layers.3"}),
        (with_other_data, {"layers.0", "layers.3"}),
        (lambda table, other: table.copy_(other), {"layers.0", "layers.3"}),
        (lambda table, other: other.t_(), {"layers.0", "layers.3"}),
        (with_other_layout, {"layers.0", "layers.3"}),
    ],
)
def test_the_same_tensor_is_another_argument_once_it_was_changed(
    change: Callable[[torch.Tensor, torch.Tensor], Any], ran: set[str]
) -> None:
    model = copy_without_weights(Changing(change), "changing")
    trace = replayed(model, torch.zeros(8, 8, 8))
    paths = {operator.path for operator in trace.recorded.operators}
    assert {path.removesuffix(".linear") for path in paths if path.endswith("linear")} == ran


class Reshaped(nn.Module):
    """Changes the layout of a tensor in place, and makes one with a factory function."""

    def __init__(self, reshape: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.reshape = reshape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = x * torch.ones(4)
        read = made.relu()
        self.reshape(made)
        return made.sigmoid().sum() + read.sum()


def with_more_dimensions(made: torch.Tensor) -> None:
    made.data = made[None, None]


@pytest.mark.parametrize(
    ("reshape", "shape"),
    [
        (lambda made: made.unsqueeze_(0), (1, 3, 4)),
        (lambda made: made.t_(), (4, 3)),
        (lambda made: made.resize_(2, 6), (2, 6)),
        (with_more_dimensions, (1, 1, 3, 4)),
    ],
)
def test_a_tensor_whose_layout_changed_is_recorded_as_another(
    reshape: Callable[[torch.Tensor], Any], shape: tuple[int, ...]
) -> None:
    model = copy_without_weights(Reshaped(reshape), "reshaped")
    record = replayed(model, torch.zeros(3, 4)).recorded
    kernels = {kernel.name: kernel for kernel in record.kernels}
    assert record.shapes(kernels["aten.relu.default"].inputs) == [(3, 4)]
    assert record.shapes(kernels["aten.sigmoid.default"].inputs) == [shape]
    # Holding what a factory function makes would let torch copy it, by a kernel.
    ones = kernels["aten.ones.default"].outputs
    assert [each.name for each in record.kernels if each.inputs == ones] == []


class Sliced(nn.Module):
    """A layer that views a slice in ways of its own, writes into it and returns a part."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, part: torch.Tensor, more: torch.Tensor) -> Any:
        part[..., 4:].mul_(2)
        y = self.linear(x) * part.transpose(0, 1) + part[:, :4].sum() + more.sum()
        return y, part[..., 2:6]


class Slicing(nn.Module):
    """Gives each layer a slice of one tensor and one more, by the functions' choice."""

    def __init__(self, part: Callable[..., Any], more: Callable[..., Any]) -> None:
        super().__init__()
        self.part, self.more = part, more
        self.embed = nn.Linear(8, 48)
        self.layers = nn.ModuleList([Sliced() for _ in range(6)])

    def forward(self, x: torch.Tensor) -> Any:
        parts = self.embed(x).view(8, 6, 8)
        kept = []
        for place, layer in enumerate(self.layers):
            x, part = layer(x, self.part(parts, place), self.more(parts, place))
            kept.append(part * 2)
        return x, kept, parts.sum()


def own(parts: torch.Tensor, place: int) -> torch.Tensor:
    return parts[:, place]


@pytest.mark.parametrize(
    ("part", "more", "ran"),
    [
        (own, own, {"layers.0"}),
        (own, lambda parts, place: parts[:, place, 1:], {"layers.0"}),
        (own, lambda parts, place: parts.new_ones(3), {"layers.0"}),
        (own, lambda parts, place: parts, {f"layers.{n}" for n in range(6)}),
        (own, lambda parts, place: parts[:, 5], {f"layers.{n}" for n in range(6)}),
        (lambda parts, place: parts[:, place // 3], own, {f"layers.{n}" for n in (0, 1, 2, 4, 5)}),
        (lambda parts, place: parts[:, place].clone(), own, {"layers.0"}),
        (lambda parts, place: parts[:, place % 2], own, {f"layers.{n}" for n in (0, 2, 4)}),
    ],
)
def test_slices_may_lie_elsewhere_but_not_otherwise_to_each_other(
    part: Callable[..., Any], more: Callable[..., Any], ran: set[str]
) -> None:
    model = copy_without_weights(Slicing(part, more), "slicing")
    found = replayed(model, torch.zeros(8, 8))
    paths = {operator.path for operator in found.recorded.operators}
    assert {path.removesuffix(".linear") for path in paths if path.endswith("linear")} == ran


class Counted(nn.Module):
    """A layer that writes known or unknown values into a tensor on the host."""

    def __init__(self, is_known: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.is_known = is_known

    def forward(self, x: torch.Tensor, kept: Any) -> torch.Tensor:
        count = kept if isinstance(kept, torch.Tensor) else kept.counts[self.layer_idx]
        x = self.linear(x)[:, : int(count) + 4]
        count.add_(2) if self.is_known else count.copy_(x.sum())
        return nn.functional.pad(x, (0, 8 - x.shape[1]))


class Counting(nn.Module):
    """Runs its layers twice, each with a count of its own, and reads the counts afterwards."""

    def __init__(self, are_known: bool, in_state: bool) -> None:
        super().__init__()
        self.in_state = in_state
        self.layers = nn.ModuleList([Counted(are_known) for _ in range(4)])
        for place, layer in enumerate(self.layers):
            layer.layer_idx = place

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        counts = [torch.zeros((), dtype=torch.long) for _ in self.layers]
        state = SimpleNamespace(counts=counts)
        for layer, count in [*zip(self.layers, counts, strict=True)] * 2:
            x = layer(x, state if self.in_state else count)
        return [x[:, : int(count)] for count in counts]


class Numbered(nn.Module):
    """A layer that gets an index, by which it chooses what it uses of a part that it may share."""

    def __init__(self, adapters: nn.ModuleList) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.adapters = adapters

    def forward(self, x: torch.Tensor, layer_idx: int) -> torch.Tensor:
        return self.linear(x) + self.adapters[layer_idx % len(self.adapters)](x)


class Numbering(nn.Module):
    """Gives its layers their index plus `first`."""

    def __init__(self, layers: list[nn.Module], first: int) -> None:
        super().__init__()
        self.layers, self.first = nn.ModuleList(layers), first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for place, layer in enumerate(self.layers):
            x = layer(x, layer_idx=place + self.first)
        return x


@pytest.mark.parametrize(
    ("is_shared", "first", "module", "number"),
    [
        (False, 0, "transformers.models.numbered", 3),
        (True, 0, "transformers.models.numbered", 0),
        (False, 1, "transformers.models.numbered", 0),  # not the index of the layer
        (False, 0, "of_a_user", 0),
    ],
)
def test_an_argument_that_is_the_index_of_its_layer_does_not_tell_layers_apart(
    monkeypatch: pytest.MonkeyPatch, is_shared: bool, first: int, module: str, number: int
) -> None:
    monkeypatch.setattr(Numbered, "__module__", module)

    def adapters(count: int) -> nn.ModuleList:
        return nn.ModuleList([nn.Linear(8, 8, bias=False) for _ in range(count)])

    shared = adapters(2)
    layers: list[nn.Module] = [Numbered(shared if is_shared else adapters(1)) for _ in range(4)]
    model = copy_without_weights(Numbering(layers, first), "numbering")
    found = replayed(model, torch.zeros(1, 8))
    assert sum(each.path.count(".") == 1 for each in found.replays) == number


class Cycled(nn.Module):
    """A layer that gets an offset: of its part of the state, of a position, or of nothing kept."""

    def __init__(self, layer_idx: int, use: str) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.layer_idx = layer_idx
        self.use = use

    def forward(self, x: torch.Tensor, state: Any, offset: int = 0) -> torch.Tensor:
        if self.use == "part":
            state.kept[self.layer_idx + offset] = x * 2
        elif self.use == "position":
            state.kept[self.layer_idx] = x * 2
        width = 8 if self.use == "part" else 8 - offset
        return self.linear(x)[:, :width] @ x.new_ones(width, 8)


class Cycling(nn.Module):
    """Runs its layers three times, each time with other parts of the state."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Cycled(place, use) for place in range(2)])

    def forward(self, x: torch.Tensor) -> Any:
        state = SimpleNamespace(kept={})
        for offset in (0, 2, 4):
            for layer in self.layers:
                x = layer(x, state, offset=offset)
        return x, list(state.kept.values())


@pytest.mark.parametrize(("use", "number"), [("part", 4), ("position", 1), ("nothing", 1)])
def test_an_offset_that_selects_the_part_of_the_state_does_not_tell_calls_apart(
    monkeypatch: pytest.MonkeyPatch, use: str, number: int
) -> None:
    monkeypatch.setattr(Cycled, "__module__", "transformers.models.cycled")
    found = replayed(copy_without_weights(Cycling(use), "cycling"), torch.zeros(1, 8))
    assert len(found.replays) == number


@pytest.mark.parametrize("in_state", [False, True])
@pytest.mark.parametrize(("are_known", "sizes"), [(True, [4] * 4), (False, [1] * 4)])
def test_a_replayed_layer_writes_on_the_host_what_the_first_one_wrote(
    monkeypatch: pytest.MonkeyPatch, are_known: bool, sizes: list[int], in_state: bool
) -> None:
    monkeypatch.setattr(Counted, "__module__", "transformers.models.counted")
    model = copy_without_weights(Counting(are_known, in_state), "counting")
    found = replayed(model, torch.zeros(1, 8))
    record = found.recorded
    assert [record.tensors[result].shape[1] for result in record.results] == sizes
    assert len(found.replays) == 6
