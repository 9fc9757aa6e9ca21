"""Dependencies and bytes of modules small enough to check by hand."""

import functools
import random
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import llmsim_magic as llmsim
from llmsim_magic.analyses.kernels.aliasing import overlap
from llmsim_magic.records.trace import trace as record

Tensor = torch.Tensor
Forward = Callable[..., Any]
Flow = dict[str, set[str]]

X = torch.ones(2, 8)
FLOAT, LONG = 4, 8  # bytes


# small modules, and what is said of them


def net(forward: Forward, **parts: Any) -> nn.Module:
    """A module with these parts and this forward."""
    module: nn.Module = type("Net", (nn.Module,), {"forward": forward})()
    for name, part in parts.items():
        setattr(module, name, part)
    return module


def lin(read: int = 8, write: int = 8) -> nn.Module:
    return nn.Linear(read, write, bias=False)


def report_of(module: nn.Module, *args: Any, **keywords: Any) -> Any:
    report = llmsim.trace(module, inputs=keywords or args or (X,))
    _holds_together(report)
    return report


def _holds_together(report: Any) -> None:
    """`edges` and `depends_on` say the same, and nothing waits for what comes later."""
    waits = {
        (source, target) for target, sources in report.ops.depends_on.items() for source in sources
    }
    edges = set(zip(report.edges.source, report.edges.target, strict=True))
    assert edges == waits
    assert all(source < target for source, target in edges)
    assert all(sources == sorted(set(sources)) for sources in report.ops.depends_on)


def names_of(report: Any) -> list[str]:
    """A module by its path, a function by its name; from the second on with a number: `a#2`."""
    count: dict[str, int] = {}
    names = []
    for path, op, kind in zip(report.ops.path, report.ops.op, report.ops.kind, strict=True):
        name = path if kind == "module" else op.strip("_")
        count[name] = count.get(name, 0) + 1
        names.append(name if count[name] == 1 else f"{name}#{count[name]}")
    return names


def flow(module: nn.Module, *args: Any, **keywords: Any) -> Flow:
    """Every operator with those that it waits for, in execution order."""
    report = report_of(module, *args, **keywords)
    names = names_of(report)
    return {
        name: {names[source] for source in sources}
        for name, sources in zip(names, report.ops.depends_on, strict=True)
    }


def moved(module: nn.Module, *args: Any, **keywords: Any) -> dict[str, tuple[int, int]]:
    """Bytes read and written of every operator."""
    report = report_of(module, *args, **keywords)
    return {
        name: (int(read), int(written))
        for name, read, written in zip(
            names_of(report), report.ops.bytes_read, report.ops.bytes_written, strict=True
        )
    }


# residuals


def test_a_residual_waits_for_both_of_its_branches() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.a(x)
        return h + self.c(self.b(h))

    found = flow(net(forward, a=lin(), b=lin(), c=lin()))
    assert found == {"a": set(), "b": {"a"}, "c": {"b"}, "add": {"a", "c"}}


def test_a_residual_of_the_input_waits_for_its_branch_alone() -> None:
    found = flow(net(lambda self, x: x + self.a(x), a=lin()))
    assert found == {"a": set(), "add": {"a"}}


def test_branches_that_share_nothing_but_the_input_do_not_wait_for_each_other() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        left = self.a(x).relu()
        right = self.b(x).tanh()
        return left * right

    assert flow(net(forward, a=lin(), b=lin())) == {
        "a": set(),
        "relu": {"a"},
        "b": set(),
        "tanh": {"b"},
        "mul": {"relu", "tanh"},
    }


def test_a_result_that_nobody_reads_makes_nobody_wait() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.a(x)
        return self.b(x)

    assert flow(net(forward, a=lin(), b=lin())) == {"a": set(), "b": set()}


# views

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "view": lambda t: t.view(4, 4),
    "view, -1": lambda t: t.view(-1),
    "reshape": lambda t: t.reshape(16),
    "flatten": lambda t: t.flatten(),
    "unflatten": lambda t: t.unflatten(1, (2, 4)),
    "transpose": lambda t: t.transpose(0, 1),
    "permute": lambda t: t.permute(1, 0),
    "movedim": lambda t: t.movedim(0, 1),
    "swapaxes": lambda t: t.swapaxes(0, 1),
    "t": lambda t: t.t(),
    ".T": lambda t: t.T,
    ".mT": lambda t: t.mT,
    "squeeze": lambda t: t.unsqueeze(0).squeeze(0),
    "None": lambda t: t[None],
    "expand": lambda t: t[None].expand(3, 2, 8),
    "broadcast_to": lambda t: torch.broadcast_to(t, (3, 2, 8)),
    "row": lambda t: t[1],
    "columns": lambda t: t[:, 2:5],
    "steps": lambda t: t[:, 1::3],
    "ellipsis": lambda t: t[..., -1],
    "narrow": lambda t: t.narrow(1, 4, 4),
    "select": lambda t: t.select(0, 1),
    "chunk": lambda t: t.chunk(2, -1)[1],
    "split": lambda t: t.split([3, 5], 1)[1],
    "tensor_split": lambda t: torch.tensor_split(t, 3, 1)[2],
    "unbind": lambda t: t.unbind(0)[1],
    "iteration": lambda t: list(t)[1],
    "diagonal": lambda t: t.diagonal(),
    "unfold": lambda t: t.unfold(1, 4, 2),
    "as_strided": lambda t: t.as_strided((2, 2), (8, 1), 3),
    "detach": lambda t: t.detach(),
    ".data": lambda t: t.data,
    "view as int": lambda t: t.view(torch.int32),
    "view as half": lambda t: t.view(torch.float16),
    "complex": lambda t: torch.view_as_complex(t.view(2, 4, 2)),
    "complex and back": lambda t: torch.view_as_real(torch.view_as_complex(t.view(2, 4, 2))),
    "contiguous, already": lambda t: t.contiguous(),
    "to, already": lambda t: t.to(torch.float32),
    "a chain": lambda t: t.view(2, 2, 4).transpose(1, 2)[:, 1:, None].expand(2, 3, 5, 2)[1],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_reader_of_a_view_waits_for_the_writer_of_the_base_and_the_view_is_no_operator(
    view: Callable[[Tensor], Tensor],
) -> None:
    found = flow(net(lambda self, x: torch.neg(view(self.a(x))), a=lin()))
    assert found == {"a": set(), "neg": {"a"}}


