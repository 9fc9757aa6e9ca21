"""Inputs that do not fit the modules they are passed to."""

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


def valid_input() -> Tensor:
    return torch.rand(BATCH, TOKENS, WIDTH)


class Keys(collections.UserDict[Any, Any]):
    """A mapping whose keys cannot be had."""

    def keys(self) -> Any:
        raise RuntimeError("no keys")


def _within_itself() -> list[Any]:
    value: list[Any] = [valid_input()]
    value.append(value)
    return value


def _deep() -> Any:
    value: Any = valid_input()
    for _ in range(3000):
        value = [value]
    return value


def _fake() -> Tensor:
    with FakeTensorMode():
        return valid_input()


def _grown() -> Tensor:
    return valid_input().requires_grad_() * 2


def _in_inference() -> Tensor:
    with torch.inference_mode():
        return valid_input()


TENSORS: dict[str, Callable[[], Tensor]] = {
    "other batch": lambda: torch.rand(5, TOKENS, WIDTH),
    "no sample": lambda: torch.rand(0, TOKENS, WIDTH),
    "no tokens": lambda: torch.rand(BATCH, 0, WIDTH),
    "other width": lambda: torch.rand(BATCH, TOKENS, WIDTH + 1),
    "flat": lambda: torch.rand(WIDTH),
    "scalar": lambda: torch.tensor(1.5),
    "more dimensions": lambda: torch.rand(1, 1, BATCH, TOKENS, WIDTH),
    "double": lambda: valid_input().double(),
    "half": lambda: valid_input().half(),
    "bfloat16": lambda: valid_input().bfloat16(),
    "float8": lambda: valid_input().to(torch.float8_e4m3fn),
    "whole": lambda: torch.ones(BATCH, TOKENS, dtype=torch.long),
    "whole, negative": lambda: torch.full((BATCH, TOKENS, WIDTH), -(2**62)),
    "flags": lambda: valid_input() > 0.5,
    "bytes": lambda: torch.ones(BATCH, TOKENS, WIDTH, dtype=torch.uint8),
    "complex": lambda: valid_input() * 1j,
    "conjugate": lambda: (valid_input() * 1j).conj(),
    "turned": lambda: torch.rand(WIDTH, TOKENS, BATCH).permute(2, 1, 0),
    "expanded": lambda: torch.rand(1, 1, WIDTH).expand(BATCH, TOKENS, WIDTH),
    "expanded far": lambda: torch.rand(1).expand(10**9, TOKENS, WIDTH),
    "expanded beyond": lambda: torch.rand(1).expand(2**40, TOKENS, WIDTH),
    "whole, expanded far": lambda: torch.ones(1, dtype=torch.long).expand(10**6, 10**4),
    "part of a storage": lambda: torch.rand(3, BATCH, TOKENS, WIDTH)[1],
    "on meta": lambda: valid_input().to("meta"),
    "sparse": lambda: valid_input().to_sparse(),
    "csr": lambda: torch.eye(WIDTH).to_sparse_csr(),
    "whole, sparse": lambda: torch.eye(WIDTH, dtype=torch.long).to_sparse(),
    "nested": lambda: torch.nested.nested_tensor([torch.rand(3, WIDTH), torch.rand(5, WIDTH)]),
    "jagged": lambda: torch.nested.nested_tensor(
        [torch.rand(3, WIDTH), torch.rand(5, WIDTH)], layout=torch.jagged
    ),
    "quantised": lambda: torch.quantize_per_tensor(valid_input(), 0.1, 0, torch.qint8),
    "needs gradient": lambda: valid_input().requires_grad_(),
    "grown": _grown,
    "in inference": _in_inference,
    "parameter": lambda: nn.Parameter(valid_input()),
    "marked": lambda: valid_input().as_subclass(Marked),
    "logged": lambda: valid_input().as_subclass(Logged),
    "wrapped": lambda: Wrapped(valid_input()),
    "fake": _fake,
    "nan": lambda: torch.full((BATCH, TOKENS, WIDTH), float("nan")),
}
OTHER_INPUTS: dict[str, Callable[[], Any]] = {
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
    "two": lambda: (valid_input(), valid_input()),
    "list": lambda: [valid_input()],
    "nested": lambda: ([[valid_input()]],),
    "keyword": lambda: {"x": valid_input()},
    "odd keyword": lambda: {"x": valid_input(), "a b\n": 1},
    "unknown keyword": lambda: {"y": valid_input()},
    "keys that are no names": lambda: {1: valid_input()},
    "keys": lambda: Keys(x=valid_input()),
    "ordered": lambda: collections.OrderedDict(x=valid_input()),
    "named tuple": lambda: Pair(valid_input()),
    "record": lambda: Record(out=valid_input()),
    "generator": lambda: (valid_input() for _ in range(1)),
    "generator in a tuple": lambda: ((valid_input() for _ in range(1)),),
    "set": lambda: {1, 2},
    "lock": lambda: (valid_input(), threading.Lock()),
    "function": lambda: (valid_input,),
    "module": lambda: (nn.Linear(2, 2),),
    "class": lambda: Tensor,
    "size": lambda: torch.Size([2]),
    "within itself": _within_itself,
    "deep": _deep,
    "packed": lambda: nn.utils.rnn.pack_sequence([torch.rand(3, WIDTH), torch.rand(2, WIDTH)]),
    "the same twice": lambda: (x := valid_input(), x),
}
INPUTS: dict[str, Callable[[], Any]] = {
    "fitting": valid_input,
    **TENSORS,
    **{f"other: {name}": make for name, make in OTHER_INPUTS.items()},
}
