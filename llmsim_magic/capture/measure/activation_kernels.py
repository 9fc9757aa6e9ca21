"""Kernels that move activations, by the kinds that `TorchKernel` names.

Their operands stay the same, so that the cache holds as much of them as when the kernel before has
just written them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from llmsim_magic.capture.measure.bench import Bench, Job, nbytes
from llmsim_magic.records.hardware.torch_kernel import TorchKernel, TorchKind

_HEAD_DIM = 64
_TOP = 8  # experts of a token


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel on activations of rows × width.

    `reads` are the operands that are read whole, all by default; a kernel that gathers or scatters
    moves some rows of the others.
    """

    name: str
    kind: TorchKind
    operands: Callable[[Bench, int, int], tuple[Tensor, ...]]
    run: Callable[..., Tensor | tuple[Tensor, ...]]
    reads: tuple[int, ...] | None = None


def activation_job(case: Case, bench: Bench, rows: int, width: int) -> Job:
    """The job of a case for one size."""
    operands = case.operands(bench, rows, width)
    run = partial(case.run, *operands)
    result = run()
    results = result if isinstance(result, tuple) else (result,)
    reads = range(len(operands)) if case.reads is None else case.reads
    moved = sum(nbytes(operands[place]) for place in reads)
    if case.kind == "gathered":
        moved += 2 * nbytes(operands[-1] if case.run in _SCATTERS else results[0])
        counted = results
    else:
        moved += sum(map(nbytes, results))
        counted = (*operands, *results)
    kernel = TorchKernel(
        kind=case.kind, bytes=moved, elements=max(tensor.numel() for tensor in counted)
    )
    return Job.on(operands, case.name, kernel, run)


def _one(bench: Bench, rows: int, width: int) -> tuple[Tensor, ...]:
    return (bench.random(rows, width),)


def _one_wide(bench: Bench, rows: int, width: int) -> tuple[Tensor, ...]:
    return (bench.random(rows, width, dtype=torch.float32),)


def _two(bench: Bench, rows: int, width: int) -> tuple[Tensor, ...]:
    return bench.random(rows, width), bench.random(rows, width)


def _with_row_scale(bench: Bench, rows: int, width: int) -> tuple[Tensor, ...]:
    return (*_one_wide(bench, rows, width), bench.random(rows, 1, dtype=torch.float32))


def _with_column_scale(bench: Bench, rows: int, width: int) -> tuple[Tensor, ...]:
    return bench.random(rows, width), bench.random(width)


def _with_row_mask(bench: Bench, rows: int, width: int) -> tuple[Tensor, ...]:
    return bench.random(rows, width), bench.random(rows, 1) > 0


def _with_norm(bench: Bench, rows: int, width: int) -> tuple[Tensor, ...]:
    return bench.random(rows, width), bench.random(width), bench.random(width)