COPIES: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.T.contiguous(),
    "reshape": lambda t: t.T.reshape(16),
    "flatten": lambda t: t.T.flatten(),
    "clone": lambda t: t.clone(),
    "to": lambda t: t.to(torch.float64),
    "double": lambda t: t.double(),
    "repeat": lambda t: t.repeat(2, 1),
}


@pytest.mark.parametrize(("name", "copy"), COPIES.items(), ids=COPIES)
def test_a_copy_is_an_operator_between_its_base_and_its_reader(
    name: str, copy: Callable[[Tensor], Tensor]
) -> None:
    found = flow(net(lambda self, x: torch.neg(copy(self.a(x))), a=lin()))
    assert found == {"a": set(), name: {"a"}, "neg": {name}}


def test_heads_split_and_merged_by_views_join_projections_and_attention_directly() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        q, k, v = (
            t.view(1, 3, 2, 4).transpose(1, 2) for t in (*self.qk(x).chunk(2, -1), self.v(x))
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).reshape(1, 3, 8))

    module = net(forward, qk=lin(8, 16), v=lin(), o=lin())
    assert flow(module, torch.ones(1, 3, 8)) == {
        "qk": set(),
        "v": set(),
        "scaled_dot_product_attention": {"qk", "v"},
        "o": {"scaled_dot_product_attention"},
    }


def test_parts_of_one_projection_go_their_own_ways() -> None:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k = self.both(x).split(8, -1)
        return self.c(self.a(q)), self.b(k)

    module = net(forward, both=lin(8, 16), a=lin(), b=lin(), c=lin())
    assert flow(module) == {"both": set(), "a": {"both"}, "c": {"a"}, "b": {"both"}}


def test_an_edge_carries_the_tensor_that_the_reader_was_handed() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        _, right = self.a(x).chunk(2, -1)
        return self.b(right)

    (edge,) = report_of(net(forward, a=lin(8, 12), b=lin(6, 3))).edges.itertuples()
    assert (edge.source, edge.target, edge.shape, edge.dtype) == (0, 1, (2, 6), "float32")


# slices of one buffer

Slicing = tuple[Any, ...]
ALL = slice(None)

CUTS: dict[str, tuple[Slicing, Slicing]] = {
    "columns": ((ALL, slice(0, 4)), (ALL, slice(4, 8))),
    "rows": ((slice(0, 1),), (slice(1, 2),)),
    "uneven columns": ((ALL, slice(0, 3)), (ALL, slice(3, 8))),
    "even and odd columns": ((ALL, slice(0, 8, 2)), (ALL, slice(1, 8, 2))),
}


def _halves(one: Slicing, other: Slicing, make: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    """A buffer whose parts are written by `a` and `b` and read by `c`, `d`, and whole by `e`."""

    def forward(self: Any, x: Tensor) -> tuple[Tensor, ...]:
        buffer = make(self, x)
        buffer[one] = self.a(x)[one]
        buffer[other] = self.b(x)[other]
        return buffer[one].exp(), buffer[other].sin(), buffer.abs()

    return net(forward, a=lin(), b=lin(), base=lin())


@pytest.mark.parametrize(("one", "other"), CUTS.values(), ids=CUTS)
def test_a_reader_of_one_part_of_a_buffer_does_not_wait_for_the_writer_of_another(
    one: Slicing, other: Slicing
) -> None:
    found = flow(_halves(one, other, lambda self, x: self.base(x)))
    first, second = "setitem", "setitem#2"
    assert found[first] == {"a"}
    assert found[second] == {"b"}
    assert first in found["exp"]
    assert second not in found["exp"]
    assert second in found["sin"]
    assert first not in found["sin"]
    assert {first, second} <= found["abs"]


@pytest.mark.parametrize(("one", "other"), list(CUTS.values())[:3], ids=list(CUTS)[:3])
def test_a_part_that_was_written_over_whole_no_longer_waits_for_what_stood_there(
    one: Slicing, other: Slicing
) -> None:
    found = flow(_halves(one, other, lambda self, x: self.base(x)))
    assert found["exp"] == {"setitem"}
    assert found["sin"] == {"setitem#2"}


def test_of_two_writes_to_the_same_part_its_reader_waits_for_the_later() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        buffer = self.base(x)
        buffer[:, :4] = self.a(x)
        buffer[:, :4].relu_()
        return buffer[:, :4].exp()

    found = flow(net(forward, base=lin(), a=lin(8, 4)))
    assert "setitem" in found["relu"]
    assert "relu" in found["exp"]
    assert "setitem" not in found["exp"]


def test_a_part_that_was_not_written_over_still_waits_for_what_stands_there() -> None:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, ...]:
        buffer = self.base(x)
        buffer[:, :4] = self.a(x)
        return buffer[:, 4:].exp(), buffer[:, 2:6].sin(), buffer.abs()

    found = flow(net(forward, base=lin(), a=lin(8, 4)))
    assert found["exp"] == {"base"}
    assert found["sin"] == {"base", "setitem"}
    assert found["abs"] == {"base", "setitem"}


ALLOCATIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "empty": lambda self, x: torch.empty(2, 8, device=x.device),
    "new_empty": lambda self, x: x.new_empty(2, 8),
    "empty_like": lambda self, x: torch.empty_like(self.base(x)),
}


@pytest.mark.parametrize(("name", "make"), ALLOCATIONS.items(), ids=ALLOCATIONS)
def test_a_buffer_that_was_only_allocated_makes_nobody_wait_and_moves_no_bytes(
    name: str, make: Callable[[Any, Tensor], Tensor]
) -> None:
    """`torch.empty` writes nothing: there is nothing of it to read. It may be no operator."""
    module = _halves(*CUTS["columns"], make)
    found = flow(module)
    assert found["exp"] == {"setitem"}
    assert found["sin"] == {"setitem#2"}
    assert found["abs"] == {"setitem", "setitem#2"}
    assert found.get(name, set()) == set()
    assert moved(module).get(name, (0, 0)) == (0, 0)


def test_a_buffer_of_the_module_is_followed_as_any_other_tensor() -> None:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, ...]:
        before = self.table.exp()
        self.table[:2] = self.a(x)
        return before, self.table[:2].sin(), self.table[2:].abs()

    module = net(forward, a=lin())
    module.register_buffer("table", torch.zeros(4, 8))
    assert flow(module) == {
        "exp": set(),
        "a": set(),
        "setitem": {"a"},
        "sin": {"setitem"},
        "abs": set(),
    }


def test_a_complex_and_a_real_view_of_one_buffer_are_measured_alike() -> None:
    """Offsets count elements: those of a complex view are twice as wide as its real ones."""

    def forward(self: Any, x: Tensor) -> tuple[Tensor, ...]:
        rotated = torch.view_as_complex(self.a(x).view(2, 4, 2)) * 1j
        real = torch.view_as_real(rotated).flatten(1)
        return real[:1].exp(), real[1:].sin(), real[:, 7:].abs()

    found = flow(net(forward, a=lin()))
    assert found["mul"] == {"a"}
    assert (found["exp"], found["sin"], found["abs"]) == ({"mul"}, {"mul"}, {"mul"})


def test_a_real_write_over_half_of_a_complex_buffer_leaves_the_other_half() -> None:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, ...]:
        made = torch.view_as_complex(self.a(x).view(2, 4, 2)) * 1j
        real = torch.view_as_real(made).flatten(1)
        real[:1] = self.b(x)[:1]
        return made[1:].exp(), made[:1].sin()

    found = flow(net(forward, a=lin(), b=lin()))
    assert "mul" in found["exp"]
    assert "setitem" not in found["exp"]
    assert "setitem" in found["sin"]


# in place


def test_an_in_place_function_stands_between_the_writer_and_later_readers() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.a(x)
        before = h.exp()
        h.relu_()
        return before + self.b(h)

    assert flow(net(forward, a=lin(), b=lin())) == {
        "a": set(),
        "exp": {"a"},
        "relu": {"a"},
        "b": {"relu"},
        "add": {"exp", "b"},
    }


def test_an_in_place_module_stands_between_the_writer_and_later_readers() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.a(x)
        self.act(h)
        return self.b(h)

    module = net(forward, a=lin(), act=nn.ReLU(inplace=True), b=lin())
    assert flow(module) == {"a": set(), "act": {"a"}, "b": {"act"}}


def test_an_in_place_add_waits_for_both_and_is_what_readers_wait_for() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.a(x)
        h.add_(self.b(x))
        h += self.c(x)
        return h.exp()

    report = report_of(net(forward, a=lin(), b=lin(), c=lin()))
    a, b, add, c, iadd, _ = range(6)
    assert report.ops.depends_on.tolist() == [[], [], [a, b], [], [add, c], [iadd]]


def test_an_in_place_write_through_a_view_is_seen_through_the_base_and_its_other_views() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.a(x)
        turned = h.T
        h.view(16).relu_()
        return turned.exp()

    assert flow(net(forward, a=lin())) == {"a": set(), "relu": {"a"}, "exp": {"relu"}}


OVERWRITES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "copy": lambda h, new: h.copy_(new),
    "setitem": lambda h, new: h.__setitem__(Ellipsis, new),
    "add": lambda h, new: torch.add(new, 1, out=h),
}


@pytest.mark.parametrize(("name", "write"), OVERWRITES.items(), ids=OVERWRITES)
def test_what_overwrites_a_tensor_whole_does_not_wait_for_what_stood_there(
    name: str, write: Callable[[Tensor, Tensor], Any]
) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h, new = self.a(x), self.b(x)
        write(h, new)
        return h.exp()

    found = flow(net(forward, a=lin(), b=lin()))
    assert found == {"a": set(), "b": set(), name: {"b"}, "exp": {name}}


@pytest.mark.parametrize("name", ["zero", "fill"])
def test_what_fills_a_tensor_waits_for_nothing(name: str) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.a(x)
        h.zero_() if name == "zero" else h.fill_(2.0)
        return h.exp()

    assert flow(net(forward, a=lin())) == {"a": set(), name: set(), "exp": {name}}


def test_an_index_copy_keeps_the_rows_that_it_does_not_touch() -> None:
    def forward(self: Any, x: Tensor, rows: Tensor) -> Tensor:
        h = self.a(x)
        h.index_copy_(0, rows, self.b(x)[:1])
        return h.exp()

    found = flow(net(forward, a=lin(), b=lin()), X, torch.tensor([1]))
    assert found["index_copy"] == {"a", "b"}
    assert "index_copy" in found["exp"]
    assert found["exp"] <= {"index_copy", "a"}


