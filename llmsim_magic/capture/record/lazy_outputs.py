"""Run a forward whose output computes when it is read, such as a generator, to its end."""

from collections.abc import Iterator
from types import AsyncGeneratorType, CoroutineType
from typing import Any

from llmsim_magic.records.errors import CannotTrace

MAX_ITEMS = 1_000  # of one iterator; an endless generator stops here
_MAX_DEPTH = 8
_BUILT_IN = frozenset({"builtins", "itertools"})


def computed(output: Any, depth: int = 0) -> Any:
    """Return the output of a forward with a list in place of each iterator in it.

    Generators and Python's own iterators, such as `map`, run to their end, also within tuples,
    lists and dicts. An iterator of another class stays, because reading it may block.

    Args:
        output: What the forward returned.
        depth: Nesting depth so far.

    Raises:
        CannotTrace: The forward is asynchronous, or one iterator has more than `MAX_ITEMS` items.
    """
    kind = type(output)
    if isinstance(output, (CoroutineType, AsyncGeneratorType)):
        _refuse_asynchronous(output)
    if isinstance(output, Iterator) and kind.__module__ in _BUILT_IN:
        return _all_items(output, depth)
    if kind not in (tuple, list, dict) or depth > _MAX_DEPTH:
        return output
    values = output.values() if kind is dict else output
    items = [computed(value, depth + 1) for value in values]
    if all(item is value for item, value in zip(items, values, strict=True)):
        return output
    return dict(zip(output, items, strict=True)) if kind is dict else kind(items)


def _all_items(iterator: Iterator[Any], depth: int) -> list[Any]:
    items: list[Any] = []
    for item in iterator:
        if len(items) == MAX_ITEMS:
            raise CannotTrace(
                f"the forward is a generator of more than {MAX_ITEMS:,} items; trace one that "
                "ends, or the module that it calls at each step"
            )
        items.append(computed(item, depth + 1))
    return items


def _refuse_asynchronous(output: Any) -> None:
    if isinstance(output, CoroutineType):
        output.close()  # Python warns of one that never ran
    raise CannotTrace(
        "the forward is asynchronous (async def), so calling it computes nothing; trace a module "
        "whose forward returns asyncio.run(...) of it"
    )
