"""Answers for what `meta` alone cannot do: one function for each cause."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from llmsim_magic.capture.kernels.fused_kernels import RECURRENT, recurrent_outputs
from llmsim_magic.capture.kernels.kernel_cache import KernelCache
from llmsim_magic.capture.kernels.kernel_facts import facts, mutated_tensors
from llmsim_magic.capture.kernels.rng import PrivateRng
from llmsim_magic.capture.kernels.tensors import dtype_name, tensors_in, unrecorded
from llmsim_magic.capture.meta import call_stack
from llmsim_magic.records.deferred_interrupt import DeferredInterrupt
from llmsim_magic.records.trace.workload import IsCancelled

aten = torch.ops.aten
META = torch.device("meta")
MAX_KNOWN_ELEMENTS = 4_000_000
MOST_ASKED = 1_000  # times of one line in one module; no model type of transformers asks ten
MOST_READ = 10_000  # the same for what is known, which a loop over tokens may ask of each
_REPEATS = KernelCache()


class EndlessLoop(RuntimeError):
    """A line that asks for what only data decides, again and again."""


class PartialEvaluation(TorchDispatchMode):
    """Evaluates a pass partially: what is known is computed for real, the rest on `meta`.

    Known are token ids, positions, masks, counters and all that is computed from them alone, up to
    `LARGEST` elements; they live on the host. Unknown are weights, activations and whatever they
    touch. `assumed` counts what had to be taken for granted where only data decides.
    """

    def __init__(self, stopped: IsCancelled, before: "PartialEvaluation | None" = None) -> None:
        """`before` answered the pass whose state this one goes on from.

        Once it is to be stopped, the pass ends at its next kernel as where the user interrupts it:
        no code of a model takes that for an error.
        """
        super().__init__()
        self._stopped = stopped
        self.assumed: Counter[str] = Counter()
        self._asked: Counter[Any] = Counter()
        self._overwritten: dict[int, torch.UntypedStorage] = {}
        if before is not None:
            self._overwritten |= before._overwritten
        self._checks: dict[int, torch.UntypedStorage] = {}
        self._dice = PrivateRng()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and guarding against it costs time at every kernel

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if self._stopped():
            raise KeyboardInterrupt
        with unrecorded():
            return self._answer(func, args, dict(kwargs or {}))

    def _answer(self, func: Any, args: Any, keywords: dict[str, Any]) -> Any:
        tensors = tensors_in((args, keywords))
        if all(map(self.knows, tensors)):
            return self._for_real(func, args, keywords)
        if facts(func).may_alias and not any(tensor.is_meta for tensor in tensors):
            # A view of what was written over, or a write into it.
            return self._dice.run(func, args, keywords)
        answer = _ANSWERS.get(func)
        if answer is not None:
            answered = answer(self, *args, **keywords)
            if answered is not NotImplemented:
                return answered
        if not all(tensor.is_meta for tensor in tensors):
            changed = mutated_tensors(func, args, keywords)
            if changed and not any(tensor.is_meta for tensor in changed):
                for tensor in changed:
                    self.overwrite(tensor)
                return changed[0] if len(func._schema.returns) == 1 else None
            args, keywords = tree_map(_on_meta, (args, keywords))
        if keywords.get("device") is not None:
            keywords["device"] = META  # what is unknown cannot be brought to the host
        return _REPEATS.run(func, args, keywords)

    def knows(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor's values are known: on the host, and nothing unknown written into it."""
        return not tensor.is_meta and tensor.untyped_storage()._cdata not in self._overwritten

    def overwrite(self, tensor: torch.Tensor) -> None:
        """Something unknown was written into a tensor."""
        storage = tensor.untyped_storage()
        if not tensor.is_meta:
            self._overwritten[storage._cdata] = storage

    def expect(self, check: torch.Tensor) -> torch.Tensor:
        """Remember a check that all is well: should the code ask for its outcome, it passed."""
        storage = check.untyped_storage()
        self._checks[storage._cdata] = storage
        return check

    def expects(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._checks

    def _for_real(self, func: Any, args: Any, keywords: dict[str, Any]) -> Any:
        """A kernel on known values: on the host, unless its result is too large to hold.

        Raises `Endless` where one line asks for values again and again.
        """
        if func is aten._local_scalar_dense.default:
            self._ask(MOST_READ, "what it knows, as a loop does that never ends, or one too long")
        if facts(func).may_alias:
            return self._dice.run(func, args, keywords)
        unreal_args, unreal = tree_map(_on_meta, (args, keywords))
        try:
            like = _REPEATS.run(
                func, unreal_args, unreal | {"device": META} if "device" in unreal else unreal
            )
        except (RuntimeError, NotImplementedError):
            pass  # its size depends on its values, which are known
        else:
            if sum(tensor.numel() for tensor in tensors_in(like)) > MAX_KNOWN_ELEMENTS:
                moved = facts(func).is_to_copy and args[0].dtype == like.dtype
                return args[0] if moved else like
        if keywords.get("device") == META:
            keywords["device"] = torch.device("cpu")
        if facts(func).is_allocation:
            return func(*args, **keywords).zero_()
        try:
            return self._dice.run(func, args, keywords)
        except NotImplementedError:
            return _in_double(func, args, keywords)

    def assume(self, what: str) -> None:
        """Count an assumption; the report names it.

        Raises `Endless` where one line needs it more often than any loop that ends by itself: one
        that only data ends does not end here, where every answer is the same.
        """
        self.assumed[what] += 1
        self._ask(MOST_ASKED, "what only data decides, as a loop does that only data ends")

    def _ask(self, most: int, what: str) -> None:
        """The line that runs asks for a value. Raises `Endless` where it did so too often."""
        place = call_stack.place_of_call(3)
        self._asked[most, place] += 1
        if self._asked[most, place] > most:
            raise EndlessLoop(f"{call_stack.line(*place[1:])} asked {most:,} times for {what}")

    def notes(self) -> list[str]:
        """What was assumed, for the report."""
        return [f"{what} (×{number})" for what, number in self.assumed.items()]


def _on_meta(value: Any) -> Any:
    return value.to(META) if isinstance(value, torch.Tensor) else value


def _in_double(func: Any, args: Any, keywords: dict[str, Any]) -> Any:
    """A kernel that the host has for floating point alone, where a GPU counts integers too."""
    given = tensors_in((args, keywords))[0]
    if given.is_floating_point():
        raise NotImplementedError(f"{func} for {given.dtype}")
    args, keywords = tree_map(
        lambda value: value.double() if isinstance(value, torch.Tensor) else value,
        (args, keywords),
    )
    return tree_map(lambda out: out.to(given.dtype), func(*args, **keywords))


def _value(answers: PartialEvaluation, tensor: torch.Tensor) -> bool | int | float:
    """Code that asks a tensor for its value, as a check for padding does.

    The generic answer: no for a condition, unless it is that all of something holds; one for a
    number.
    """
    value: bool | float = 1.0 if tensor.is_floating_point() else 1
    if tensor.dtype is torch.bool:
        value = answers.expects(tensor)
    answers.assume(f"the code asked for a value that only data decides: taken as {value}")
    return value


def _whole_numbers(
    answers: PartialEvaluation,
    data: torch.Tensor,
    *,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Any:
    """Data turned into whole numbers, as predicted durations are: the generic 1, each of them."""
    counts = dtype is not None and not (dtype.is_floating_point or dtype.is_complex)
    if (
        not data.is_floating_point()
        or not counts
        or dtype is torch.bool
        or data.numel() > MAX_KNOWN_ELEMENTS
    ):
        return NotImplemented
    answers.assume("a whole number that only data decides is taken as 1")
    return torch.ones(data.shape, dtype=dtype)


def _grouped_matmul(
    answers: PartialEvaluation,
    rows: torch.Tensor,
    weights: torch.Tensor,
    *rest: Any,
    **options: Any,
) -> torch.Tensor:
    """The experts' grouped matmul: its meta kernel takes bfloat16 alone, as no device does."""
    return rows.new_empty((*rows.shape[:-1], weights.shape[-1]), device=META)


def _product(answers: PartialEvaluation, *given: torch.Tensor, **options: Any) -> Any:
    """A matmul: its meta kernel takes float64 beside others, which no device nor autocast does."""
    dtypes = {tensor.dtype for tensor in tensors_in(given)}
    if len(dtypes) > 1 and torch.float64 in dtypes:
        raise RuntimeError(f"a matmul of {' and '.join(sorted(map(dtype_name, dtypes)))}")
    return NotImplemented


def _chosen(rows: int, number: int, among: int) -> torch.Tensor:
    """`[rows, number]` choices among so many, each as often as any other, none twice in a row.

    On the host where they are few enough to be known, else on `meta`.
    """
    if rows * number > MAX_KNOWN_ELEMENTS:
        return torch.empty((rows, number), dtype=torch.long, device=META)
    return torch.arange(rows * number).remainder_(max(among, 1)).view(rows, number)


def _choices(
    answers: PartialEvaluation, scores: torch.Tensor, number: int, dim: int
) -> torch.Tensor:
    """Which `number` along a dimension are taken, where only data decides: all alike."""
    answers.assume(
        "a choice that only data decides (top-k, argmax) is taken as balanced, "
        "as is the routing to experts"
    )
    shape = list(scores.shape) or [1]
    among = shape.pop(dim)
    chosen = _chosen(math.prod(shape), number, among).view(*shape, number)
    return chosen.movedim(-1, dim)


def _topk(
    answers: PartialEvaluation,
    scores: torch.Tensor,
    k: int,
    dim: int = -1,
    *rest: Any,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Routing to experts and the like: the largest of unknown scores."""
    if k > (scores.shape[dim] if scores.dim() else 1):
        raise RuntimeError(f"selected index k out of range: {k} of {tuple(scores.shape)}")
    indices = _choices(answers, scores, k, dim)
    return scores.new_empty(indices.shape, device=META), indices


def _largest(
    answers: PartialEvaluation, scores: torch.Tensor, dim: int | None = None, keepdim: bool = False
) -> torch.Tensor:
    """The place of the largest or least of unknown scores."""
    if dim is None or not scores.dim():
        index = _choices(answers, scores.flatten(), 1, 0).squeeze(0)
        return index.view((1,) * scores.dim()) if keepdim else index
    indices = _choices(answers, scores, 1, dim)
    return indices if keepdim else indices.squeeze(dim)


def _largest_with_value(
    answers: PartialEvaluation, scores: torch.Tensor, dim: int, keepdim: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    indices = _largest(answers, scores, dim, keepdim)
    return scores.new_empty(indices.shape, device=META), indices


def _sorted(
    answers: PartialEvaluation, scores: torch.Tensor, dim: int = -1, *rest: Any, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The order of unknown scores: taken to be in order already."""
    answers.assume("an order that only data decides is taken as the present one")
    values = torch.empty_like(scores, device=META)
    if scores.numel() > MAX_KNOWN_ELEMENTS or not scores.dim():
        return values, torch.empty_like(scores, dtype=torch.long, device=META)
    places = torch.arange(scores.shape[dim])
    return values, places.expand(scores.movedim(dim, -1).shape).movedim(-1, dim).contiguous()


def _sorted_stable(
    answers: PartialEvaluation, scores: torch.Tensor, *, dim: int = -1, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    return _sorted(answers, scores, dim)


def _drawn(
    answers: PartialEvaluation, chances: torch.Tensor, number: int, *rest: Any, **options: Any
) -> torch.Tensor:
    """A random draw by unknown chances."""
    return _choices(answers, chances, number, -1)


_EVERYTHING = "a mask that only data decides is taken to select everything"


def _all_of(answers: PartialEvaluation, mask: torch.Tensor) -> torch.Tensor:
    """The places where an unknown mask holds, `[places, dimensions]`: everywhere."""
    answers.assume(_EVERYTHING)
    if mask.numel() > MAX_KNOWN_ELEMENTS:
        return torch.empty((mask.numel(), mask.dim()), dtype=torch.long, device=META)
    return torch.ones(mask.shape, dtype=torch.bool).nonzero()


def _selected(answers: PartialEvaluation, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Values under a mask: as many as a known mask says, all under an unknown one."""
    shape = torch.broadcast_shapes(values.shape, mask.shape)
    if answers.knows(mask):
        return values.new_empty(int(mask.expand(shape).sum()), device=META)
    answers.assume(_EVERYTHING)
    return values.new_empty(math.prod(shape), device=META)


def _places(answers: PartialEvaluation, indices: Sequence[torch.Tensor | None]) -> list[Any]:
    """Indices on `meta`, each mask among them replaced by the places where it holds."""
    found: list[torch.Tensor | None] = []
    for index in indices:
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            found.append(index if index is None else index.to(META))
            continue
        if answers.knows(index):
            count = int(index.count_nonzero())
        else:
            answers.assume(_EVERYTHING)
            count = index.numel()
        found += [torch.empty(count, dtype=torch.long, device=META) for _ in index.shape]
    return found


def _indexed(
    answers: PartialEvaluation, values: torch.Tensor, indices: Sequence[torch.Tensor | None]
) -> torch.Tensor:
    """Indexing by a mask: its result is as long as the mask has places."""
    return aten.index.Tensor(values.to(META), _places(answers, indices))


def _index_written(
    answers: PartialEvaluation,
    values: torch.Tensor,
    indices: Sequence[torch.Tensor | None],
    written: torch.Tensor,
    accumulate: bool = False,
) -> torch.Tensor:
    """Writing under a mask."""
    return aten.index_put.default(
        values.to(META), _places(answers, indices), written.to(META), accumulate
    )


def _index_written_in_place(
    answers: PartialEvaluation,
    values: torch.Tensor,
    indices: Sequence[torch.Tensor | None],
    written: torch.Tensor,
    accumulate: bool = False,
) -> torch.Tensor:
    answers.overwrite(values)
    return values


def _distinct(
    answers: PartialEvaluation, values: torch.Tensor, *rest: Any, **options: Any
) -> tuple[torch.Tensor, ...]:
    """`unique` of unknown values: no two are the same."""
    answers.assume("values that only data decides are taken as all different")
    count = values.numel()
    whole = torch.empty(count, dtype=torch.long, device=META)
    return values.new_empty(count, device=META), whole.view(values.shape), whole


def _distinct_along(
    answers: PartialEvaluation, values: torch.Tensor, dim: int, *rest: Any, **options: Any
) -> tuple[torch.Tensor, ...]:
    answers.assume("values that only data decides are taken as all different")
    whole = torch.empty(values.shape[dim], dtype=torch.long, device=META)
    return torch.empty_like(values, device=META), whole, whole


def _counted(
    answers: PartialEvaluation, values: torch.Tensor, weights: Any = None, minlength: int = 0
) -> torch.Tensor:
    """`bincount` of unknown values: none is beyond the least length."""
    answers.assume("counts that only data decides are taken as one bin for each")
    dtype = torch.long if weights is None else weights.dtype
    return torch.empty(minlength or values.numel(), dtype=dtype, device=META)


def _histogram(
    answers: PartialEvaluation, values: torch.Tensor, bins: int = 100, *rest: Any
) -> torch.Tensor:
    """`histc` of unknown values: meta has no such kernel."""
    return values.new_empty(bins, device=META)


def _repeated(
    answers: PartialEvaluation, repeats: torch.Tensor, output_size: int | None = None
) -> Any:
    """`repeat_interleave` by unknown numbers: each once, unless the code says how many."""
    if output_size is None:
        answers.assume("a number of repeats that only data decides is taken as 1")
    return torch.empty(output_size or repeats.numel(), dtype=repeats.dtype, device=META)


def _all(
    answers: PartialEvaluation, values: torch.Tensor, *rest: Any, **options: Any
) -> torch.Tensor:
    """Whether a condition holds everywhere, as a mask of no padding does: yes, if asked."""
    data = torch.empty(values.shape, dtype=values.dtype, device=META)
    return answers.expect(aten.any.default(data))


def _unequal(
    answers: PartialEvaluation, one: torch.Tensor, other: torch.Tensor, *rest: Any
) -> bool:
    """`torch.equal` or `allclose` of unknown values."""
    answers.assume("the code asked for a value that only data decides: taken as False")
    return False


_ANSWERS: dict[Any, Callable[..., Any]] = {
    aten._local_scalar_dense.default: _value,
    aten._to_copy.default: _whole_numbers,
    aten._grouped_mm.default: _grouped_matmul,
    aten.mm.default: _product,
    aten.addmm.default: _product,
    aten.topk.default: _topk,
    aten.argmax.default: _largest,
    aten.argmin.default: _largest,
    aten.max.dim: _largest_with_value,
    aten.min.dim: _largest_with_value,
    aten.sort.default: _sorted,
    aten.sort.stable: _sorted_stable,
    aten.multinomial.default: _drawn,
    aten.nonzero.default: _all_of,
    aten.masked_select.default: _selected,
    aten.index.Tensor: _indexed,
    aten.index_put.default: _index_written,
    aten.index_put_.default: _index_written_in_place,
    aten._unique2.default: _distinct,
    aten.unique_consecutive.default: _distinct,
    aten.unique_dim.default: _distinct_along,
    aten.bincount.default: _counted,
    aten.histc.default: _histogram,
    aten.repeat_interleave.Tensor: _repeated,
    aten.equal.default: _unequal,
    aten.allclose.default: _unequal,
    aten.all.default: _all,
    aten._is_all_true.default: _all,
}


class _Calls(TorchFunctionMode):
    """Answers the calls whose values no dispatch mode sees."""

    def __init__(self, answers: PartialEvaluation) -> None:
        super().__init__()
        self._answers = answers

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = dict(kwargs or {})
        answer = _CALLS.get(func)
        if answer is not None:
            args, keywords = answer(self._answers, args, keywords)
        elif func in RECURRENT and not all(map(self._answers.knows, tensors_in(args))):
            return recurrent_outputs(*args)
        return func(*args, **keywords)


def _to_python(answers: PartialEvaluation, args: Any, keywords: Any) -> Any:
    """Values handed to plain Python, by `tolist` or `numpy`: the generic one where unknown."""
    tensor = args[0]
    if not answers.knows(tensor):
        value = _value(answers, tensor)
        tensor = torch.full(tensor.shape, value, dtype=tensor.dtype, device="cpu")
    return (tensor, *args[1:]), keywords


def _from_python(answers: PartialEvaluation, args: Any, keywords: Any) -> Any:
    """A tensor made of plain Python values: they are known, wherever it is to live."""
    if not any(tensor.is_meta for tensor in tensors_in(args)) and "device" in keywords:
        keywords["device"] = None
    return args, keywords


_CALLS: dict[Any, Callable[..., Any]] = {
    torch.Tensor.tolist: _to_python,
    torch.Tensor.numpy: _to_python,
    torch.Tensor.__array__: _to_python,
    torch.tensor: _from_python,
    torch.as_tensor: _from_python,
    torch.asarray: _from_python,
}


@contextmanager
def evaluating_partially(before: PartialEvaluation | None = None) -> Iterator[PartialEvaluation]:
    """While open, a pass on `meta` is evaluated partially; yields what it had to assume."""
    with DeferredInterrupt() as stopped:
        answers = PartialEvaluation(stopped, before)
        with torch.no_grad(), _Calls(answers), answers:
            yield answers