def test_a_masked_fill_waits_for_the_mask_and_for_what_it_fills() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.a(x).masked_fill_(self.b(x) > 0, 0.0).exp()

    found = flow(net(forward, a=lin(), b=lin()))
    assert found["masked_fill"] == {"a", "gt"}
    assert found["exp"] == {"masked_fill"}


SHAPE_ONLY: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros_like": torch.zeros_like,
    "ones_like": torch.ones_like,
    "full_like": lambda t: torch.full_like(t, 2.0),
    "rand_like": torch.rand_like,
    "new_zeros": lambda t: t.new_zeros(t.shape),
    "new_ones": lambda t: t.new_ones(2, 8),
    "new_full": lambda t: t.new_full((2, 8), 2.0),
}


@pytest.mark.parametrize(("name", "make"), SHAPE_ONLY.items(), ids=SHAPE_ONLY)
def test_a_tensor_made_in_the_likeness_of_another_reads_nothing_of_it(
    name: str, make: Callable[[Tensor], Tensor]
) -> None:
    report = report_of(net(lambda self, x: self.b(x) + make(self.a(x)), a=lin(), b=lin()))
    names = names_of(report)
    made = report.ops.iloc[names.index(name)]
    assert made.depends_on == []
    assert made.bytes_read == 0


# operators that run no kernel


@pytest.mark.parametrize(
    "idle", [nn.Dropout(0.5), nn.Identity(), nn.Flatten(), nn.Sequential(), nn.Dropout1d()]
)
def test_edges_pass_through_a_module_that_does_nothing(idle: nn.Module) -> None:
    module = net(lambda self, x: self.b(self.idle(self.a(x))), a=lin(), idle=idle, b=lin())
    assert flow(module) == {"a": set(), "idle": {"a"}, "b": {"a"}}
    assert moved(module)["idle"] == (0, 0)


def test_dropout_as_a_function_is_no_operator_in_inference() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(F.dropout(self.a(x), 0.5, training=self.training))

    assert flow(net(forward, a=lin(), b=lin()).train()) == {"a": set(), "b": {"a"}}


def test_a_broadcast_reader_waits_for_the_small_tensor() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        gate = self.gate(x)
        wide = gate.expand(2, 8)
        return self.a(x) * wide + gate

    assert flow(net(forward, gate=lin(8, 1), a=lin())) == {
        "gate": set(),
        "a": set(),
        "mul": {"a", "gate"},
        "add": {"mul", "gate"},
    }


# helpers


def squash(x: Tensor) -> Tensor:
    half = x * 0.5
    return half * (half.tanh() + 1)


def score(x: Tensor, y: Tensor) -> Tensor:
    return torch.matmul(x * 0.5, y.T) + 1


def squash_and_shift(x: Tensor) -> Tensor:
    return squash(x) + 1


def squash_and_score(x: Tensor, y: Tensor) -> Tensor:
    return torch.matmul(squash(x), y.T)


def power(x: Tensor, times: int) -> Tensor:
    return x if times == 0 else power(x * 2, times - 1)


def total(*tensors: Tensor) -> Tensor:
    return sum(tensors[1:], tensors[0]) * 2


def blend(x: Tensor, *, gate: Tensor, **rest: Tensor) -> Tensor:
    return x * gate + rest["bias"]


def split_heads(x: Tensor) -> Tensor:
    return x.view(2, 2, 4).transpose(0, 1)


