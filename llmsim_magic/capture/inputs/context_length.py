"""The longest context that a model can read, and the note where a workload exceeds it."""

from typing import Any

import torch

from llmsim_magic.capture.meta.evaluation_modes import evaluating_partially
from llmsim_magic.capture.meta.snapshot import restored
from llmsim_magic.capture.modalities.signature import HuggingFaceModel, parameters, text_configs
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.trace.context_limits import fit_context
from llmsim_magic.records.trace.workload import Workload


def is_huggingface(model: torch.nn.Module) -> bool:
    """Whether a module has a config of transformers, from which inputs can be made."""
    return hasattr(getattr(model, "config", None), "get_text_config")


def longest_context(model: HuggingFaceModel) -> int | None:
    """The number of tokens that a model has positions for.

    A position table is an embedding, other than the vocabulary's, with as many rows as the config
    declares positions. Rows up to the padding index or the offset hold no position. A module may
    instead hold the numbers of all positions in a buffer `position_ids` and fail beyond them.

    Args:
        model: Any module.

    Returns:
        The limit in tokens; None without one.
    """
    if not is_huggingface(model) or not reads_tokens(model):
        return None
    declared = set(_declared_positions(model.config))
    vocabulary = {getattr(text, "vocab_size", None) for text in text_configs(model.config)}
    limits = []
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and module.weight.shape[0] not in vocabulary:
            rows = module.weight.shape[0]
            padding = 0 if module.padding_idx is None else module.padding_idx + 1
            offset = int(getattr(module, "offset", 0))
            if rows - offset in declared:
                limits.append(rows - max(padding, offset))
        elif (count := _numbered_positions(module)) in declared and _fails_beyond(module, count):
            limits.append(count)
    return min(limits, default=None)


def _numbered_positions(module: torch.nn.Module) -> int:
    """The length of a module's buffer `position_ids`; 0 without one, or if it reads no tokens."""
    numbers = module._buffers.get("position_ids")
    if numbers is None or "input_ids" not in parameters(module.forward):
        return 0
    return numbers.shape[-1]


def _fails_beyond(module: torch.nn.Module, count: int) -> bool:
    """Whether a module reads `count` tokens and no more; some compute any position they need."""
    return _reads(module, count) and not _reads(module, count + 1)


def _reads(module: torch.nn.Module, count: int) -> bool:
    try:
        with restored(module), evaluating_partially():
            module(input_ids=torch.zeros(1, count, dtype=torch.long))
    except Exception:  # the module may raise anything
        return False
    return True


def longest_that_runs(model: HuggingFaceModel, tokens: int) -> int | None:
    """The number of tokens beyond which a forward fails, found by running it on meta.

    Tables of sinusoids, causal masks and biases limit it, which a class may hold in buffers, in
    plain attributes or not at all. The forward is taken to run on every shorter context.

    Args:
        model: Any module.
        tokens: A number of tokens, probably too large.

    Returns:
        The limit in tokens, less than `tokens`; None if `tokens` run, or a single one fails.
    """
    if not is_huggingface(model) or not reads_tokens(model):
        return None
    if _reads(model, tokens) or not _reads(model, 1):
        return None
    runs, fails = 1, tokens
    declared = declared_context(model)
    probes = [declared, declared + 1] if declared else []
    while fails - runs > 1:
        probe = probes.pop(0) if probes else (runs + fails) // 2
        if runs < probe < fails:
            runs, fails = (probe, fails) if _reads(model, probe) else (runs, probe)
    return runs


def declared_context(model: HuggingFaceModel) -> int | None:
    """The longest context in tokens that the config declares, or None."""
    return min(_declared_positions(model.config), default=None)


def _declared_positions(config: Any) -> list[int]:
    names = ("max_position_embeddings", "max_target_positions", "n_positions", "max_seq_len")
    texts = text_configs(config)
    values = [getattr(text, name, None) for text in texts for name in names]
    return [value for value in values if isinstance(value, int)]


def check_context_runs(model: HuggingFaceModel, workload: Workload, name: str) -> None:
    """After a forward has failed, check whether it runs on a shorter context.

    Args:
        model: Any module.
        workload: The workload that failed.
        name: The model's name, for the error message.

    Raises:
        InvalidValue: If it does; the message says the longest context.
    """
    longest = longest_context(model) if is_huggingface(model) else None
    fit_context(longest, workload, name, shorten=False)
    is_decode = workload.phase == "decode"
    runs = longest_that_runs(model, workload.context + is_decode)
    if runs is not None:
        raise InvalidValue(
            f"{name}: context {workload.context} is too long: its forward fails beyond {runs} "
            f"tokens, so at most {runs - is_decode} in {workload.phase}"
        )


def context_note(model: HuggingFaceModel, workload: Workload) -> list[str]:
    """A note if the context is longer than the config declares, which the model still computes."""
    declared = declared_context(model)
    tokens = workload.context + (workload.phase == "decode")
    if declared is None or not reads_tokens(model) or tokens <= declared:
        return []
    return [f"{tokens:,} tokens exceed the model's maximum of {declared:,} tokens in its config"]


def reads_tokens(model: HuggingFaceModel) -> bool:
    """Whether the model's forward takes token ids."""
    return bool({"input_ids", "decoder_input_ids"} & set(parameters(model.forward)))
