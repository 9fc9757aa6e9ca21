"""Layouts of modelopt, torchao, quark, hqq, aqlm, auto-round, exl3 and mlx, by their configs."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from llmsim_magic.analyses.memory.packing import ALL, Packing
from llmsim_magic.records.errors import shorten
from llmsim_magic.records.trace.quantization_config import (
    excluded_names,
    layouts_by_name,
    quantized_blocks,
)


class UnknownLayout(Exception):
    """A config from which the size of its weights does not follow; the text says what it has."""


def _modelopt(config: Mapping[str, Any]) -> Packing:
    """The layout of `quant_algo`, or that of each layer for `MIXED_PRECISION`."""
    keys = config.get("quantization") or config
    algorithm = str(keys.get("quant_algo")).upper()
    excluded = excluded_names(config)
    if algorithm == "MIXED_PRECISION":
        layers = layouts_by_name(config)
        if not layers:
            raise UnknownLayout("MIXED_PRECISION names no layers")
        by_name = tuple((name, _of_modelopt(layer)) for name, layer in layers.items())
        return replace(
            by_name[0][1],
            name="modelopt MIXED_PRECISION",
            excluded=excluded,
            only=tuple(layers),
            by_name=by_name,
        )
    return replace(_of_modelopt(keys), excluded=excluded)


def _of_modelopt(keys: Mapping[str, Any]) -> Packing:
    """FP8 scales are float32; NVFP4 has 8-bit scales and a float32 for each matrix.

    AWQ stores a 16-bit scale for each input besides.
    """
    algorithm = str(keys.get("quant_algo")).upper()
    group = int(keys.get("group_size") or 0)
    name = f"modelopt {algorithm}"
    fp8 = Packing(name=name, code_bits=8, rows=ALL, columns=ALL, scale_bits=32, arithmetic="fp8")
    nvfp4 = Packing(
        name=name,
        code_bits=4,
        rows=1,
        columns=group or 16,
        scale_bits=8,
        matrix_bits=32,
        arithmetic="fp4",
    )
    awq = Packing(
        name=name, code_bits=4, rows=1, columns=group or 128, scale_bits=16, column_bits=16
    )
    layouts = {
        "FP8": fp8,
        "FP8_PER_CHANNEL_PER_TOKEN": replace(fp8, rows=1),
        "FP8_PB_WO": replace(fp8, rows=128, columns=128, arithmetic=None),
        "MXFP8": replace(fp8, rows=1, columns=group or 32, scale_bits=8),
        "NVFP4": nvfp4,
        "NVFP4_AWQ": replace(nvfp4, column_bits=16),
        "W4A16_NVFP4": replace(nvfp4, arithmetic=None),
        "W4A16_AWQ": awq,
        "W4A8_AWQ": replace(awq, matrix_bits=32),
    }
    if algorithm not in layouts:
        raise UnknownLayout(f"quant_algo {shorten(algorithm)} has no known layout")
    return layouts[algorithm]


def _torchao(config: Mapping[str, Any]) -> Packing:
    """int4 has a 16-bit scale and zero per group, int8 a 16-bit scale and float8 a float32 one."""
    kind, data = _torchao_type(config)
    if data.get("include_input_output_embeddings"):
        raise UnknownLayout("with include_input_output_embeddings has no known layout")
    packing = Packing(
        name=f"torchao {kind}",
        code_bits=8,
        rows=1,
        columns=ALL,
        scale_bits=16,
        excluded=excluded_names(config),
    )
    if kind == "int4weightonly":
        group = int(data.get("group_size") or 128)
        return replace(packing, code_bits=4, columns=group, zero_bits=16)
    if kind in ("int8weightonly", "int8dynamicactivationint8weight"):
        return packing
    if kind in ("float8weightonly", "float8dynamicactivationfloat8weight"):
        is_weight_only = kind == "float8weightonly"
        by_row = is_weight_only or "PerRow" in str(data.get("granularity"))
        arithmetic = None if is_weight_only else "fp8"
        return replace(packing, rows=1 if by_row else ALL, scale_bits=32, arithmetic=arithmetic)
    raise UnknownLayout(f"of type {shorten(kind)} has no known layout")


def _torchao_type(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The kind in lower case without underscores or `Config`, and its options."""
    kind = config.get("quant_type")
    data: Any = config.get("quant_type_kwargs") or {}
    if isinstance(kind, Mapping):
        default = kind.get("default") or {}
        kind, data = default.get("_type"), default.get("_data") or {}
    return str(kind).replace("_", "").lower().removesuffix("config"), data


