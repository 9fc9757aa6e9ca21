"""Which modules of two live modules correspond, and which layers fold."""

import copy
from collections import Counter, OrderedDict
from collections.abc import Callable
from itertools import pairwise

import pytest
from torch import nn

from llmsim_magic.analyses.structure.sequence_alignment import align_sequences
from llmsim_magic.analyses.structure.structural_diff import structural_diff
from llmsim_magic.views.tables.differences import change_text
from tests.helpers.difference_rows import (
    Chain,
    difference_rows,
    module_rows,
    trace_of_module,
    unlike,
)


def test_an_edited_copy_shows_the_edits() -> None:
    first = Chain(a=nn.Linear(8, 8), act=nn.ReLU(), b=nn.Linear(8, 8))
    second = copy.deepcopy(first)
    second.b = nn.Linear(8, 16, bias=False)
    second.add_module("c", nn.Linear(16, 4))
    assert unlike(module_rows(first, second)) == [
        ("changed", "b", "b", "weight [8, 8] → [16, 8]; bias [8] → none"),
        ("added", None, "c", ""),
    ]
    assert unlike(module_rows(second, first)) == [
        ("changed", "b", "b", "weight [16, 8] → [8, 8]; bias none → [8]"),
        ("removed", "c", None, ""),
    ]


def test_another_class_at_the_same_path_is_a_change() -> None:
    first = Chain(a=nn.Linear(8, 8), act=nn.ReLU())
    second = Chain(a=nn.Linear(8, 8), act=nn.Dropout(0.5))
    assert unlike(module_rows(first, second)) == [("changed", "act", "act", "type ReLU → Dropout")]
    third = Chain(a=nn.Linear(8, 8), act=nn.Dropout(0.25))
    assert unlike(module_rows(second, third)) == [("changed", "act", "act", "p 0.5 → 0.25")]


def test_renamed_modules_correspond_in_order() -> None:
    first = Chain(q_proj=nn.Linear(8, 8), k_proj=nn.Linear(8, 8), out=nn.Linear(8, 8))
    second = Chain(query=nn.Linear(8, 8), key=nn.Linear(8, 8), out=nn.Linear(8, 8))
    assert unlike(module_rows(first, second)) == [
        ("changed", "q_proj", "query", "name q_proj → query"),
        ("changed", "k_proj", "key", "name k_proj → key"),
    ]


def test_a_renamed_module_that_could_be_either_of_two_corresponds_to_neither() -> None:
    first = Chain(a=nn.Linear(8, 8), b=nn.Linear(8, 8))
    second = Chain(c=nn.Linear(8, 8))
    assert unlike(module_rows(first, second)) == [
        ("removed", "a", None, ""),
        ("removed", "b", None, ""),
        ("added", None, "c", ""),
    ]


def test_a_name_counts_more_than_a_place() -> None:
    first = Chain(a=nn.Linear(8, 8), norm=nn.LayerNorm(8), b=nn.Linear(8, 8))
    second = Chain(b=nn.Linear(8, 8), norm=nn.LayerNorm(8), a=nn.Linear(8, 8))
    assert unlike(module_rows(first, second)) == []


def test_modules_of_no_common_kind_stay_apart() -> None:
    first = Chain(a=nn.Linear(8, 8), x=nn.Dropout())
    second = Chain(a=nn.Linear(8, 8), y=nn.LayerNorm(8))
    assert unlike(module_rows(first, second)) == [
        ("removed", "x", None, ""),
        ("added", None, "y", ""),
    ]


def test_a_module_around_a_part_shifts_it_by_a_level() -> None:
    def inner() -> Chain:
        return Chain(up=nn.Linear(8, 32), act=nn.GELU(), down=nn.Linear(32, 8))

    first = Chain(norm=nn.LayerNorm(8), mlp=inner())
    second = Chain(norm=nn.LayerNorm(8), checkpointed=Chain(mlp=inner()))
    assert unlike(module_rows(first, second)) == [("added", None, "checkpointed", "")]
    alone = Chain(**dict(inner().named_children()))
    assert unlike(module_rows(first, alone)) == [
        ("removed", "norm", None, ""),
        ("removed", "mlp", None, ""),
    ]


