"""Layouts of formats that may quantise activations too, by their configs."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from llmsim_magic.analyses.quantization.compressed_tensors import compressed_tensors
from llmsim_magic.analyses.quantization.packing import ALL, Packing, UnknownLayout, of_every_linear
from llmsim_magic.records.errors import one_of, shorten
from llmsim_magic.records.trace.quantization_config import excluded_names, layouts_by_name

_QUARK_BITS = {"int4": 4, "uint4": 4, "fp4": 4, "int8": 8, "uint8": 8, "fp8_e4m3": 8}
_QUARK_SCHEMES = ("per_tensor", "per_channel", "per_group")


def _fp8(config: Mapping[str, Any]) -> Packing:
    """A float32 or 8-bit power-of-two scale per block; one per matrix without a block size."""
    rows, columns = config.get("weight_block_size") or (ALL, ALL)
    packing = Packing(
        name="fp8",
        code_bits=8,
        rows=rows,
        columns=columns,
        scale_bits=8 if config.get("scale_fmt") == "ue8m0" else 32,
        arithmetic="fp8",
    )
    return of_every_linear(packing, config)


def _fbgemm_fp8(config: Mapping[str, Any]) -> Packing:
    """A float32 scale per output."""
    packing = Packing(
        name="fbgemm_fp8", code_bits=8, rows=1, columns=ALL, scale_bits=32, arithmetic="fp8"
    )
    return of_every_linear(packing, config)


def _mxfp4(config: Mapping[str, Any]) -> Packing:
    """Experts only: 4-bit codes with an 8-bit power-of-two scale per 32 inputs."""
    excluded = excluded_names(config)
    return Packing(
        name="mxfp4",
        code_bits=4,
        rows=1,
        columns=32,
        scale_bits=8,
        excluded=excluded,
        experts_only=True,
    )


def _modelopt(config: Mapping[str, Any]) -> Packing:
    """The layout of `quant_algo`, or that of each layer for `MIXED_PRECISION`."""
    keys = config.get("quantization") or config
    algorithm = str(keys.get("quant_algo")).upper()
    excluded = excluded_names(config)
    if algorithm == "MIXED_PRECISION":
        layers = layouts_by_name(config)
        if not layers:
            raise UnknownLayout("has MIXED_PRECISION, but quantized_layers names no layers")
        by_name = tuple((name, _modelopt_layout(layer)) for name, layer in layers.items())
        return replace(
            by_name[0][1],
            name="modelopt MIXED_PRECISION",
            excluded=excluded,
            only=tuple(layers),
            by_name=by_name,
        )
    return replace(_modelopt_layout(keys), excluded=excluded)


def _modelopt_layout(keys: Mapping[str, Any]) -> Packing:
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
        raise UnknownLayout(
            f"has quant_algo {shorten(algorithm)}, which must be "
            f"{one_of((*layouts, 'MIXED_PRECISION'))}"
        )
    return layouts[algorithm]


def _torchao(config: Mapping[str, Any]) -> Packing:
    """int4 has a 16-bit scale and zero point per group.

    int8 has 16-bit scales, and float8 has float32 scales.
    """
    kind, data = _torchao_type(config)
    if data.get("include_input_output_embeddings"):
        raise UnknownLayout("has include_input_output_embeddings, whose layout is not known")
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
    legal = "weight-only int4, int8 and float8, and dynamic activations with int8 or float8 weights"
    raise UnknownLayout(f"has type {shorten(kind)}, and only {legal} are supported")


def _torchao_type(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The name of the config class, such as `int4weightonly`, and its keys."""
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
        raise UnknownLayout(
            "has several layouts of weights, and only one in global_quant_config is supported"
        )
    dtype = str(weight.get("dtype"))
    bits = _QUARK_BITS.get(dtype)
    if bits is None:
        raise UnknownLayout(f"has dtype {shorten(dtype)}, which must be {one_of(_QUARK_BITS)}")
    scheme = weight.get("qscheme")
    if scheme not in _QUARK_SCHEMES:
        raise UnknownLayout(
            f"has qscheme {shorten(str(scheme))}, which must be {one_of(_QUARK_SCHEMES)}"
        )
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


PARSERS: dict[str, Callable[[Mapping[str, Any]], Packing | None]] = {
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm_fp8,
    "mxfp4": _mxfp4,
    "compressed-tensors": compressed_tensors,
    "modelopt": _modelopt,
    "torchao": _torchao,
    "quark": _quark,
}
