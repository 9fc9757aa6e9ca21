"""Modules with an unusual forward: data-dependent, endless, raising, odd outputs."""

import collections
import copy
import dataclasses
import functools
import io
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.helpers.modules.tensor_subclasses import Marked
from tests.helpers.modules.valid_modules import TOKENS, WIDTH, Body, linear, with_forward


class Own(BaseException):
    """No Exception."""


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


class Pair(NamedTuple):
    first: Tensor
    second: Any = None


@dataclasses.dataclass
class Record:
    out: Tensor
    note: str = "note"


def raising(error: Callable[[], BaseException]) -> Callable[[], nn.Module]:
    def body(self: Any, x: Tensor) -> Tensor:
        y = self.lin(x)
        raise error() from KeyError(str(y.shape))

    return with_forward(body)


def _while(self: Any, x: Tensor) -> Tensor:
    while x.sum() > 1e9:
        x = x / 2
    return x


def _until(self: Any, x: Tensor) -> Tensor:
    while True:
        x = self.lin(x)
        if x.abs().max() < 1e-3:
            return x


def _while_not(self: Any, x: Tensor) -> Tensor:
    while not (x.abs().max() < 1e-3):
        x = x * 0.5
    return x


def _while_number(self: Any, x: Tensor) -> Tensor:
    while x.abs().max().item() > 0.5:
        x = x * 0.5
    return x


def _until_token(self: Any, x: Tensor) -> Tensor:
    """Whatever the data, it ends after one step."""
    places = torch.arange(x.shape[-1], device=x.device)
    while x.argmax(-1).flatten()[0].item() != len(places) - 1:
        x = torch.where(x == x, places, places)
    return x


def _until_list(self: Any, x: Tensor) -> Tensor:
    while max(x.flatten().tolist()) > 0.1:
        x = x * 0.5
    return x


def _until_shorter(self: Any, x: Tensor) -> Tensor:
    while len(x[x > 0]) > 1:
        x = x - 0.1
    return x


def _halves(self: Any, x: Tensor) -> Any:
    return x if x.abs().max() < 1e-3 else self(x / 2)


def _in_thread(self: Any, x: Tensor) -> Tensor:
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(self.lin(x)))
    thread.start()
    thread.join()
    return found[0]


def _fills(self: Any, x: Tensor) -> Tensor:
    x.add_(1)
    return x.mul_(self.lin.bias)