def swap(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return y * 2, x * 2


def test_a_helper_of_elementwise_functions_is_one_operator_named_after_it() -> None:
    found = flow(net(lambda self, x: self.b(squash(self.a(x))), a=lin(), b=lin()))
    assert found == {"a": set(), "squash": {"a"}, "b": {"squash"}}


def test_a_helper_with_a_matmul_is_taken_apart() -> None:
    found = flow(net(lambda self, x: score(self.a(x), self.b(x)), a=lin(), b=lin()))
    assert found == {
        "a": set(),
        "b": set(),
        "mul": {"a"},
        "matmul": {"mul", "b"},
        "add": {"matmul"},
    }


def test_a_helper_called_twice_in_a_row_is_two_operators() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = squash(self.a(x))
        x = squash(x)
        return self.b(squash(squash(x)))

    assert flow(net(forward, a=lin(), b=lin())) == {
        "a": set(),
        "squash": {"a"},
        "squash#2": {"squash"},
        "squash#3": {"squash#2"},
        "squash#4": {"squash#3"},
        "b": {"squash#4"},
    }


def test_a_helper_called_in_a_loop_is_one_operator_for_each_round() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        for _ in range(3):
            x = squash(x)
        return x

    assert flow(net(forward, a=lin())) == {
        "squash": set(),
        "squash#2": {"squash"},
        "squash#3": {"squash#2"},
    }


def test_two_calls_of_a_helper_on_different_tensors_do_not_wait_for_each_other() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return squash(self.a(x)) + squash(self.b(x))

    found = flow(net(forward, a=lin(), b=lin()))
    assert found["squash"] == {"a"}
    assert found["squash#2"] == {"b"}
    assert found["add"] == {"squash", "squash#2"}


def test_nested_helpers_are_one_operator_named_after_the_outermost() -> None:
    found = flow(net(lambda self, x: squash_and_shift(self.a(x)), a=lin()))
    assert found == {"a": set(), "squash_and_shift": {"a"}}


def test_a_whole_helper_inside_one_that_is_taken_apart_stays_whole() -> None:
    found = flow(net(lambda self, x: squash_and_score(self.a(x), self.b(x)), a=lin(), b=lin()))
    assert found == {"a": set(), "b": set(), "squash": {"a"}, "matmul": {"squash", "b"}}


def test_a_helper_that_calls_a_module_is_taken_apart() -> None:
    def through(module: nn.Module, x: Tensor) -> Tensor:
        return module(x * 2) + x

    found = flow(net(lambda self, x: through(self.b, self.a(x)), a=lin(), b=lin()))
    assert found == {"a": set(), "mul": {"a"}, "b": {"mul"}, "add": {"a", "b"}}


def test_a_helper_that_calls_itself_is_one_operator() -> None:
    found = flow(net(lambda self, x: power(self.a(x), 3), a=lin()))
    assert found == {"a": set(), "power": {"a"}}


def test_a_helper_of_views_alone_is_no_operator() -> None:
    found = flow(net(lambda self, x: split_heads(self.a(x)).exp(), a=lin()))
    assert found == {"a": set(), "exp": {"a"}}


def test_a_helper_method_is_one_operator_named_after_it() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = lin(), lin()

        def gate(self, x: Tensor) -> Tensor:
            return x.sigmoid() * 2

        @staticmethod
        def shift(x: Tensor) -> Tensor:
            return (x + 1) * 3

        def project(self, x: Tensor) -> Tensor:
            return self.b(x) * 5

        def forward(self, x: Tensor) -> Tensor:
            return self.project(self.shift(self.gate(self.a(x))))

    report = report_of(Gated())
    assert [name.rpartition(".")[2] for name in names_of(report)] == [
        "a",
        "gate",
        "shift",
        "b",
        "mul",
    ]
    assert report.ops.depends_on.tolist() == [[], [0], [1], [2], [3]]


def test_functions_in_a_lambda_are_operators_of_the_forward() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        act = lambda t: (t * 2).tanh()  # noqa: E731
        return self.b(act(self.a(x)))

    found = flow(net(forward, a=lin(), b=lin()))
    assert found == {"a": set(), "mul": {"a"}, "tanh": {"mul"}, "b": {"tanh"}}


def test_functions_in_a_comprehension_are_operators_of_the_forward() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        found = [part(x) * 2 for part in (self.a, self.b)]
        signs = {place: one.sign() for place, one in enumerate(found)}
        return torch.cat(tuple(signs[place].exp() for place in signs))

    assert flow(net(forward, a=lin(), b=lin())) == {
        "a": set(),
        "mul": {"a"},
        "b": set(),
        "mul#2": {"b"},
        "sign": {"mul"},
        "sign#2": {"mul#2"},
        "exp": {"sign"},
        "exp#2": {"sign#2"},
        "cat": {"exp", "exp#2"},
    }


def test_a_generator_that_reads_between_its_yields_waits_for_what_it_reads() -> None:
    """What a helper does after others ran in between is no part of what it did before."""

    def pieces(x: Tensor, box: list[Tensor]) -> Iterator[Tensor]:
        yield x * 2
        yield box[0].exp()

    def forward(self: Any, x: Tensor) -> Tensor:
        box: list[Tensor] = []
        steps = pieces(self.a(x), box)
        box.append(self.b(next(steps)))
        return self.c(next(steps))

    report = report_of(net(forward, a=lin(), b=lin(), c=lin()))
    names = names_of(report)
    behind: set[int] = set()
    left = [names.index("c")]
    while left:
        for source in report.ops.depends_on[left.pop()]:
            behind.add(source)
            left.append(source)
    assert {"a", "b"} <= {names[order] for order in behind}


def test_a_helper_shows_every_tensor_that_it_was_given() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return blend(total(self.a(x), x), gate=self.b(x), bias=self.c(x))

    report = report_of(net(forward, a=lin(), b=lin(8, 1), c=lin(8, 8)))
    ops = report.ops.set_index("op")
    assert ops.depends_on["total"] == [0]
    assert ops.depends_on["blend"] == [1, 2, 3]
    assert ops.input_shapes["total"] == [(2, 8), (2, 8)]
    assert ops.input_shapes["blend"] == [(2, 8), (2, 1), (2, 8)]


def test_readers_of_one_result_of_a_helper_wait_for_the_helper() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y, z = swap(self.a(x), self.b(x))
        return self.c(y) + self.d(z)

    found = flow(net(forward, a=lin(), b=lin(), c=lin(), d=lin()))
    assert found["swap"] == {"a", "b"}
    assert found["c"] == {"swap"}
    assert found["d"] == {"swap"}


# modules


def test_a_sequential_is_a_chain_of_its_parts() -> None:
    inner = nn.Sequential(lin(), nn.GELU())
    assert flow(nn.Sequential(lin(), nn.ReLU(), inner, nn.Softmax(-1))) == {
        "0": set(),
        "1": {"0"},
        "2.0": {"1"},
        "2.1": {"2.0"},
        "3": {"2.1"},
    }


def test_a_leaf_alone_is_the_one_operator_of_its_pass() -> None:
    report = report_of(lin())
    assert names_of(report) == [""]
    assert report.ops.depends_on.tolist() == [[]]
    assert len(report.edges) == 0


def test_a_module_called_twice_is_two_operators() -> None:
    found = flow(net(lambda self, x: self.a(self.a(x).relu()), a=lin()))
    assert found == {"a": set(), "relu": {"a"}, "a#2": {"relu"}}


def test_a_module_under_two_names_is_followed_as_one() -> None:
    shared = lin()
    report = report_of(net(lambda self, x: self.b(self.a(x)), a=shared, b=shared))
    assert report.ops.depends_on.tolist() == [[], [0]]


def test_a_parallel_list_of_modules_is_read_by_what_joins_it() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.stack([part(x) for part in self.parts])

    module = net(forward, parts=nn.ModuleList([lin(), lin(), lin()]))
    assert flow(module) == {
        "parts.0": set(),
        "parts.1": set(),
        "parts.2": set(),
        "stack": {"parts.0", "parts.1", "parts.2"},
    }


def test_tied_weights_tie_no_operators() -> None:
    emb, head = nn.Embedding(10, 8), lin(8, 10)
    head.weight = emb.weight
    module = net(lambda self, ids: self.head(self.emb(ids)), emb=emb, head=head)
    assert flow(module, torch.tensor([[1, 2]])) == {"emb": set(), "head": {"emb"}}


def test_a_weight_used_by_a_function_is_no_edge_from_its_owner() -> None:
    def forward(self: Any, ids: Tensor) -> Tensor:
        return F.linear(self.emb(ids), self.emb.weight)

    report = report_of(net(forward, emb=nn.Embedding(10, 8)), torch.tensor([[1, 2]]))
    assert names_of(report) == ["emb", "linear"]
    assert report.ops.depends_on.tolist() == [[], [0]]
    assert report.ops.params.tolist() == [80, 80]


def test_einsum_is_one_operator_that_waits_for_all_its_operands() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.einsum("bi,bj,kj->bik", self.a(x), self.b(x), self.c(x))

    assert flow(net(forward, a=lin(), b=lin(), c=lin())) == {
        "a": set(),
        "b": set(),
        "c": set(),
        "einsum": {"a", "b", "c"},
    }


@dataclass
class Answer:
    hidden: Tensor
    pooled: Tensor | None = None


RESULTS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda t: t,
    "tuple": lambda t: (t, None),
    "list": lambda t: [t],
    "dict": lambda t: {"hidden": t, "count": 3},
    "dataclass": Answer,
    "nested": lambda t: {"all": [(t,), Answer(t)]},
}


