"""What modules may be given that they were not made for."""

import collections
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from tests.helpers.modules.forwards import Pair, Record
from tests.helpers.modules.tensor_subclasses import Logged, Marked, Wrapped
from tests.helpers.modules.valid_modules import BATCH, TOKENS, WIDTH


def fitting() -> Tensor:
    return torch.rand(BATCH, TOKENS, WIDTH)


class Keys(collections.UserDict[Any, Any]):
    """A mapping whose keys cannot be had."""

    def keys(self) -> Any:
        raise RuntimeError("no keys")


def _within_itself() -> list[Any]:
    value: list[Any] = [fitting()]
    value.append(value)
    return value


def _deep() -> Any:
    value: Any = fitting()
    for _ in range(3000):
        value = [value]
    return value


def _fake() -> Tensor:
    with FakeTensorMode():
        return fitting()


def _grown() -> Tensor:
    return fitting().requires_grad_() * 2


def _in_inference() -> Tensor:
    with torch.inference_mode():
        return fitting()


TENSORS: dict[str, Callable[[], Tensor]] = {
    "other batch": lambda: torch.rand(5, TOKENS, WIDTH),
    "no sample": lambda: torch.rand(0, TOKENS, WIDTH),
    "no tokens": lambda: torch.rand(BATCH, 0, WIDTH),
    "other width": lambda: torch.rand(BATCH, TOKENS, WIDTH + 1),
    "flat": lambda: torch.rand(WIDTH),
    "scalar": lambda: torch.tensor(1.5),
    "more dimensions": lambda: torch.rand(1, 1, BATCH, TOKENS, WIDTH),
    "double": lambda: fitting().double(),
    "half": lambda: fitting().half(),
    "bfloat16": lambda: fitting().bfloat16(),
    "float8": lambda: fitting().to(torch.float8_e4m3fn),
    "whole": lambda: torch.ones(BATCH, TOKENS, dtype=torch.long),
    "whole, negative": lambda: torch.full((BATCH, TOKENS, WIDTH), -(2**62)),
    "flags": lambda: fitting() > 0.5,
    "bytes": lambda: torch.ones(BATCH, TOKENS, WIDTH, dtype=torch.uint8),
    "complex": lambda: fitting() * 1j,
    "conjugate": lambda: (fitting() * 1j).conj(),
    "turned": lambda: torch.rand(WIDTH, TOKENS, BATCH).permute(2, 1, 0),
    "expanded": lambda: torch.rand(1, 1, WIDTH).expand(BATCH, TOKENS, WIDTH),
    "expanded far": lambda: torch.rand(1).expand(10**9, TOKENS, WIDTH),
    "expanded beyond": lambda: torch.rand(1).expand(2**40, TOKENS, WIDTH),
    "whole, expanded far": lambda: torch.ones(1, dtype=torch.long).expand(10**6, 10**4),
    "part of a storage": lambda: torch.rand(3, BATCH, TOKENS, WIDTH)[1],
    "on meta": lambda: fitting().to("meta"),
    "sparse": lambda: fitting().to_sparse(),
    "csr": lambda: torch.eye(WIDTH).to_sparse_csr(),
    "whole, sparse": lambda: torch.eye(WIDTH, dtype=torch.long).to_sparse(),
    "nested": lambda: torch.nested.nested_tensor([torch.rand(3, WIDTH), torch.rand(5, WIDTH)]),
    "jagged": lambda: torch.nested.nested_tensor(
        [torch.rand(3, WIDTH), torch.rand(5, WIDTH)], layout=torch.jagged
    ),
    "quantised": lambda: torch.quantize_per_tensor(fitting(), 0.1, 0, torch.qint8),
    "needs gradient": lambda: fitting().requires_grad_(),
    "grown": _grown,
    "in inference": _in_inference,
    "parameter": lambda: nn.Parameter(fitting()),
    "marked": lambda: fitting().as_subclass(Marked),
    "logged": lambda: fitting().as_subclass(Logged),
    "wrapped": lambda: Wrapped(fitting()),
    "fake": _fake,
    "nan": lambda: torch.full((BATCH, TOKENS, WIDTH), float("nan")),
}
OTHERS: dict[str, Callable[[], Any]] = {
    "nothing": tuple,
    "no keywords": dict,
    "none in a tuple": lambda: (None,),
    "number": lambda: 7,
    "text": lambda: "text",
    "bytes": lambda: b"bytes",
    "array": lambda: np.ones((BATCH, TOKENS, WIDTH), dtype=np.float32),
    "array in a tuple": lambda: (np.ones((BATCH, TOKENS, WIDTH), dtype=np.float32),),
    "array of objects": lambda: (np.array([None, "x"], dtype=object),),
    "numpy's number": lambda: (np.float32(1),),
    "two": lambda: (fitting(), fitting()),
    "list": lambda: [fitting()],
    "nested": lambda: ([[fitting()]],),
    "keyword": lambda: {"x": fitting()},
    "odd keyword": lambda: {"x": fitting(), "a b\n": 1},
    "unknown keyword": lambda: {"y": fitting()},
    "keys that are no names": lambda: {1: fitting()},
    "keys": lambda: Keys(x=fitting()),
    "ordered": lambda: collections.OrderedDict(x=fitting()),
    "named tuple": lambda: Pair(fitting()),
    "record": lambda: Record(fitting()),
    "generator": lambda: (fitting() for _ in range(1)),
    "generator in a tuple": lambda: ((fitting() for _ in range(1)),),
    "set": lambda: {1, 2},
    "lock": lambda: (fitting(), threading.Lock()),
    "function": lambda: (fitting,),
    "module": lambda: (nn.Linear(2, 2),),
    "class": lambda: Tensor,
    "size": lambda: torch.Size([2]),
    "within itself": _within_itself,
    "deep": _deep,
    "packed": lambda: nn.utils.rnn.pack_sequence([torch.rand(3, WIDTH), torch.rand(2, WIDTH)]),
    "the same twice": lambda: (x := fitting(), x),
}
GIVEN: dict[str, Callable[[], Any]] = {
    "fitting": fitting,
    **TENSORS,
    **{f"other: {name}": make for name, make in OTHERS.items()},
}
