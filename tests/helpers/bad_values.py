"""Invalid values for options: wrong types, extremes, objects that raise on access."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hypothesis import strategies as st

NUMBERS = (
    *(0, -1, 1, 2, 3, 7, -(10**9), 10**9, 2**31, 2**63, 10**30),
    *(0.5, 1.5, -0.0, 1e-300, 1e308, math.inf, -math.inf, math.nan),
    *(True, False),
)
TEXTS = (
    *("", " ", "text", "1", "-1", "None", "float8_e4m3fn", "é𝔘", "%s {0} $x", "<b>&\"'</b>"),
    *("two\nlines", "nul\0", "\x1b[31mred", "\u202eright", "\ud800", "../../x", "x" * 10_000),
)
_CONTAINERS: tuple[Any, ...] = ([], {}, [None], [[]], {"": None}, {"a": {"b": []}}, [1, "2", 3.0])

plain = st.sampled_from((None, *NUMBERS, *TEXTS, *_CONTAINERS))
words = st.text(max_size=20)
anything = plain | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda some: st.lists(some, max_size=4) | st.dictionaries(words, some, max_size=4),
    max_leaves=8,
)


def _raise(*_: Any) -> Any:
    raise RuntimeError("a property\nthat fails")


class RaisesOnEveryAccess:
    """Whatever is asked of it fails, its class too."""

    __repr__ = __str__ = __bool__ = __len__ = __iter__ = __getattr__ = _raise
    __eq__ = __hash__ = __index__ = __int__ = __float__ = __fspath__ = __call__ = _raise
    __class__ = property(_raise)  # type: ignore[assignment]


class _RaisingMetaclass(type):
    __mro__ = __name__ = __module__ = property(_raise)  # type: ignore[assignment]


class InstanceOfRaisingMetaclass(metaclass=_RaisingMetaclass):
    pass


class HasEveryAttribute:
    """It has whatever is asked for, and all of that is itself."""

    def __getattr__(self, name: str) -> "HasEveryAttribute":
        return self


def _own_list() -> list[Any]:
    itself: list[Any] = []
    itself.append(itself)
    return itself


ODD: dict[str, Callable[[], Any]] = {
    "nasty": RaisesOnEveryAccess,
    "nasty class": lambda: RaisesOnEveryAccess,
    "of a nasty type": InstanceOfRaisingMetaclass,
    "a nasty type": lambda: InstanceOfRaisingMetaclass,
    "chameleon": HasEveryAttribute,
    "object": object,
    "type": lambda: type,
    "function": lambda: len,
    "module": lambda: math,
    "bytes": lambda: b"gpt2",
    "set": lambda: {1, 2},
    "range": lambda: range(1, 3),
    "empty": lambda: iter(()),
    "endless": itertools.count,
    "generator that fails": lambda: (1 // zero for zero in (1, 0)),
    "its own list": _own_list,
    "path": lambda: Path("nowhere"),
    "array": lambda: np.array([1, 2]),
    "a NumPy number": lambda: np.int64(2),
    "a NumPy flag": lambda: np.True_,
    "tensor": lambda: torch.ones(2),
    "a tensor's number": lambda: torch.tensor(2),
    "a tensor on meta": lambda: torch.ones(2, device="meta"),
    "frame": lambda: pd.DataFrame({"a": [1]}),
    "NA": lambda: pd.NA,
    "a module's class": lambda: torch.nn.Linear,
    "a bare module": torch.nn.Module,
    "complex": lambda: 1j,
}


@dataclass(frozen=True)
class NamedBadValue:
    """An object by its name, for a case that can be printed."""

    name: str


def real(value: Any) -> Any:
    """The value itself, where only its name stood."""
    return ODD[value.name]() if isinstance(value, NamedBadValue) else value


odd = st.sampled_from(sorted(ODD)).map(NamedBadValue)