@pytest.mark.parametrize("wrap", RESULTS.values(), ids=RESULTS)
def test_what_a_model_returns_counts_as_written_however_it_is_wrapped(
    wrap: Callable[[Tensor], Any],
) -> None:
    module = net(lambda self, x: wrap(self.a(x) + 1), a=lin())
    assert flow(module) == {"a": set(), "add": {"a"}}
    assert moved(module)["add"] == (2 * 8 * FLOAT, 2 * 8 * FLOAT)


def test_a_model_that_returns_nothing_is_traced_all_the_same() -> None:
    def forward(self: Any, x: Tensor) -> None:
        self.b(self.a(x).relu())

    assert flow(net(forward, a=lin(), b=lin())) == {"a": set(), "relu": {"a"}, "b": {"relu"}}


def test_a_module_inside_that_hands_a_dataclass_on_is_read_through_it() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = lin(), lin()

        def forward(self, x: Tensor) -> Answer:
            return Answer(self.a(x), self.b(x))

    def forward(self: Any, x: Tensor) -> Tensor:
        answer = self.pair(x)
        return self.c(answer.pooled)

    found = flow(net(forward, pair=Pair(), c=lin()))
    assert found == {"pair.a": set(), "pair.b": set(), "c": {"pair.b"}}


# decorators


def plainly(function: Forward) -> Forward:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def bound(function: Forward) -> Forward:
    @functools.wraps(function)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self, *args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    "decorate",
    [plainly, bound, torch.no_grad(), torch.inference_mode(), lambda f: plainly(bound(plainly(f)))],
    ids=["plain", "bound", "no_grad", "inference_mode", "three"],
)
def test_a_decorated_forward_is_taken_as_the_forward_that_it_is(
    decorate: Callable[[Forward], Forward],
) -> None:
    @decorate
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.inner(squash(self.a(x)) * 2)

    @decorate
    def elementwise(self: Any, x: Tensor) -> Tensor:
        return (squash(x) * self.scale[0]).tanh()

    inner = net(elementwise, scale=nn.ParameterList([torch.ones(8)]))
    found = flow(net(forward, a=lin(), inner=inner))
    assert found == {
        "a": set(),
        "squash": {"a"},
        "mul": {"squash"},
        "squash#2": {"mul"},
        "mul#2": {"squash#2"},
        "tanh": {"mul#2"},
    }


@pytest.mark.parametrize("decorate", [plainly, torch.no_grad()], ids=["plain", "no_grad"])
def test_a_decorated_helper_is_named_after_the_helper(
    decorate: Callable[[Forward], Forward],
) -> None:
    helper = decorate(squash)
    found = flow(net(lambda self, x: self.b(helper(self.a(x))), a=lin(), b=lin()))
    assert found == {"a": set(), "squash": {"a"}, "b": {"squash"}}


def test_a_checkpointed_block_is_traced_as_if_it_were_called() -> None:
    from torch.utils.checkpoint import checkpoint

    def forward(self: Any, x: Tensor) -> Tensor:
        return checkpoint(self.block, self.a(x), use_reentrant=False) + 1

    found = flow(net(forward, a=lin(), block=nn.Sequential(lin(), nn.ReLU())))
    assert found == {"a": set(), "block.0": {"a"}, "block.1": {"block.0"}, "add": {"block.1"}}


# what a forward may do besides


def test_a_constant_made_on_the_default_device_meets_the_activations() -> None:
    """On the machine where the module lives this runs: no `device=` is needed there."""

    def forward(self: Any, x: Tensor) -> Tensor:
        positions = torch.arange(8)
        return self.a(x) + positions * torch.tensor([2.0] * 8)

    found = flow(net(forward, a=lin()))
    assert found["add"] == {"a", "mul"}
    assert found["mul"] - {"tensor"} == {"arange"}


