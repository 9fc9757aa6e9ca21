"""Layouts of formats that quantise weights alone, by their configs."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from llmsim_magic.analyses.quantization.packing import (
    ALL,
    Packing,
    UnknownLayout,
    group_columns,
    of_every_linear,
)
from llmsim_magic.records.errors import one_of, shorten
from llmsim_magic.records.trace.quantization_config import (
    excluded_names,
    layouts_by_name,
    quantized_blocks,
)

_MLX_MODES = ("affine", "mxfp4", "mxfp8", "nvfp4")


def _gptq(config: Mapping[str, Any]) -> Packing:
    """Packed `qweight` and `qzeros`, float16 `scales`, and an int32 group index per input."""
    layers = layouts_by_name(config).items()
    return replace(
        _gptq_layout(config),
        excluded=excluded_names(config),
        by_name=tuple((name, _gptq_layout({**config, **keys})) for name, keys in layers),
    )


def _gptq_layout(keys: Mapping[str, Any]) -> Packing:
    bits = int(keys.get("bits", 4))
    return Packing(
        name="gptq",
        code_bits=bits,
        rows=1,
        columns=group_columns(keys.get("group_size", 128)),
        scale_bits=16,
        zero_bits=bits,
        column_bits=32,
    )


def _awq(config: Mapping[str, Any]) -> Packing:
    """As GPTQ without group indices; no zero points if quantisation is symmetric."""
    bits, group = int(config.get("bits", 4)), group_columns(config.get("group_size", 128))
    zeros = bits if config.get("zero_point", True) else 0
    excluded = excluded_names(config)
    return Packing(
        name="awq",
        code_bits=bits,
        rows=1,
        columns=group,
        scale_bits=16,
        zero_bits=zeros,
        excluded=excluded,
    )


def _bitsandbytes(config: Mapping[str, Any]) -> Packing:
    """int8 with a float32 scale per output, or 4 bits with a float32 scale per 64 inputs.

    Double quantisation stores 8-bit scales with a float32 per 256 of them. Each matrix also has
    its code tables.
    """
    if not config.get("load_in_4bit"):
        int8 = Packing(name="bitsandbytes int8", code_bits=8, rows=1, columns=ALL, scale_bits=32)
        return of_every_linear(int8, config)
    is_nested = bool(config.get("bnb_4bit_use_double_quant"))
    packing = Packing(
        name=f"bitsandbytes {config.get('bnb_4bit_quant_type', 'fp4')}",
        code_bits=4,
        rows=1,
        columns=64,
        scale_bits=8 + 32 / 256 if is_nested else 32,
        matrix_bits=32 * (16 + 256 + 1) if is_nested else 32 * 16,
    )
    return of_every_linear(packing, config)


def _hqq(config: Mapping[str, Any]) -> Packing:
    """A 16-bit scale and zero point for each group; ten codes of 3 bits fill 32 bits."""
    weight = (config.get("quant_config") or config).get("weight_quant_params")
    if not isinstance(weight, Mapping):
        raise UnknownLayout("has a quant_config by layer, and only one for all layers is supported")
    bits = int(weight["nbits"])
    if bits not in (1, 2, 3, 4, 8):
        raise UnknownLayout(f"has nbits {bits}, which must be one of 1, 2, 3, 4, 8")
    return Packing(
        name="hqq",
        code_bits=3.2 if bits == 3 else bits,
        rows=1,
        columns=int(weight.get("group_size") or ALL),
        scale_bits=16,
        zero_bits=16,
        excluded=excluded_names(config),
    )


def _aqlm(config: Mapping[str, Any]) -> Packing:
    """Codes for each group of weights, a 16-bit scale for each output, and 16-bit codebooks.

    A code is stored in the smallest integer of 8, 16, 32 or 64 bits that has room for it.
    """
    inputs, outputs = int(config.get("in_group_size", 8)), int(config.get("out_group_size", 1))
    books, bits = int(config.get("num_codebooks", 1)), int(config.get("nbits_per_codebook", 16))
    if not 1 <= bits <= 64:
        raise UnknownLayout(f"has nbits_per_codebook {bits}, which must be 1 to 64")
    stored = next(size for size in (8, 16, 32, 64) if bits <= size)
    return Packing(
        name="aqlm",
        code_bits=stored * books / (inputs * outputs),
        rows=outputs,
        columns=ALL,
        scale_bits=16,
        matrix_bits=books * 2**bits * inputs * outputs * 16,
        excluded=excluded_names(config),
    )


def _auto_round(config: Mapping[str, Any]) -> Packing:
    """As GPTQ or AWQ without group indices; layers may have bits of their own."""
    kind = str(config.get("data_type", "int"))
    if kind != "int":
        raise UnknownLayout(f"has data_type {shorten(kind)}, and only int has a known layout")
    whole = _auto_round_layout(config)
    layers = layouts_by_name(config)
    kept = tuple(name for name, keys in layers.items() if int(keys.get("bits", 16)) >= 16)
    others = {name: {**config, **keys} for name, keys in layers.items() if name not in kept}
    return replace(
        whole,
        excluded=(*excluded_names(config), *kept),
        only=quantized_blocks(config),
        by_name=tuple((name, _auto_round_layout(keys)) for name, keys in others.items()),
    )


def _auto_round_layout(keys: Mapping[str, Any]) -> Packing:
    bits, group = int(keys.get("bits", 4)), int(keys.get("group_size", 128))
    return Packing(
        name="auto-round",
        code_bits=bits,
        rows=1,
        columns=group_columns(group),
        scale_bits=16,
        zero_bits=bits,
    )


def _exl3(config: Mapping[str, Any]) -> Packing:
    """A trellis of `bits` a weight on average, and 16-bit scales for each input and output.

    The head has `head_bits`.
    """
    layers = Packing(
        name="exl3",
        code_bits=float(config["bits"]),
        rows=1,
        columns=ALL,
        scale_bits=16,
        column_bits=16,
        excluded=excluded_names(config),
    )
    return replace(layers, outer=replace(layers, code_bits=float(config.get("head_bits") or 6)))


def _mlx(config: Mapping[str, Any]) -> Packing:
    """A 16-bit scale and bias for each group, or an 8-bit scale (`mxfp4`, `mxfp8`, `nvfp4`).

    Linear layers and embeddings are packed; a layer may have a layout of its own, or none.
    """
    layers = layouts_by_name(config)
    own = {name: keys for name, keys in layers.items() if isinstance(keys, Mapping)}
    whole = _mlx_layout(config)
    return replace(
        whole,
        outer=whole,
        excluded=tuple(name for name, keys in layers.items() if keys is False),
        by_name=tuple((name, _mlx_layout({**config, **keys})) for name, keys in own.items()),
    )


def _mlx_layout(keys: Mapping[str, Any]) -> Packing:
    mode = str(keys.get("mode", "affine"))
    if mode not in _MLX_MODES:
        raise UnknownLayout(f"has mode {shorten(mode)}, which must be {one_of(_MLX_MODES)}")
    is_affine = mode == "affine"
    return Packing(
        name=f"mlx {mode}",
        code_bits=int(keys["bits"]),
        rows=1,
        columns=int(keys["group_size"]),
        scale_bits=16 if is_affine else 8,
        zero_bits=16 if is_affine else 0,
        embeddings=True,
    )


PARSERS: dict[str, Callable[[Mapping[str, Any]], Packing]] = {
    "gptq": _gptq,
    "awq": _awq,
    "bitsandbytes": _bitsandbytes,
    "hqq": _hqq,
    "aqlm": _aqlm,
    "auto-round": _auto_round,
    "exl3": _exl3,
    "mlx": _mlx,
}
