"""Structures of torch's own that are more than a dense tensor are refused by their name."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import llmsim_magic as llmsim

ROWS = [torch.zeros(3, 4), torch.zeros(2, 4)]
IDS = [torch.zeros(3, dtype=torch.long), torch.zeros(2, dtype=torch.long)]


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
    ],
)
def test_a_forward_that_makes_such_a_tensor_is_refused_by_name(
    function: Callable[[Tensor], Tensor], name: str
) -> None:
    with pytest.raises(llmsim.LlmsimError, match=f"uses {name}"):
        llmsim.trace(Forward(function), inputs=torch.zeros(2, 3, 4))