def test_an_index_made_on_the_default_device_selects_rows() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.a(x + self.pos(torch.arange(x.shape[0])))

    found = flow(net(forward, a=lin(), pos=nn.Embedding(4, 8)))
    assert found == {"arange": set(), "pos": {"arange"}, "add": {"pos"}, "a": {"add"}}


def test_a_count_worked_out_on_the_host_stays_a_number() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        rows = int(torch.tensor(x.shape).prod().item()) // 8
        return self.a(x)[: rows - 1].exp()

    report = report_of(net(forward, a=lin()))
    last = report.ops.iloc[-1]
    assert last.output_shapes == [(1, 8)]
    assert last.depends_on == [names_of(report).index("a")]


def test_a_module_in_a_plain_list_is_traced_as_functions() -> None:
    module = net(lambda self, x: self.hidden[0](self.a(x)), a=lin())
    module.hidden = [nn.Linear(8, 8)]
    assert flow(module) == {"a": set(), "linear": {"a"}}


def test_what_runs_after_a_module_that_raised_is_not_taken_for_the_modules() -> None:
    class Refuses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError

    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.a(x)
        try:
            h = self.bad(h)
        except ValueError:
            h = h.relu()
        return self.b(h)

    found = flow(net(forward, a=lin(), bad=Refuses(), b=lin()))
    assert found["relu"] == {"a"}
    assert found["b"] == {"relu"}


Batch = namedtuple("Batch", "hidden pooled")


@pytest.mark.parametrize(
    "batch",
    [Batch(X, X.clone()), Answer(X, X.clone())],
    ids=["namedtuple", "dataclass"],
)
def test_inputs_may_stand_in_a_structure_of_their_own(batch: Any) -> None:
    module = net(lambda self, batch: self.a(batch.hidden) * batch.pooled, a=nn.Linear(8, 8))
    assert flow(module, batch=batch) == {"a": set(), "mul": {"a"}}
    assert batch.hidden is X


# bytes, by hand


def test_bytes_of_a_linear_are_its_input_its_weight_and_its_output() -> None:
    module = nn.Linear(8, 3)
    read = 2 * 8 * FLOAT + (8 * 3 + 3) * FLOAT
    assert moved(module) == {"": (read, 2 * 3 * FLOAT)}
    assert moved(nn.Linear(8, 3, dtype=torch.bfloat16), X.bfloat16()) == {
        "": (read // 2, 2 * 3 * FLOAT // 2)
    }


def test_bytes_of_a_linear_over_a_part_are_those_of_the_part() -> None:
    module = net(lambda self, x: self.a(x[:, :4]), a=lin(4, 3))
    assert moved(module) == {"a": (2 * 4 * FLOAT + 4 * 3 * FLOAT, 2 * 3 * FLOAT)}


LOOKUPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "embedding": lambda table, rows: F.embedding(rows, table),
    "index": lambda table, rows: table[rows],
    "index_select": lambda table, rows: table.index_select(0, rows),
}


@pytest.mark.parametrize("lookup", LOOKUPS.values(), ids=LOOKUPS)
def test_bytes_of_a_lookup_are_the_rows_looked_up_and_their_numbers(
    lookup: Callable[[Tensor, Tensor], Tensor],
) -> None:
    module = net(
        lambda self, rows: lookup(self.table, rows), table=nn.Parameter(torch.ones(100, 8))
    )
    rows = 3 * 8 * FLOAT
    assert moved(module, torch.tensor([5, 6, 7])) == {"": (3 * LONG + rows, rows)}


def test_bytes_of_an_embedding_are_the_rows_looked_up_and_never_more_than_the_table() -> None:
    module, rows = nn.Embedding(5, 8), 3 * 8 * FLOAT
    assert moved(module, torch.tensor([[0, 1, 2]])) == {"": (3 * LONG + rows, rows)}
    many = torch.zeros(4, 10, dtype=torch.long)
    assert moved(module, many) == {"": (40 * LONG + 5 * 8 * FLOAT, 40 * 8 * FLOAT)}


def test_bytes_of_an_add_are_both_operands_and_the_sum() -> None:
    size = 2 * 8 * FLOAT
    module = net(lambda self, x, y: x + y)
    assert moved(module, X, X.clone()) == {"": (2 * size, size)}
    assert moved(module, X, torch.ones(8)) == {"": (size + 8 * FLOAT, size)}
    assert moved(module, X, torch.ones(2, 1).expand(2, 8)) == {"": (size + 2 * FLOAT, size)}
    assert moved(net(lambda self, x: x + x)) == {"": (size, size)}
    assert moved(net(lambda self, x: x + 1)) == {"": (size, size)}


def test_bytes_of_one_tensor_given_twice_are_read_once() -> None:
    size = 2 * 8 * FLOAT
    assert moved(net(lambda self, x, y: x + y), X, X) == {"": (size, size)}


def test_bytes_of_a_cat_are_all_its_parts_read_and_written_once() -> None:
    module = net(lambda self, x, y: torch.cat([x, y, x[:, :2]], -1))
    parts = 2 * 8 * FLOAT + 2 * 3 * FLOAT
    written = parts + 2 * 2 * FLOAT
    found = moved(module, X, torch.ones(2, 3))
    assert found[""][1] == written
    assert found[""][0] in (parts, written)  # the columns that stand twice may be read once


def test_bytes_of_a_cat_of_two_operators_are_their_outputs() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x)], -1)

    size = 2 * (3 + 5) * FLOAT
    assert moved(net(forward, a=lin(8, 3), b=lin(8, 5)))["cat"] == (size, size)


def test_bytes_of_a_helper_are_what_crosses_its_border() -> None:
    size = 2 * 8 * FLOAT
    found = moved(net(lambda self, x: self.b(squash(self.a(x))), a=lin(), b=lin()))
    assert found["squash"] == (size, size)