def test_a_module_is_found_inside_the_one_that_wraps_it() -> None:
    first = Chain(a=nn.Linear(8, 8), b=nn.Linear(8, 8))
    second = Chain(a=nn.Linear(8, 8), b=nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
    assert unlike(module_rows(first, second)) == [
        ("added", None, "b", ""),
        ("changed", "b", "b.0", "name b → 0"),
        ("added", None, "b.1", ""),
    ]
    third = Chain(a=nn.Linear(8, 8), b=nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 8)))
    assert unlike(module_rows(first, third)) == [
        ("changed", "b", "b", "type Linear → Sequential; weight [8, 8] → none; bias [8] → none"),
        ("added", None, "b.0", ""),
        ("added", None, "b.1", ""),
    ]


def test_a_part_that_moves_up_leaves_its_siblings_where_they_are() -> None:
    first = Chain(norm=nn.LayerNorm(8), mlp=Chain(up=nn.Linear(8, 32), down=nn.Linear(32, 8)))
    second = Chain(norm=nn.LayerNorm(8), up=nn.Linear(8, 32), down=nn.Linear(32, 8))
    rows = module_rows(first, second)
    assert ("same", "norm", "norm", "") in rows
    assert {row[:3] for row in rows if row[0] == "removed"} >= {("removed", "mlp", None)}


def test_a_list_of_unlike_layers_is_aligned_by_structure_and_not_by_index() -> None:
    def model(*widths: int) -> Chain:
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        return Chain(layers=nn.ModuleList(layers))

    rows = module_rows(model(8, 16, 32, 4), model(8, 16, 16, 32, 4))
    assert unlike(rows) == [("added", None, "layers.1", "")]
    assert ("same", "layers.1", "layers.2", "") in rows
    assert unlike(module_rows(model(8, 16, 4), model(8, 32, 4))) == [
        ("changed", "layers.0", "layers.0", "weight [16, 8] → [32, 8]; bias [16] → [32]"),
        ("changed", "layers.1", "layers.1", "weight [4, 16] → [4, 32]"),
    ]


def test_one_layer_of_many_that_was_edited_is_a_row_of_its_own() -> None:
    def block() -> Chain:
        return Chain(norm=nn.LayerNorm(8), up=nn.Linear(8, 32), down=nn.Linear(32, 8))

    first = Chain(layers=nn.ModuleList(block() for _ in range(6)))
    second = copy.deepcopy(first)
    layers = list(second.get_submodule("layers").children())
    layers[3].up = nn.Linear(8, 32, bias=False)
    layers[4].add_module("last", nn.LayerNorm(8))
    rows = module_rows(first, second)
    assert unlike(rows) == [
        ("changed", "layers.3.up", "layers.3.up", "bias [32] → none"),
        ("added", None, "layers.4.last", ""),
    ]
    assert ("same", "layers.0–2, 5.up", "layers.0–2, 5.up", "") in rows
    fewer = Chain(layers=nn.ModuleList(block() for _ in range(4)))
    assert ("same", "layers.0–3", "layers.0–2, 5", "") in module_rows(fewer, second)


def test_a_single_layer_corresponds_to_many() -> None:
    def model(layers: int) -> Chain:
        return Chain(layers=nn.ModuleList(nn.Linear(8, 8) for _ in range(layers)))

    assert unlike(module_rows(model(1), model(6))) == [
        ("changed", "layers.0", "layers.0–5", "layers ×1 → ×6")
    ]


class _Scaled(nn.Linear):
    """A linear layer with an attribute."""

    def __init__(self, **attributes: float) -> None:
        super().__init__(8, 8)
        for name, value in attributes.items():
            setattr(self, name, value)


