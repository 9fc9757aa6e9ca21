"""Numbers and shapes as people write them: `8.19 B`, `16.4 GB`, `8.75 ms`, `[1, 128]`.

Prefixes are decimal: a GB is 10⁹ bytes.
"""

import math
from collections.abc import Iterable
from functools import lru_cache

_SI = ("", "k", "M", "G", "T", "P", "E", "Z")
_SECONDS = (
    (86400.0, "d"),
    (3600.0, "h"),
    (60.0, "min"),
    (1.0, "s"),
    (1e-3, "ms"),
    (1e-6, "µs"),
    (1e-9, "ns"),
)
_LEAST_SHARE = 0.0005  # what `0.0 %` would hide
_LEAST_DECIMAL = 1e-4
_LONG_S = 120.0  # seconds below are said in seconds


def three_digits(number: float) -> str:
    """`8.19`, `16.4`, `156`: three significant digits of a number below 1,000."""
    if number == 0 or not math.isfinite(number):
        return f"{number:.0f}"
    if abs(number) < _LEAST_DECIMAL:
        return f"{number:.2e}"
    decimals = 2 - math.floor(math.log10(abs(number)))
    rounded = round(number, decimals)
    decimals = 2 - math.floor(math.log10(abs(rounded)))  # 9.996 becomes 10.0
    return f"{rounded:.{max(0, min(decimals, 6))}f}"


@lru_cache(maxsize=8192, typed=True)  # numbers of NumPy round in another way
def _scaled(number: float, prefixes: tuple[str, ...] = _SI) -> tuple[str, str]:
    """The digits of a number and its decimal prefix: 16381470720 gives `16.4` and `G`.

    A whole number below 1,000 keeps all its digits and no others.
    """
    if abs(number) < 1000 and number == int(number):
        return str(int(number)), ""
    for prefix in prefixes:
        digits = three_digits(number)
        if abs(float(digits)) < 1000:
            return digits, prefix
        number /= 1000
    return f"{number * 1000:.3g}", prefixes[-1]


def si(number: float, unit: str = "") -> str:
    """`156 G`, `16.4 GB`: a number with a decimal prefix and its unit."""
    digits, prefix = _scaled(number)
    return f"{digits} {prefix}{unit}".rstrip()


def parameters(number: float) -> str:
    """`8.19 B`, `596 M`: a number of parameters, with B for billions."""
    digits, prefix = _scaled(number, ("", "k", "M", "B", "T"))
    return f"{digits} {prefix}".rstrip()


def nbytes(number: float) -> str:
    """`16.4 GB`: bytes with a decimal prefix."""
    return si(number, "B")


def rate(number: float) -> str:
    """`38.7k`, `228`: a rate, whose unit stands in the head of its column."""
    if 0 < abs(number) < 999.5:
        return three_digits(number)
    digits, prefix = _scaled(number)
    return f"{digits}{prefix}"


def whole(number: int) -> str:
    """`510`, `2,660`, `81.9M`: a number of things, exact below 10,000."""
    return count(number) if abs(number) < 10_000 else rate(number)


def seconds(number: float) -> str:
    """`8.75 ms`, `114 µs`, `2.50 min`."""
    size, unit = _second_unit(number)
    return f"{three_digits(number / size)} {unit}"


def seconds_interval(low: float, high: float) -> str:
    """`23.5–53.1 ms`: two times in the unit of the longer one."""
    size, unit = _second_unit(high)
    return f"{three_digits(low / size)}–{three_digits(high / size)} {unit}"


def share(fraction: float) -> str:
    """`97.6 %`; `<0.1 %` for what is not nothing."""
    if 0 < fraction < _LEAST_SHARE:
        return "<0.1 %"
    return f"{100 * fraction:.1f} %"


def about_parameters(number: float) -> str:
    """`17 B`, `1.3 B`: a parameter count to the digits with which models are named."""
    value, _, unit = parameters(number).partition(" ")
    digits = f"{float(value):.0f}" if float(value) >= 10 else f"{float(value):.2g}"
    return f"{digits} {unit}".rstrip()


def count(number: int) -> str:
    """`596,049,920`: a whole number with all its digits."""
    return f"{number:,}"


def shape(sizes: Iterable[int]) -> str:
    """`[1, 128, 1024]`."""
    return f"[{', '.join(map(str, sizes))}]"


def shapes(many: Iterable[Iterable[int]]) -> str:
    """`[1, 128], [1024]`; `none` for no shapes."""
    return ", ".join(map(shape, many)) or "none"


def _second_unit(number: float) -> tuple[float, str]:
    for size, unit in _SECONDS:
        is_long = size <= 1 or number >= _LONG_S
        if is_long and float(f"{abs(number):.3g}") >= size:
            return size, unit
    return _SECONDS[-1]