def test_bytes_of_an_in_place_function_are_read_and_written_once() -> None:
    size = 2 * 8 * FLOAT
    found = moved(net(lambda self, x: self.b(self.a(x).relu_()), a=lin(), b=lin()))
    assert found["relu"] == (size, size)


def test_bytes_of_a_copy_into_a_tensor_do_not_read_what_it_overwrites() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.a(x)
        h[:, :4] = self.b(x)
        return self.c(h)

    size = 2 * 4 * FLOAT
    assert moved(net(forward, a=lin(), b=lin(8, 4), c=lin()))["setitem"] == (size, size)


def test_bytes_of_views_are_none() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(self.a(x).view(2, 2, 4).transpose(1, 2).transpose(1, 2).view(2, 8))

    report = report_of(net(forward, a=lin(), b=lin()))
    views = report.kernels[report.kernels.is_view]
    assert len(views) >= 4
    assert views.bytes_read.sum() == 0
    assert views.bytes_written.sum() == 0


# against brute force


def _record(tensor: Tensor) -> record.Tensor:
    shape, strides = tuple(tensor.shape), tuple(tensor.stride())
    return record.Tensor(shape, "int64", 8, 0, int(tensor.storage_offset()), strides)


def _some_view(base: Tensor, rng: random.Random) -> Tensor:
    """A view that a few random view ops make of `base`."""
    view = base
    for _ in range(rng.randint(0, 4)):
        if view.dim() == 0:
            break
        dim = rng.randrange(view.dim())
        size = view.shape[dim]
        start = rng.randrange(size)
        match rng.randrange(7):
            case 0:
                view = view.narrow(dim, start, rng.randint(1, size - start))
            case 1:
                view = view[(ALL,) * dim + (slice(start, None, 2),)]
            case 2:
                view = view.select(dim, start)
            case 3:
                view = view.transpose(0, dim)
            case 4:
                view = view.unfold(dim, rng.randint(1, size), rng.randint(1, size))
            case 5:
                view = view.unsqueeze(dim).expand(*view.shape[:dim], 2, *view.shape[dim:])
            case _:
                view = view.view(-1) if view.is_contiguous() else view
    return view


def _share(one: Tensor, other: Tensor) -> bool:
    """Whether two views of an `arange` share an element, by looking at each."""
    return not set(one.flatten().tolist()).isdisjoint(other.flatten().tolist())


def test_two_views_that_share_an_element_are_never_told_apart() -> None:
    rng = random.Random(1)
    for _ in range(4000):
        base = torch.arange(32).view(rng.choice([(4, 8), (2, 4, 4), (32,)]))
        one, other = _some_view(base, rng), _some_view(base, rng)
        if _share(one, other):
            assert overlap(_record(one), _record(other)), (_record(one), _record(other))


def test_a_window_over_a_flattened_array_meets_the_rows_that_it_runs_across() -> None:
    """Its strides are those of the rows, but it starts amid one and ends in the next."""
    base = torch.arange(32).view(4, 8)
    window = base.view(-1)[4:].unfold(0, 8, 8)
    row = base[1:3, 0:2]
    assert window.stride() == row.stride()
    assert _share(window, row)
    assert overlap(_record(window), _record(row))


def test_slices_of_one_array_overlap_exactly_where_they_share_an_element() -> None:
    rng = random.Random(2)
    base = torch.arange(4 * 3 * 6).view(4, 3, 6)

    def cut() -> Tensor:
        view = base
        for dim, size in enumerate(base.shape):
            start = rng.randrange(size)
            view = view.narrow(dim, start, rng.randint(1, size - start))
        return view

    for _ in range(4000):
        one, other = cut(), cut()
        assert overlap(_record(one), _record(other)) == _share(one, other)


@dataclass(frozen=True)
class Step:
    """One access of a shared buffer: `read` it, `copy` into it, or `add` to it in place."""

    kind: str
    where: Slicing


def _some_steps(rng: random.Random) -> list[Step]:
    def part(size: int) -> slice:
        start = rng.randrange(size)
        return slice(start, rng.randint(start + 1, size))

    kinds = ["read", "copy", "copy", "add"]
    return [Step(rng.choice(kinds), (part(4), part(6))) for _ in range(10)]


@pytest.mark.parametrize("seed", range(12))
def test_reads_and_writes_of_random_parts_wait_for_whoever_wrote_those_elements(seed: int) -> None:
    """Each element remembers its last writer: those of a part must all be waited for."""
    steps = _some_steps(random.Random(seed))

    def forward(self: Any, x: Tensor) -> list[Tensor]:
        buffer, read = self.a(x), []
        for step in steps:
            part = buffer[step.where]
            if step.kind == "read":
                read.append(part.exp())
            elif step.kind == "copy":
                part.copy_(x[step.where])
            else:
                part.add_(1)
        return read

    report = report_of(net(forward, a=lin(6, 6)), torch.ones(4, 6))
    assert len(report.ops) == 1 + len(steps)
    last = torch.zeros(4, 6, dtype=torch.long)
    touched: list[tuple[int, Slicing]] = [(0, (ALL, ALL))]
    for order, step in enumerate(steps, 1):
        found = set(report.ops.depends_on[order])
        if step.kind == "copy":
            assert found == set()
        else:
            mark = torch.zeros(4, 6, dtype=torch.bool)
            mark[step.where] = True
            assert set(last[step.where].unique().tolist()) <= found
            assert found <= {writer for writer, where in touched if mark[where].any()}
        if step.kind != "read":
            last[step.where] = order
            touched.append((order, step.where))
