"""Modules that are unusual themselves: uncopyable, odd attributes, odd tensors."""

import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tests.helpers.modules.forwards import BODIES, ERRORS, raising
from tests.helpers.modules.tensor_subclasses import Logged, Marked, Wrapped
from tests.helpers.modules.valid_modules import WIDTH, linear, with_forward


class Linear(nn.Module):
    """What the odd classes below are otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = linear()

    def forward(self, x: Tensor) -> Any:
        return self.lin(x)


def _raise(error: BaseException) -> Any:
    raise error


def _odd(**members: Any) -> Callable[[], nn.Module]:
    return lambda: type("Odd", (Linear,), dict(members))()


class Slots(Linear):
    __slots__ = ("slot",)

    def __init__(self) -> None:
        super().__init__()
        self.slot = [1]


class Asks(Linear):
    """A `__getattr__` of its own, for which nothing is ready while it is copied."""

    def __getattr__(self, name: str) -> Any:
        return (
            getattr(super().__getattr__("lin"), name) if name == "weight" else self.inner_of(name)
        )


class Knows(Linear):
    """Answers to every name."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return f"{name} of mine"


class Unequal(Linear):
    def __eq__(self, other: object) -> bool:
        raise TypeError("these cannot be compared")

    __hash__ = None  # type: ignore[assignment]


class Calls(Linear):
    """A `__call__` of its own."""

    def __call__(self, x: Tensor) -> Any:
        return super().__call__(x) + 1


class Bare(Linear):
    """One that never reaches the hooks."""

    def __call__(self, x: Tensor) -> Any:
        return self.forward(x)


class Keeps(Linear):
    """Hands itself over as its copy."""

    def __deepcopy__(self, memo: Any) -> Any:
        return self


class GivesNothing(Linear):
    def __deepcopy__(self, memo: Any) -> Any:
        return None


class Unmade(nn.Module):
    """Whose `__init__` forgot to call torch's."""

    def __init__(self) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return x + 1


def _held(**held: Callable[[], Any]) -> Callable[[], nn.Module]:
    """A linear layer that holds something beside it."""

    def make() -> nn.Module:
        module = Linear()
        for name, value in held.items():
            setattr(module, name, value())
        return module

    return make


def _hangs_together() -> nn.Module:
    module = Linear()
    module.lin.__dict__["owner"] = module
    return module


def _contains_itself() -> nn.Module:
    module = Linear()
    module.me = module
    return module


def _lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(WIDTH), nn.LazyBatchNorm1d())


def _frozen_view() -> nn.Module:
    module = Linear()
    del module.lin.weight
    module.lin.weight = nn.Parameter(torch.ones(1, 1)).expand(WIDTH, WIDTH)
    return module


def _with_weight(make: Callable[[], Tensor]) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        module = Linear()
        module.lin.weight = nn.Parameter(make(), requires_grad=False)
        return module

    return made


def _with_buffer(make: Callable[[], Tensor]) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        module = Linear()
        module.register_buffer("table", make())
        return module

    return made


def _stepping() -> Iterator[int]:
    yield 1


def _partial_forward() -> nn.Module:
    module = Linear()
    module.forward = functools.partial(module.forward)  # type: ignore[method-assign]
    return module


def _patched_forward() -> nn.Module:
    module = Linear()
    old = module.forward
    module.forward = lambda x: old(x) * 2  # type: ignore[method-assign]
    return module


def _meta() -> nn.Module:
    with torch.device("meta"):
        return Linear()


def _inference_weights() -> nn.Module:
    with torch.inference_mode():
        return Linear()