def _heads(bench: Bench, rows: int, width: int) -> tuple[Tensor, ...]:
    """Heads × tokens in the memory order of tokens × heads."""
    return (bench.random(1, rows, width // _HEAD_DIM, _HEAD_DIM).transpose(1, 2),)


def _shared_heads(bench: Bench, rows: int, width: int) -> tuple[Tensor, ...]:
    """Keys of grouped heads, broadcast to four query heads each."""
    heads = width // _HEAD_DIM // 4
    return (bench.random(1, heads, 1, rows, _HEAD_DIM).expand(1, heads, 4, rows, _HEAD_DIM),)


def _halves(bench: Bench, rows: int, width: int) -> tuple[Tensor, ...]:
    """The halves of a rotary embedding: one is new, one a part of the heads."""
    (heads,) = _heads(bench, rows, width)
    part = heads[..., : _HEAD_DIM // 2]
    return -heads[..., _HEAD_DIM // 2 :], part


def _cache_and_step(bench: Bench, rows: int, width: int) -> tuple[Tensor, ...]:
    heads = width // _HEAD_DIM
    return bench.random(1, heads, rows, _HEAD_DIM), bench.random(1, heads, 1, _HEAD_DIM)


def _table(bench: Bench, rows: int, width: int) -> tuple[Tensor, ...]:
    number = bench.pool.numel() // width
    return bench.pool[: number * width].view(number, width), bench.integers(number, rows)


def _permuted(bench: Bench, rows: int, width: int) -> tuple[Tensor, ...]:
    return bench.random(rows, width), torch.randperm(rows, device=bench.device)


def _added(bench: Bench, rows: int, width: int) -> tuple[Tensor, ...]:
    return bench.random(rows, width), bench.integers(rows, rows), bench.random(rows, width)


def _chosen(bench: Bench, rows: int, experts: int) -> tuple[Tensor, ...]:
    return bench.random(rows, experts), bench.integers(experts, rows, _TOP)


def _marked(bench: Bench, rows: int, experts: int) -> tuple[Tensor, ...]:
    return (*_chosen(bench, rows, experts), bench.random(rows, _TOP))


def _expert_ids(bench: Bench, rows: int, experts: int) -> tuple[Tensor, ...]:
    return (bench.integers(experts, rows * _TOP),)


def _scores(bench: Bench, rows: int, experts: int) -> tuple[Tensor, ...]:
    return (bench.random(rows, experts, dtype=torch.float32),)


def _clone(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _cat(*parts: Tensor) -> Tensor:
    return torch.cat(parts, -1)


def _cat_tokens(*parts: Tensor) -> Tensor:
    return torch.cat(parts, -2)


def _widen(x: Tensor) -> Tensor:
    return x.to(torch.float32)


def _narrow(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16)


def _mean(x: Tensor) -> Tensor:
    return x.mean(-1, keepdim=True)


def _softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, -1)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    return torch.native_layer_norm(x, x.shape[-1:], weight, bias, 1e-5)


def _fill_masked(x: Tensor, mask: Tensor) -> Tensor:
    return x.masked_fill_(mask, 0.0)


def _embed(table: Tensor, ids: Tensor) -> Tensor:
    return functional.embedding(ids, table)


def _select(x: Tensor, order: Tensor) -> Tensor:
    return x[order]


def _gather(x: Tensor, chosen: Tensor) -> Tensor:
    return x.gather(-1, chosen)


def _index_add(x: Tensor, rows: Tensor, added: Tensor) -> Tensor:
    return x.index_add_(0, rows, added)


def _scatter(x: Tensor, chosen: Tensor, values: Tensor) -> Tensor:
    return x.scatter_(-1, chosen, values)


def _sort(ids: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.sort(ids))


def _topk(scores: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.topk(scores, _TOP, -1))


_SCATTERS = (_index_add, _scatter)

ACTIVATIONS = (
    Case("add", "pointwise", _two, torch.add),
    Case("mul", "pointwise", _two, torch.mul),
    Case("silu", "pointwise", _one, functional.silu),
    Case("gelu", "pointwise", _one, functional.gelu),
    Case("rsqrt", "pointwise", _one_wide, torch.rsqrt),
    Case("cat", "pointwise", _cache_and_step, _cat_tokens),
    Case("_to_copy", "cast", _one, _widen),
    Case("_to_copy", "cast", _one_wide, _narrow),
    Case("mean", "reduction", _one_wide, _mean),
    Case("_softmax", "reduction", _one_wide, _softmax),
    Case("native_layer_norm", "reduction", _with_norm, _layer_norm),
    Case("embedding", "gathered", _table, _embed, (1,)),
    Case("index", "gathered", _permuted, _select, (1,)),
)
SEVERAL_ROWS = (  # one row is contiguous
    Case("mul", "strided", _with_row_scale, torch.mul),
    Case("mul", "strided", _with_column_scale, torch.mul),
    Case("clone", "strided", _heads, _clone),
    Case("clone", "strided", _shared_heads, _clone),
    Case("masked_fill_", "strided", _with_row_mask, _fill_masked),
    Case("cat", "joined", _halves, _cat),
    Case("index_add_", "gathered", _added, _index_add, (1, 2)),
)
ROUTERS = (  # of rows × experts
    Case("gather", "gathered", _chosen, _gather, (1,)),
    Case("scatter_", "gathered", _marked, _scatter, (1,)),
    Case("sort", "sort", _expert_ids, _sort),
    Case("topk", "topk", _scores, _topk),
)
