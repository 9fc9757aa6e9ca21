"""How each column appears in a terminal: its head, its format, and which go first when few fit."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from llmsim_magic.records.printable import printable

Kind = Literal[
    "path", "text", "prose", "shapes", "bool", "whole", "parameters", "bytes", "si", "seconds",
    "rate", "share", "number", "interval", "asked",
]  # fmt: skip
TEXTS: tuple[Kind, ...] = ("path", "text", "prose", "shapes", "bool")
LAST = 90  # importance of a column that is not declared


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table on screen.

    Attributes:
        head: its title.
        kind: the format of its cells.
        importance: 0 is always shown; where not all fit, the greatest go first; None is a detail
            for files, which no terminal shows.
    """

    head: str
    kind: Kind = "text"
    importance: int | None = LAST


def _costs() -> dict[str, Column]:
    return {
        "flops": Column("FLOPs", "si", 4),
        "bytes_read": Column("read", "bytes", 20),
        "bytes_written": Column("written", "bytes", 21),
        "arithmetic_intensity": Column("FLOPs/byte", "number", 24),
        "elementwise_ops": Column("elementwise", "si", 30),
        "causal_skippable_flops": Column("causal FLOPs", "si", 40),
        "bytes_weights": Column("weight bytes", "bytes", 41),
        "bytes_activations": Column("activation bytes", "bytes", 42),
        "bytes_cache": Column("cache bytes", "bytes", 32),
        "flops_share": Column("% of FLOPs", "share", 15),
        "bytes_share": Column("% of bytes", "share", 16),
    }


def _times() -> dict[str, Column]:
    return {
        "time_s": Column("time", "seconds", 3),
        "time_interval": Column("90 % interval", "interval", 14),
        "time_share": Column("% of time", "share", 8),
        "share": Column("share", "share", 4),
        "binds": Column("bottleneck", "text", 9),
        "tokens_per_s": Column("tokens/s", "rate", 5),
        "tokens_per_s_interval": Column("tokens/s 90 % interval", "interval", 50),
        "tokens_per_s_per_device": Column("tokens/s per device", "rate", 1),
        "mfu": Column("MFU", "share", 6),
        **{
            f"{part}_s": Column(part, "seconds", 28 + rank)
            for rank, part in enumerate(("forward", "backward", "recompute", "optimizer"))
        },
        "measured": Column("device measured", "bool", 33),
        "class": Column("kernel class", "text", 35),
        "of_peak": Column("of peak FLOP/s", "share", 27),
        "of_bandwidth": Column("of bandwidth", "share", 26),
        **{
            f"{phase}_{name}": column
            for rank, phase in enumerate(("prefill", "decode", "train"))
            for name, column in {
                "s": Column(phase, "seconds", 3),
                "interval": Column(f"{phase} 90 % interval", "interval", 25 + rank),
                "tokens_per_s": Column(f"{phase} tokens/s", "rate", 11 - rank),
                "tokens_per_s_interval": Column(f"{phase} tokens/s 90 % interval", "interval", 60),
                "binds": Column(f"{phase} bottleneck", "text", 17 + rank),
            }.items()
        },
    }


def _timeline() -> dict[str, Column]:
    parts = ("parameters", "gradients", "optimizer", "saved", "temporaries")
    return {
        "layers": Column("layers", "whole", 6),
        "peak_bytes": Column("peak", "bytes", 2),
        "change_bytes": Column("change", "bytes", 4),
        "saved_change_bytes": Column("saved change", "bytes", 3),
        "gradients_change_bytes": Column("gradients change", "bytes", 5),
        **{f"{name}_bytes": Column(name, "bytes", 10 + rank) for rank, name in enumerate(parts)},
    }


