"""Structures of torch's own that are more than a dense tensor are refused by their name."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

import llmsim_magic as llmsim

ROWS = [torch.zeros(3, 4), torch.zeros(2, 4)]
IDS = [torch.zeros(3, dtype=torch.long), torch.zeros(2, dtype=torch.long)]


def _sharded() -> Tensor:
    """A tensor of which this process holds a half."""
    distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        return distribute_tensor(torch.zeros(8, 4), init_device_mesh("cpu", (2,)), [Shard(0)])
    finally:
        distributed.destroy_process_group()


class Forward(nn.Module):
    """A linear layer after a function of the input."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.linear = function, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.function(x))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("given", "name"),
    [
        (lambda: torch.nested.nested_tensor(ROWS), "nested tensor"),
        (lambda: torch.nested.nested_tensor(ROWS, layout=torch.jagged), "nested tensor"),
        (lambda: torch.nested.nested_tensor(IDS), "nested tensor"),
        (lambda: torch.nested.nested_tensor(IDS, layout=torch.jagged), "nested tensor"),
        (lambda: {"x": torch.nested.nested_tensor(ROWS)}, "nested tensor"),
        (lambda: ROWS[0].to_sparse(), "torch.sparse_coo"),
        (lambda: torch.eye(4).to_sparse_csr(), "torch.sparse_csr"),
        (lambda: torch.quantize_per_tensor(ROWS[0], 0.1, 0, torch.quint8), "quantized tensor"),
        (lambda: torch.masked.masked_tensor(ROWS[0], ROWS[0] == 0), "masked tensor"),
        (lambda: torch.eye(4).to_sparse_csc(), "torch.sparse_csc"),
        (lambda: torch.eye(4).to_sparse_bsr((2, 2)), "torch.sparse_bsr"),
        (lambda: ROWS[0].to_mkldnn(), "torch._mkldnn"),
        (lambda: ([torch.nested.nested_tensor(ROWS)],), "nested tensor"),
        (lambda: nn.UninitializedParameter(), "uninitialized parameter"),
        (_sharded, "DTensor"),
    ],
)
def test_an_input_that_is_not_dense_is_refused_by_name(
    given: Callable[[], object], name: str
) -> None:
    with pytest.raises(llmsim.LlmsimError, match=name):
        llmsim.trace(Forward(lambda x: x), inputs=given())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: torch.nested.nested_tensor([x[0], x[1, :2]]), "nested tensors"),
        (lambda x: torch.nested.as_nested_tensor([x[0], x[1]]), "nested tensors"),
        (lambda x: torch.nested.as_nested_tensor([*x], layout=torch.jagged), "nested tensors"),
        (
            lambda x: torch.nested.nested_tensor_from_jagged(x[0], torch.tensor([0, 1, 3])),
            "nested tensors",
        ),
        (lambda x: x.to_sparse(), "sparse tensors"),
        (lambda x: torch.sparse.mm(torch.eye(3).to_sparse(), x[0]), "sparse tensors"),
        (lambda x: x[0].to_sparse_csr(), "sparse tensors"),
        (lambda x: x.to_mkldnn(), "tensors in the layout of oneDNN"),
        (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8), "quantized tensors"),
        (lambda x: torch.masked.as_masked_tensor(x, x > 0).sum(-1), "masked tensors"),
    ],
)
def test_a_forward_that_makes_such_a_tensor_is_refused_by_name(
    function: Callable[[Tensor], Tensor], name: str
) -> None:
    with pytest.raises(llmsim.LlmsimError, match=f"uses {name}"):
        llmsim.trace(Forward(function), inputs=torch.zeros(2, 3, 4))


@pytest.mark.filterwarnings("ignore")
def test_a_module_that_holds_such_a_tensor_is_refused_by_name() -> None:
    model = Forward(lambda x: x)
    model.rows = torch.nested.nested_tensor(ROWS)
    with pytest.raises(llmsim.LlmsimError, match="nested tensor cannot be represented"):
        llmsim.trace(model, inputs=torch.zeros(2, 4))
