"""How long a context a model can read, and what to say where that is not as asked."""

from typing import Any

import torch

from llmsim_magic.capture.inputs.signature import HuggingFaceModel, parameters, text_configs
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.trace.workload import Workload


def is_huggingface(model: torch.nn.Module) -> bool:
    """Whether a module carries a config that says what it reads."""
    return hasattr(getattr(model, "config", None), "get_text_config")


def longest_context(model: HuggingFaceModel) -> int | None:
    """The tokens that a learned position table has rows for; None where nothing sets a limit.

    A table is an embedding, not of the vocabulary, of as many rows as the config declares
    positions; rows up to a padding index or an offset hold no position.
    """
    if not is_huggingface(model) or not reads_tokens(model):
        return None
    declared = set(_declared(model.config))
    vocabulary = {getattr(text, "vocab_size", None) for text in text_configs(model.config)}
    limits = []
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and module.weight.shape[0] not in vocabulary:
            rows = module.weight.shape[0]
            padding = 0 if module.padding_idx is None else module.padding_idx + 1
            offset = int(getattr(module, "offset", 0))
            if rows - offset in declared:
                limits.append(rows - max(padding, offset))
    return min(limits, default=None)


def declared_context(model: HuggingFaceModel) -> int | None:
    """The longest context that the config says the model is meant for."""
    return min(_declared(model.config), default=None)


def _declared(config: Any) -> list[int]:
    names = ("max_position_embeddings", "max_target_positions")
    texts = text_configs(config)
    found = [getattr(text, name, None) for text in texts for name in names]
    return [number for number in found if isinstance(number, int)]


def fit_context(longest: int | None, workload: Workload, name: str, *, shorten: bool) -> Workload:
    """The workload, held to the `longest` context that the model has positions for.

    A context beyond it is cut with `shorten`; otherwise it raises `InvalidValue`.
    """
    if longest is None:
        return workload
    most = longest - (workload.phase == "decode")
    if workload.context <= most:
        return workload
    if shorten:
        return Workload(workload.phase, workload.batch, most)
    raise InvalidValue.must_be(
        f"{name}: context",
        workload.context,
        f"within its learned position table (at most {most} in {workload.phase})",
    )


def context_note(model: HuggingFaceModel, workload: Workload) -> list[str]:
    """A remark where the context is longer than the config declares and positions still compute."""
    declared = declared_context(model)
    tokens = workload.context + (workload.phase == "decode")
    if declared is None or not reads_tokens(model) or tokens <= declared:
        return []
    return [f"{tokens} tokens are more than the {declared} positions that the config declares"]


def reads_tokens(model: HuggingFaceModel) -> bool:
    return bool({"input_ids", "decoder_input_ids"} & set(parameters(model.forward)))
