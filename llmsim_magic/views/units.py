"""Formats numbers and shapes for people to read."""

from collections.abc import Iterable


def shape(sizes: Iterable[int]) -> str:
    """`[1, 128, 1024]`."""
    return f"[{', '.join(map(str, sizes))}]"


def shapes(many: Iterable[Iterable[int]]) -> str:
    """`[1, 128], [1024]`; `none` for no shapes."""
    return ", ".join(map(shape, many)) or "none"


def count(number: int) -> str:
    """`596,049,920`."""
    return f"{number:,}"


def scaled(number: float) -> str:
    """`156.3 G`: a number with its SI prefix."""
    for unit in ("", "K", "M", "G", "T", "P"):
        if abs(number) < 1000:
            return f"{number:.4g} {unit}".rstrip()
        number /= 1000
    return f"{number:.4g} E"


def parameters(number: float) -> str:
    """`596 M`, `671 B`: a parameter count with B for billions."""
    return scaled(number).replace("G", "B")


def about_parameters(number: float) -> str:
    """`17 B`, `1.3 B`: a parameter count to the digits with which models are named."""
    name = parameters(number)
    value, _, unit = name.partition(" ")
    digits = f"{float(value):.0f}" if float(value) >= 10 else f"{float(value):.2g}"
    return f"{digits} {unit}".rstrip()


def nbytes(number: float) -> str:
    """`14.00 MiB`: bytes with their binary prefix."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(number) < 1024:
            return f"{number:,.0f} B" if unit == "B" else f"{number:,.2f} {unit}"
        number /= 1024
    return f"{number:,.2f} TiB"
