"""Token ids, and the places among them that images and sounds take."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from llmsim_magic.capture.inputs.signature import HuggingFaceModel, InputSpec, config_parts, held


@dataclass(frozen=True, slots=True)
class Span:
    """Placeholders in a row of tokens: `count` times the id `token`, for what `kind` of data."""

    kind: int
    token: int
    count: int


def plain_token(model: HuggingFaceModel) -> int:
    """The least id that the config gives no special meaning."""
    special: set[int] = set()
    for _, config in config_parts(model.config):
        for name, value in vars(config).items():
            if name.endswith(("_token_id", "_token_index")):
                special.update(value if isinstance(value, list) else [value])
    return next(number for number in itertools.count() if number not in special)


def tokens(model: HuggingFaceModel, batch: int, count: int) -> torch.Tensor:
    """Token ids `[batch, count]` on the host, where their values are known; none is special."""
    return torch.full((batch, count), plain_token(model), dtype=torch.long)


def tokens_around(ask: InputSpec, spans: Sequence[Span]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids `[batch, tokens]` with the spans after a first token, and what kind each of them is.

    As many tokens as the context, or as the spans need.
    """
    if not spans:
        ids = tokens(ask.model, ask.batch, ask.context)
        return ids, torch.zeros_like(ids)
    held(ask.batch, sum(span.count for span in spans))
    plain = plain_token(ask.model)
    row, kinds = [plain], [0]
    for span in spans:
        row += [span.token] * span.count + [plain]
        kinds += [span.kind] * span.count + [0]
    rest = max(ask.context - len(row), 0)
    row, kinds = row + [plain] * rest, kinds + [0] * rest
    ids, kind_of_each = (torch.tensor(values).repeat(ask.batch, 1) for values in (row, kinds))
    return ids, kind_of_each


def coded_tokens(ask: InputSpec, count: int, books: int) -> Iterator[torch.Tensor]:
    """Ids of models that read a token of every codebook at each position, in the ways there are.

    A row for every codebook, or at each position all of them, with or without one of a text.
    """
    if books:
        shapes = (
            (ask.batch * books, count),
            (ask.batch, count, books),
            (ask.batch, count, books + 1),
        )
        for shape in shapes:
            yield torch.full(shape, plain_token(ask.model), dtype=torch.long)
