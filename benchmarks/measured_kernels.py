"""Reads measured operators of a data directory, and converts them to kernel shapes.

`operators.csv.gz` has one row per measurement; columns that do not apply are empty. A row that says
too little to tell its sizes is left out, with the reason.
"""

import csv
import gzip
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmsim_magic.catalog import accelerators, models
from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.records.hardware.calibration import Regime, Sample
from llmsim_magic.records.hardware.dtypes import arithmetic
from llmsim_magic.records.hardware.kernel_shapes import (
    Attention,
    Collective,
    KernelShape,
    Matmul,
    Stream,
)

Row = Mapping[str, str]

_COLLECTIVES = {
    "allreduce": "all_reduce",
    "allgather": "all_gather",
    "reducescatter": "reduce_scatter",
    "alltoall": "all_to_all",
}
_ATTENTIONS = (
    "attention",
    "attn_decode",
    "attn_prefill",
    "mha",
    "sdpa",
    "flash_attn",
    "paged_attn",
)
_UNMASKED = ("noncausal", "non-causal", "bidirectional", "full")
_STREAMS = {
    "softmax": "softmax",
    "layernorm": "normalisation",
    "rmsnorm": "normalisation",
    "norm": "normalisation",
    "inputlayernorm": "normalisation",
    "postattentionlayernorm": "normalisation",
    "gelu": "elementwise",
    "silu": "elementwise",
    "relu": "elementwise",
    "add": "elementwise",
    "mul": "elementwise",
    "mlpact": "gated",
    "siluandmul": "gated",
    "attnrope": "rotary",
    "rope": "rotary",
    "emb": "embedding",
    "embedding": "embedding",
}