def _stack(make: Callable[[int], nn.Module], layers: int = 4) -> Chain:
    return Chain(layers=nn.ModuleList(make(index) for index in range(layers)))


@pytest.mark.parametrize(
    ("make", "paths"),
    [
        (lambda index: _Scaled(layer_idx=index), ["layers.0–3"]),
        (lambda index: _Scaled(layer_number=index + 1), ["layers.0–3"]),
        (lambda index: _Scaled(drop_rate=index / 10), ["layers.0–3"]),
        (lambda index: _Scaled(dilation=2**index), [f"layers.{index}" for index in range(4)]),
        (lambda index: _Scaled(window=index % 2), ["layers.0, 2", "layers.1, 3"]),
        (lambda index: _Scaled(scale=index % 2 / 2), ["layers.0, 2", "layers.1, 3"]),
    ],
)
def test_layers_fold_unless_more_than_their_number_differs(
    make: Callable[[int], nn.Module], paths: list[str]
) -> None:
    trace = trace_of_module(_stack(make))
    found = [row[1] for row in difference_rows(trace, trace)]
    assert [path for path in found if path and path.startswith("layers.")] == paths


def test_numbers_of_layers_are_no_change() -> None:
    first = _stack(lambda index: _Scaled(layer_idx=index), layers=1)
    second = _stack(lambda index: _Scaled(layer_idx=index + 3), layers=5)
    assert unlike(module_rows(first, second)) == [
        ("changed", "layers.0", "layers.0–4", "layers ×1 → ×5")
    ]


def test_a_module_that_becomes_a_layer() -> None:
    def inner() -> Chain:
        return Chain(up=nn.Linear(8, 32), down=nn.Linear(32, 8))

    rows = module_rows(Chain(mlp=inner()), Chain(mlps=nn.ModuleList([inner(), inner()])))
    assert unlike(rows) == [
        ("added", None, "mlps", ""),
        ("changed", "mlp", "mlps.0–1", "name mlp → 0; layers ×1 → ×2"),
    ]


def test_layers_in_layers_fold_and_count_as_their_product() -> None:
    def model(experts: int) -> Chain:
        return _stack(
            lambda _: Chain(experts=nn.ModuleList(nn.Linear(8, 8) for _ in range(experts)))
        )

    rows = structural_diff(trace_of_module(model(2)), trace_of_module(model(3)))
    expert = rows[-1]
    assert expert.first is not None
    assert expert.second is not None
    assert expert.first.place.path == "layers.0–3.experts.0–1"
    assert (expert.first.place.layers, expert.second.place.layers) == (8, 12)
    assert expert.first.place.layer_indices == (0, 1, 2, 3)
    assert [change_text(change) for change in expert.changes] == ["layers ×2 → ×3"]


def test_modules_without_names_in_common_and_a_single_module() -> None:
    assert module_rows(nn.Linear(8, 8), nn.Linear(8, 4)) == [
        ("changed", "", "", "weight [8, 8] → [4, 8]; bias [8] → [4]")
    ]
    wrapped = nn.Sequential(OrderedDict(fc=nn.Linear(8, 8)))
    statuses = Counter(row[0] for row in module_rows(nn.Linear(8, 8), wrapped))
    assert statuses == {"added": 1, "same": 1}


def test_the_cheapest_alignment_is_found_and_ties_are_not_certain() -> None:
    costs = [[0.5, 2.0], [2.0, 0.25]]
    found = align_sequences(costs, [1, 1], [1, 1], margin=0.01)
    assert [(m.first, m.second, m.is_certain) for m in found] == [(0, 0, True), (1, 1, True)]
    tied = align_sequences([[0.5], [0.5]], [1, 1], [1], margin=0.01)
    assert [(m.first, m.second, m.is_certain) for m in tied] == [(0, 0, False)]
    assert align_sequences([[float("inf")]], [1], [1], margin=0.01) == []
    assert align_sequences([], [], [1], margin=0.01) == []