def _hook(register: str, hook: Callable[..., Any], **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        module = nn.Sequential(linear())
        getattr(module[0], register)(hook, **options)
        return module

    return make


def _diagonal() -> Tensor:
    return torch.eye(WIDTH).to_sparse()


KINDS: dict[str, Callable[[], nn.Module]] = {
    "slots": Slots,
    "asks": Asks,
    "knows": Knows,
    "unequal": Unequal,
    "calls": Calls,
    "bare": Bare,
    "keeps": Keeps,
    "gives nothing": GivesNothing,
    "unmade": Unmade,
    "no forward": nn.Module,
    "list": lambda: nn.ModuleList([linear()]),
    "dict": lambda: nn.ModuleDict({"a": linear()}),
    "parameters": lambda: nn.ParameterList([torch.ones(2)]),
    "lock": _held(lock=threading.Lock),
    "file": _held(file=lambda: open(__file__)),  # noqa: SIM115
    "stepping": _held(steps=_stepping),
    "module of python": _held(python=lambda: functools),
    "thread local": _held(local=threading.local),
    "event": _held(event=threading.Event),
    "lambda": _held(fn=lambda: lambda x: x),
    "weak": _held(weak=lambda: weakref.WeakValueDictionary()),
    "holds a tensor": _held(plain=lambda: torch.rand(3)),
    "holds a graph": _held(grown=lambda: linear().weight * 2),
    "holds an optimizer": _held(optimizer=lambda: torch.optim.Adam(linear().parameters())),
    "holds a generator of torch": _held(dice=torch.Generator),
    "holds a module aside": _held(aside=lambda: [linear()]),
    "holds a meta tensor": _held(plain=lambda: torch.rand(3, device="meta")),
    "hangs together": _hangs_together,
    "contains itself": _contains_itself,
    "lazy": _lazy,
    "expanded weight": _frozen_view,
    "sparse weight": _with_weight(_diagonal),
    "csr weight": _with_weight(lambda: torch.eye(WIDTH).to_sparse_csr()),
    "sparse buffer": _with_buffer(_diagonal),
    "complex buffer": _with_buffer(lambda: torch.ones(2, dtype=torch.complex64).conj()),
    "boolean buffer": _with_buffer(lambda: torch.ones(2, dtype=torch.bool)),
    "float8 buffer": _with_buffer(lambda: torch.ones(2).to(torch.float8_e5m2)),
    "scalar buffer": _with_buffer(lambda: torch.tensor(3)),
    "none buffer": _with_buffer(lambda: None),  # type: ignore[arg-type,return-value]
    "quantised buffer": _with_buffer(
        lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    ),
    "nested buffer": _with_buffer(lambda: torch.nested.nested_tensor([torch.ones(2)])),
    "marked weight": _with_weight(lambda: torch.ones(WIDTH, WIDTH).as_subclass(Marked)),
    "logged weight": _with_weight(lambda: torch.ones(WIDTH, WIDTH).as_subclass(Logged)),
    "wrapped weight": _with_weight(lambda: Wrapped(torch.ones(WIDTH, WIDTH))),
    "wrapped buffer": _with_buffer(lambda: Wrapped(torch.ones(2))),
    "wrong weight": _with_weight(lambda: torch.ones(3)),
    "overlapping weight": _with_weight(lambda: torch.ones(15).as_strided((8, 8), (1, 1))),
    "meta": _meta,
    "inference weights": _inference_weights,
    "partial forward": _partial_forward,
    "patched forward": _patched_forward,
    "hook that raises": _hook("register_forward_hook", lambda *given: _raise(ValueError("hook"))),
    "hook that changes": _hook("register_forward_hook", lambda module, args, out: out * 2),
    "pre hook that changes": _hook(
        "register_forward_pre_hook", lambda module, args: (args[0] * 2,)
    ),
    "backward hook": _hook("register_full_backward_hook", lambda *given: None),
    "name that raises": _odd(name_or_path=property(lambda self: _raise(RuntimeError("no name")))),
    "config that raises": _odd(config=property(lambda self: _raise(RuntimeError("no config")))),
    "odd config": _odd(config={"model_type": ["x"]}, name_or_path=7),
    "config with a text": _odd(config=type("C", (), {"get_text_config": lambda self: self})()),
    "eval that raises": _odd(eval=lambda self: _raise(RuntimeError("never"))),
    "train that raises": _odd(train=lambda self, mode=True: _raise(RuntimeError("never"))),
    "modules that raise": _odd(modules=lambda self: _raise(RuntimeError("none"))),
    "odd modules": _odd(modules=lambda self: iter([1, None])),
    "odd parameters": _odd(parameters=lambda self, recurse=True: iter(["w"])),
    "odd names": _odd(named_modules=lambda self, *args, **kw: iter([(None, self), (3, self.lin)])),
    "reduce that raises": _odd(__reduce_ex__=lambda self, how: _raise(RuntimeError("no copies"))),
    "copy that exits": _odd(__deepcopy__=lambda self, memo: _raise(RuntimeError("no\ncopies"))),
    "setattr that raises": _odd(
        __setattr__=lambda self, name, value: (
            _raise(RuntimeError("frozen"))
            if "ready" in self.__dict__
            else nn.Module.__setattr__(self, name, value)
        ),
        __post__=None,
    ),
    "repr that raises": _odd(__repr__=lambda self: _raise(RuntimeError("no face"))),
    "bool that raises": _odd(__bool__=lambda self: _raise(RuntimeError("neither"))),
    "len that raises": _odd(__len__=lambda self: _raise(RuntimeError("no length"))),
    "odd class name": lambda: type("<b>\n\x1b" + "L" * 500, (Linear,), {})(),
    "odd child names": lambda: _named_children(),
    "odd attributes": _held(
        **{
            "nan": lambda: float("nan"),
            "long": lambda: 10**400,
            "text": lambda: "\ud800\n" * 100,
            "a b": lambda: 1,
        }
    ),
    "hidden tensors": _held(config=lambda: torch.ones(3)),
}


def _named_children() -> nn.Module:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module('<a href="x">\n\x1b"', linear())
            self.add_module("weight,\t;|", linear())

        def forward(self, x: Tensor) -> Tensor:
            for child in self.children():
                x = child(x)
            return x

    return Named()


ODD: dict[str, Callable[[], nn.Module]] = {
    **{name: with_forward(body) for name, body in BODIES.items()},
    **{f"raises {name}": raising(error) for name, error in ERRORS.items()},
    **KINDS,
}