def _quark(config: Mapping[str, Any]) -> Packing:
    """The weights of `global_quant_config`: power-of-two scales have 8 bits.

    Integers in groups are exported as AWQ has them, with 16-bit scales; other scales are float32.
    """
    whole = config.get("global_quant_config") or {}
    weight = whole.get("weight")
    if not isinstance(weight, Mapping) or config.get("layer_quant_config"):
        raise UnknownLayout("with several layouts of weights is not read")
    dtype = str(weight.get("dtype"))
    bits = {"int4": 4, "uint4": 4, "fp4": 4, "int8": 8, "uint8": 8, "fp8_e4m3": 8}.get(dtype)
    scheme = weight.get("qscheme")
    if bits is None or scheme not in ("per_tensor", "per_channel", "per_group"):
        raise UnknownLayout(f"dtype {shorten(dtype)}, {shorten(str(scheme))} has no known layout")
    is_power_of_two = weight.get("scale_format") == "e8m0"
    is_group = scheme == "per_group"
    return Packing(
        name=f"quark {dtype}",
        code_bits=bits,
        rows=ALL if scheme == "per_tensor" else 1,
        columns=int(weight["group_size"]) if is_group else ALL,
        scale_bits=8 if is_power_of_two else 16 if is_group and "int" in dtype else 32,
        zero_bits=0 if "fp" in dtype or weight.get("symmetric") else bits,
        excluded=excluded_names(config),
        arithmetic=f"fp{bits}" if "fp" in dtype and whole.get("input_tensors") else None,
    )


def _hqq(config: Mapping[str, Any]) -> Packing:
    """A 16-bit scale and zero point for each group; ten codes of 3 bits fill 32 bits."""
    weight = (config.get("quant_config") or config).get("weight_quant_params")
    if not isinstance(weight, Mapping):
        raise UnknownLayout("with layouts by layer is not read")
    bits = int(weight["nbits"])
    if bits not in (1, 2, 3, 4, 8):
        raise UnknownLayout(f"of {bits} bits has no known layout")
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
        raise UnknownLayout(f"of {bits} bits per codebook has no known layout")
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
        raise UnknownLayout(f"of data_type {shorten(kind)} has no known layout")
    whole = _integers("auto-round", config)
    layers = layouts_by_name(config)
    kept = tuple(name for name, keys in layers.items() if int(keys.get("bits", 16)) >= 16)
    others = {name: {**config, **keys} for name, keys in layers.items() if name not in kept}
    return replace(
        whole,
        excluded=(*excluded_names(config), *kept),
        only=quantized_blocks(config),
        by_name=tuple((name, _integers("auto-round", keys)) for name, keys in others.items()),
    )


def _integers(name: str, keys: Mapping[str, Any]) -> Packing:
    bits, group = int(keys.get("bits", 4)), int(keys.get("group_size", 128))
    return Packing(
        name=name, code_bits=bits, rows=1, columns=max(group, ALL), scale_bits=16, zero_bits=bits
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
    whole = _of_mlx(config)
    return replace(
        whole,
        outer=whole,
        excluded=tuple(name for name, keys in layers.items() if keys is False),
        by_name=tuple((name, _of_mlx({**config, **keys})) for name, keys in own.items()),
    )


def _of_mlx(keys: Mapping[str, Any]) -> Packing:
    mode = str(keys.get("mode", "affine"))
    if mode not in ("affine", "mxfp4", "mxfp8", "nvfp4"):
        raise UnknownLayout(f"of mode {shorten(mode)} has no known layout")
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
    "modelopt": _modelopt,
    "torchao": _torchao,
    "quark": _quark,
    "hqq": _hqq,
    "aqlm": _aqlm,
    "auto-round": _auto_round,
    "exl3": _exl3,
    "mlx": _mlx,
}