def _memory() -> dict[str, Column]:
    parts = ("weights", "buffers", "cache", "activations", "context")
    return {
        "bytes": Column("bytes", "bytes", 1),
        "total": Column("total", "bytes", 1),
        "usable_bytes": Column("usable", "bytes", 5),
        "total_bytes": Column("needed", "bytes", 4),
        "wire_bytes": Column("sent by each", "bytes", 4),
        "bytes_per_rank": Column("each device", "bytes", 2),
        "shape_per_rank": Column("shape on each", "shapes", 4),
        **{f"{name}_bytes": Column(name, "bytes", 19 + rank) for rank, name in enumerate(parts)},
        "fits": Column("fits", "bool", 1),
        "makes_it_fit": Column("to make it fit", "prose", 7),
        "peak_bytes": Column("peak", "bytes", 3),
        "largest_micro_batch": Column("largest micro-batch", "whole", 4),
        "devices_with_zero": Column("devices with ZeRO", "whole", 5),
        "zero": Column("stage of ZeRO", "whole", 5),
        "train_mfu": Column("MFU", "share", 10),
        "largest_batch": Column("largest batch", "whole", 12),
        "longest_context": Column("longest context", "whole", 13),
        "fits_with_tp": Column("fits with tp", "whole", None),
        "fits_with_batch": Column("fits with batch", "whole", None),
        "fits_with_context": Column("fits with context", "whole", None),
        "fits_with_weight_dtype": Column("fits with dtype", "text", None),
    }


COLUMNS: MappingProxyType[str, Column] = MappingProxyType(
    {
        "path": Column("path", "path", 0),
        "target_operator": Column("operator", "path", 0),
        "source_operator": Column("reads from", "path", 1),
        "waits_for_operators": Column("after", "path", 50),
        "waits_for": Column("after", "text", None),
        "name": Column("parameter", "path", 0),
        "op": Column("operator", "text", 2),
        "type": Column("type", "text", 1),
        "quantity": Column("quantity", "text", 0),
        "rank": Column("rank", "whole", 3),
        "value": Column("value", "number", 0),
        "unit": Column("unit", "text", None),
        "holds": Column("holds", "bool", 0),
        "status": Column("status", "text", 1),
        "change": Column("change", "prose", 2),
        "params_first": Column("first params", "parameters", 3),
        "params_second": Column("second params", "parameters", 4),
        "limit": Column("at most", "number", 0),
        "where": Column("where", "prose", 4),
        "detail": Column("detail", "prose", 6),
        "under": Column("under", "text", 3),
        "ratio": Column("second ÷ first", "number", 2),
        "difference": Column("second − first", "number", 3),
        "means": Column("meaning", "prose", 5),
        "error": Column("error", "prose", 2),
        "device": Column("device", "text", 0),
        "runtime": Column("runtime", "text", 1),
        "launch": Column("launch", "text", 2),
        "phase": Column("phase", "text", 0),
        "batch": Column("batch", "asked", 0),
        "context": Column("context", "asked", 0),
        "devices": Column("devices", "whole", 6),
        "operators": Column("operators", "whole", 25),
        "calls": Column("calls", "whole", 13),
        "children": Column("children", "whole", None),
        "call": Column("call", "whole", 40),
        "params": Column("own params", "parameters", 18),
        "params_total": Column("params", "parameters", 2),
        "output_shapes": Column("output", "shapes", 3),
        "input_shapes": Column("input", "shapes", 28),
        "weight_shapes": Column("weights", "shapes", 29),
        "shape": Column("shape", "shapes", 2),
        "collective": Column("collective", "text", 1),
        "ranks": Column("devices", "whole", 3),
        "stage": Column("stage", "text", 0),
        "style": Column("split", "text", 6),
        "through": Column("through", "text", 5),
        "dtype": Column("dtype", "text", 31),
        "cache_bytes": Column("cache", "bytes", 14),
        "saved_bytes": Column("saved", "bytes", 6),
        "tied_to": Column("tied to", "path", 36),
        **{
            name: Column(name, "text", None)
            for name in (
                "order", "kind", "layer", "parent", "depth", "trainable", "depends_on", "source",
                "target", "order_first", "in_features", "out_features", "num_embeddings",
                "embedding_dim", "changes", "pass", "backward_of",
            )
        },
        **_costs(),
        **_times(),
        **_memory(),
        **_timeline(),
    }
)  # fmt: skip


def declared(name: str) -> Column:
    """The column of this name; one that is not declared is shown last, as text."""
    return COLUMNS.get(name) or Column(printable(name))