def _takes_gradient(self: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        given = x.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(self.lin(given).sum(), given)
    return slope


def _func_gradient(self: Any, x: Tensor) -> Tensor:
    return torch.func.grad(lambda value: self.lin(value).sum())(x)


def _hooks_itself(self: Any, x: Tensor) -> Tensor:
    handle = self.lin.register_forward_hook(lambda module, args, out: out * 2)
    y = self.lin(x)
    handle.remove()
    self.lin.register_forward_hook(lambda *given: None)
    return y


def _grows(self: Any, x: Tensor) -> Tensor:
    self.register_parameter("late", nn.Parameter(torch.ones(WIDTH, device=x.device)))
    self.added = linear().to(x.device)
    return self.added(x) * self.late


def _loses(self: Any, x: Tensor) -> Tensor:
    y = self.lin(x)
    del self.lin.weight
    del self.lin
    return y


def _replaces(self: Any, x: Tensor) -> Tensor:
    self.lin = nn.Linear(WIDTH, WIDTH, device=x.device)
    self.forward = lambda x: x
    return self.lin(x)


def _moves(device: str) -> Body:
    def body(self: Any, x: Tensor) -> Tensor:
        self.to(device)
        return self.lin(x.to(device)).to(x.device)

    return body


def _casts(self: Any, x: Tensor) -> Tensor:
    return self.double().lin(x.double())


def _writes_itself(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        self.lin.weight.fill_(0.5)
        self.lin.weight.data = self.lin.weight.data * 2
        self.lin.bias.zero_()
    return self.lin(x)


def _trains(self: Any, x: Tensor) -> Tensor:
    self.train()
    return functional.dropout(self.lin(x), training=self.training)


def _backward(self: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        y = self.lin(x)
        y.sum().backward()
    return y


def _steps(self: Any, x: Tensor) -> Iterator[Tensor]:
    for each in x.unbind(1):
        yield self.lin(each)


async def _awaits(self: Any, x: Tensor) -> Tensor:
    return self.lin(x)


def _rolls_dice(self: Any, x: Tensor) -> Tensor:
    return x + torch.rand(()).item() + torch.randperm(3)[0]


def _seeds(self: Any, x: Tensor) -> Tensor:
    torch.manual_seed(7)
    torch.set_default_dtype(torch.float32)
    return x + torch.randn(x.shape)


def _traces(self: Any, x: Tensor) -> Tensor:
    return torch.jit.trace(self.lin, torch.rand(x.shape))(x)


BODIES: dict[str, Body] = {
    "item": lambda s, x: x * x.sum().item(),
    "tolist": lambda s, x: x + sum(x.flatten().tolist()),
    "numpy": lambda s, x: x + torch.from_numpy(x.cpu().numpy() * 2).to(x.device),
    "float": lambda s, x: x * float(x.mean()) + int(x[0, 0, 0]) + bool(x.sum() > 0),
    "format": lambda s, x: s.lin(x) if f"{x.sum():.3f}" else x,
    "print": lambda s, x: (print(x, s.lin, file=io.StringIO()), s.lin(x))[1],
    "repr": lambda s, x: x[: len(repr(x)) * 0 + 2],
    "nonzero": lambda s, x: x.flatten()[x.flatten().nonzero()[:, 0]].sum() + x,
    "where": lambda s, x: x[torch.where(x > 0)].mean() + s.lin(x),
    "masked select": lambda s, x: s.lin(x) + x.masked_select(x > 0).sum(),
    "unique": lambda s, x: x + torch.unique(x).numel(),
    "size from data": lambda s, x: s.lin(x) + torch.zeros(int(x.abs().sum()) + 1, 1, 8)[0],
    "huge size from data": lambda s, x: x + torch.zeros(int(1e12 * x.abs().sum() + 1e12)).sum(),
    "huge": lambda s, x: x + torch.empty(10**13, device=x.device).sum(),
    "huge on the host": lambda s, x: x + torch.zeros(10**13).sum().to(x.device),
    "index from data": lambda s, x: x[:, [int(x.argmax() % TOKENS)]],
    "sort": lambda s, x: x.gather(-1, x.argsort(-1)).topk(3).values,
    "multinomial": lambda s, x: torch.multinomial(x[0].softmax(-1), 2),
    "dictionary by data": lambda s, x: {int(v): v for v in x.flatten()[:3]},
    "while": _while,
    "until": _until,
    "while not": _while_not,
    "while number": _while_number,
    "until token": _until_token,
    "until list": _until_list,
    "until shorter": _until_shorter,
    "halves": _halves,
    "recurses": lambda s, x: s(s.lin(x)),
    "recurses below": lambda s, x: s.__class__.forward(s, x),
    "sleeps": lambda s, x: (time.sleep(0.01), s.lin(x))[1],
    "thread": _in_thread,
    "fills": _fills,
    "gradient": _takes_gradient,
    "gradient by torch.func": _func_gradient,
    "jacobian": lambda s, x: torch.func.jacrev(s.lin)(x[0, 0]),
    "jvp": lambda s, x: torch.func.jvp(s.lin, (x,), (x,))[1],
    "backward": _backward,
    "hooks itself": _hooks_itself,
    "grows": _grows,
    "loses": _loses,
    "replaces": _replaces,
    "to cpu": _moves("cpu"),
    "to meta": _moves("meta"),
    "to cuda": _moves("cuda"),
    "casts": _casts,
    "writes itself": _writes_itself,
    "trains": _trains,
    "dice": _rolls_dice,
    "seeds": _seeds,
    "traces": _traces,
    "input on cpu": lambda s, x: s.lin(x.cpu()),
    "input on cuda": lambda s, x: s.lin(x.cuda()),
    "pointer": lambda s, x: x + x.data_ptr() * 0,
    "storage": lambda s, x: x + sum(x.untyped_storage().tolist()[:2]),
    "set data": lambda s, x: setattr(x, "data", torch.ones(2, 8)) or x,
    "resize": lambda s, x: x.clone().resize_(4, 8),
    "strides": lambda s, x: x.as_strided((3, 3), (1, 2)),
    "wrong shape": lambda s, x: s.lin(x.flatten()),
    "unknown attribute": lambda s, x: s.nothing(x),
    "save": lambda s, x: (torch.save(x, io.BytesIO()), s.lin(x))[1],
    "deepcopy": lambda s, x: copy.deepcopy(s.lin)(x),
    "double precision": lambda s, x: s.lin.double()(x.double()),
    "svd": lambda s, x: torch.linalg.svd(x).S,
    "solve": lambda s, x: torch.linalg.solve(s.lin.weight, x.transpose(1, 2)),
    "eig": lambda s, x: torch.linalg.eigvals(s.lin.weight),
    "sparse": lambda s, x: x.to_sparse(),
    "sparse and back": lambda s, x: x.to_sparse().to_dense() + s.lin(x),
    "sparse product": lambda s, x: torch.sparse.mm(torch.eye(TOKENS).to_sparse(), x[0]),
    "nested": lambda s, x: torch.nested.nested_tensor([x[0], x[1, :3]]),
    "quantised": lambda s, x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8).dequantize(),
    "complex": lambda s, x: torch.fft.fft(x).conj(),
    "vmap": lambda s, x: torch.vmap(s.lin)(x),
    "vmap in a vmap": lambda s, x: torch.vmap(torch.vmap(s.lin))(x),
    "cond": lambda s, x: torch.cond(x.sum() > 0, lambda v: v + 1, lambda v: v - 1, (x,)),
    "generator": _steps,
    "coroutine": _awaits,
    "none": lambda s, x: None,
    "string": lambda s, x: "text",
    "itself": lambda s, x: s,
    "input": lambda s, x: x,
    "view of input": lambda s, x: x[:, 1:].t() if x.dim() == 2 else x[:, 1:],
    "parameter": lambda s, x: s.lin.weight,
    "named": lambda s, x: Pair(s.lin(x), Pair(x)),
    "record": lambda s, x: Record(storages=s.lin(x)),
    "odd keys": lambda s, x: {1: s.lin(x), None: {(2, "a"): x, Pair: [x]}, b"k": x.sum()},
    "ordered": lambda s, x: collections.OrderedDict(b=s.lin(x), a=collections.deque([x])),
    "within itself": lambda s, x: [value := [s.lin(x)], value.append(value), value],
    "deep": lambda s, x: functools.reduce(lambda held, _: [held], range(2000), s.lin(x)),
    "needs gradient": lambda s, x: s.lin(x).detach().requires_grad_(True),
    "function": lambda s, x: s.lin.forward,
    "array": lambda s, x: np.ones(3),
    "subclass out": lambda s, x: s.lin(x).as_subclass(Marked),
    "empty": lambda s, x: s.lin(x[:0]),
    "many outputs": lambda s, x: [s.lin(x)] * 3000,
    "many kernels": lambda s, x: functools.reduce(lambda y, _: y + 1, range(2000), x),
}  # fmt: skip

ERRORS: dict[str, Callable[[], BaseException]] = {
    "value": lambda: ValueError("no"),
    "nothing said": AssertionError,
    "many lines": lambda: RuntimeError("one\n\ttwo\r\n" * 50),
    "long": lambda: ValueError("x" * 10_000),
    "marks": lambda: ValueError("\x1b[31mred\x00\u202e\ud800 \u2028 é"),
    "unprintable": Unprintable,
    "no text": lambda: ValueError(b"\xff", None, object()),
    "key": lambda: KeyError("k" * 300),
    "stop": lambda: StopIteration(1),
    "recursion": lambda: RecursionError("maximum"),
    "not there": lambda: NotImplementedError(),
    "group": lambda: ExceptionGroup("several\nlines", [ValueError("a"), KeyError("b")]),
    "system": lambda: OSError(2, "No such file", "/x"),
    "unicode": lambda: UnicodeDecodeError("utf-8", b"x", 0, 1, "why"),
    "import": lambda: ModuleNotFoundError("No module named 'x'"),
    "warning": lambda: UserWarning("w"),
    "exit": lambda: SystemExit(3),
    "interrupt": KeyboardInterrupt,
    "generator exit": GeneratorExit,
    "own": lambda: Own("mine"),
}