# Models that operators are profiled for and the catalogue does not list, by their config.json:
# hidden size, heads, key-value heads, head size, intermediate size, vocabulary, gated (1) or not.
_DIMENSIONS = {
    "meta-llama-3-8b": (4096, 32, 8, 128, 14336, 128256, 1),
    "meta-llama-3-70b": (8192, 64, 8, 128, 28672, 128256, 1),
    "codellama-34b-instruct-hf": (8192, 64, 8, 128, 22016, 32000, 1),
    "internlm-20b": (5120, 40, 40, 128, 13824, 103168, 1),
    "internlm2-20b": (6144, 48, 8, 128, 16384, 92544, 1),
    "qwen-72b": (8192, 64, 64, 128, 24576, 152064, 1),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """A sample with the device it was measured on and the class it is scored in."""

    device: str
    scored: str
    sample: Sample
    source: str


class UnusableRow(Exception):
    """Why a row cannot be used."""


def read(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a table, gzipped or not; none if it is not there."""
    for candidate in (path, path.with_suffix("") if path.suffix == ".gz" else path):
        if candidate.exists():
            opener = gzip.open if candidate.suffix == ".gz" else open
            with opener(candidate, "rt", encoding="utf-8", newline="") as file:
                yield from csv.DictReader(file)
            return


def operators(data: Path) -> tuple[list[Measured], Counter[str]]:
    """Every usable row of `operators.csv.gz`, and how many were left out for which reason."""
    found: list[Measured] = []
    left_out: Counter[str] = Counter()
    for row in read(data / "operators.csv.gz"):
        try:
            found.append(_measured(row))
        except UnusableRow as why:
            left_out[str(why)] += 1
        except (LlmsimError, KeyError, ValueError) as why:
            left_out[f"{row.get('op')}: {type(why).__name__}: {why}"] += 1
    return found, left_out


def _measured(row: Row) -> Measured:
    device = accelerators.find(row["hardware"].removesuffix(" (one GCD)"))
    seconds = float(row["latency_us"]) / 1e6
    if not seconds > 0:
        raise UnusableRow("no time measured")
    size = _size(row)
    sample = Sample(size, seconds, _regime(row.get("notes", "")))
    return Measured(device.name, _scored(size), sample, row["source"])


def _scored(size: KernelShape) -> str:
    if isinstance(size, Matmul):
        return f"matmul_{'bf16' if arithmetic(size.dtype) == 'fp16' else arithmetic(size.dtype)}"
    if isinstance(size, Attention):
        return f"{size.kind.removeprefix('attention ')}_attention"
    return "collective" if isinstance(size, Collective) else "memory_bound"


def _regime(notes: str) -> Regime:
    """A note tells how kernels were started; a kernel alone is timed by events or in a graph."""
    words = notes.lower()
    if "eager" in words or "includes launch" in words:
        return "eager"
    return "events" if "event" in words else "graph"


def _size(row: Row) -> KernelShape:
    model, _, name = row["op"].rpartition(":")
    op = re.sub(r"\(.*\)", "", name).lower()
    plain = re.sub(r"[^a-z]", "", op)
    if _has(row, "heads_lora_rope"):
        raise UnusableRow("latent attention: its kernels were not fitted")
    if plain in _COLLECTIVES:
        return _collective(row, _COLLECTIVES[plain])
    if plain not in _STREAMS and any(word in op for word in _ATTENTIONS):
        return _attention(row, model)
    if _has(row, "m", "n", "k"):
        dtype, scaled = _dtype(row["dtype"])
        m, n, k = (int(float(row[name])) for name in ("m", "n", "k"))
        return Matmul(m=m, n=n, k=k, dtype=dtype, scaled="block" if scaled else "tensor")
    if model:
        return _of_model(row, model, op, plain)
    if plain in _STREAMS:
        return _stream(row, plain)
    raise UnusableRow(f"{row['op']}: not a class that is scored")


def _dtype(text: str) -> tuple[str, bool]:
    """The arithmetic of a spelling such as `bf16/fp16` or `fp8_block`, and whether by block."""
    word = text.lower().split("/")[0].strip()
    return arithmetic(word), "block" in word


def _bits(text: str) -> int:
    return {"fp32": 32, "fp8": 8, "int8": 8}.get(_dtype(text)[0], 16)


def _collective(row: Row, of: Any) -> Collective:
    if _has(row, "bytes"):
        message = float(row["bytes"])
    else:
        message = float(row["message_size_elems"]) * _bits(row["dtype"]) / 8
    library = "engine" if "custom" in row.get("notes", "").lower() else "nccl"
    return Collective(of, message, int(float(row["n_gpus"])), library)


def _attention(row: Row, model: str) -> Attention:
    causal = not any(word in row["op"].lower() for word in _UNMASKED)
    heads, kv_heads, head_dim = _heads(row, model)
    dtype, _, kv = row["dtype"].partition("/")
    kv_dtype = arithmetic(kv.strip().removeprefix("kv ")) if "kv " in kv else None

    def whole(*names: str) -> int:
        return next((int(float(row[name])) for name in names if _has(row, name)), 0)

    if whole("prefill_chunk") and whole("n_decode"):
        raise UnusableRow("prefill and decode in one kernel: their times cannot be told apart")
    batch = whole("n_decode", "sequences", "batch") or 1
    keys = whole("kv_len", "kv_decode")
    queries = whole("seq", "seq_len", "prefill_chunk") or 1
    if keys and "decode" in row["op"]:
        queries = 1
    elif not keys:
        keys = queries + whole("kv_prefill")
    if not keys:
        raise UnusableRow("attention without a length")
    return Attention(
        batch=batch,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        queries=queries,
        keys=keys,
        causal=causal and queries > 1,
        dtype=arithmetic(dtype.strip()),
        kv_dtype=kv_dtype,
    )


def _heads(row: Row, model: str) -> tuple[int, int, int]:
    """Heads, key-value heads and their size: given, packed into one column, or the model's."""
    if _has(row, "heads", "kv_heads", "head_dim"):
        return tuple(int(float(row[name])) for name in ("heads", "kv_heads", "head_dim"))  # type: ignore[return-value]
    packed = [int(number) for number in re.findall(r"\d+", row.get("heads_kv_dim", ""))]
    if len(packed) == 3:
        return packed[0], packed[1], packed[2]
    config, tp = _config(model), int(float(row.get("tp") or 1))
    return config["heads"] // tp, max(config["kv_heads"] // tp, 1), config["head_dim"]


def _of_model(row: Row, model: str, op: str, plain: str) -> KernelShape:
    """An operator of a decoder layer whose sizes are the model's, shared out over `tp` devices."""
    config, tp = _config(model), int(float(row.get("tp") or 1))
    tokens = int(float(row["tokens"]))
    dtype, _ = _dtype(row["dtype"])
    hidden = config["hidden"]
    inner, mine = config["heads"] * config["head_dim"], config["intermediate"]
    keys = config["kv_heads"] * config["head_dim"]
    products = {
        "attn_pre_proj": ((inner + 2 * keys) // tp, hidden),
        "attn_post_proj": (hidden, inner // tp),
        "mlp_up_proj": ((1 + config["gated"]) * mine // tp, hidden),
        "mlp_down_proj": (hidden, mine // tp),
        "lm_head": (config["vocabulary"] // tp, hidden),
    }
    if op in products:
        n, k = products[op]
        return Matmul(m=tokens, n=n, k=k, dtype=dtype)
    elements = {
        "add": 3 * hidden,
        "attn_rope": 2 * (inner + keys) // tp,
        "emb": 2 * hidden,
        "input_layernorm": 2 * hidden,
        "post_attention_layernorm": 2 * hidden,
        "mlp_act": (2 + config["gated"]) * mine // tp,
    }
    if op not in elements:
        raise UnusableRow(f"{op}: not a class that is scored")
    of: Any = "elementwise" if plain == "mlpact" and not config["gated"] else _STREAMS[plain]
    return Stream(of, tokens * elements[op] * _bits(row["dtype"]) / 8, tokens)


def _stream(row: Row, plain: str) -> Stream:
    """One tensor read, one written."""
    rows = int(float(row["rows"])) if _has(row, "rows") else 1
    count = float(row["numel"]) if _has(row, "numel") else rows * float(row["cols"])
    of: Any = _STREAMS[plain]
    return Stream(of, 2 * count * _bits(row["dtype"]) / 8, rows)


def _config(model: str) -> dict[str, int]:
    wanted = model.rpartition("/")[2].lower()
    if wanted in _DIMENSIONS:
        names = ("hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocabulary", "gated")
        return dict(zip(names, _DIMENSIONS[wanted], strict=True))
    for entry in models.entries().values():
        spellings = (entry.name, *entry.aliases)
        if any(spelling.rpartition("/")[2].lower() == wanted for spelling in spellings):
            config = entry.config
            heads, hidden = config["num_attention_heads"], config["hidden_size"]
            return {
                "hidden": hidden,
                "heads": heads,
                "kv_heads": config.get("num_key_value_heads") or heads,
                "head_dim": config.get("head_dim") or hidden // heads,
                "intermediate": config["intermediate_size"],
                "vocabulary": config["vocab_size"],
                "gated": int(config.get("hidden_act", "silu") == "silu"),
            }
    raise UnusableRow(f"{model}: not in the catalogue of models")


def _has(row: Row, *names: str) -> bool:
    return all(row.get(name) not in (None, "") for name in names)
