"""Storage layouts of quantised weights: codes, scales and zero points.

Layouts follow the reference library of each format, and sizes are exact to the bit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from llmsim_magic.analyses.memory import checkpoint_formats
from llmsim_magic.analyses.memory.packing import ALL, Packing
from llmsim_magic.records.errors import InvalidValue, describe
from llmsim_magic.records.hardware.dtypes import KV_DTYPES, WEIGHT_DTYPES, short_dtype
from llmsim_magic.records.trace.quantization_config import excluded_names, layouts_by_name


def weight_dtype(given: object) -> str:
    """The short name of a weight dtype; raises `InvalidValue` for any other dtype."""
    return short_dtype("weight_dtype", given, WEIGHT_DTYPES)


def kv_dtype(given: object) -> str:
    """The short name of a KV cache dtype; raises `InvalidValue` for any other dtype."""
    return short_dtype("kv_dtype", given, KV_DTYPES)


def packing_for_dtype(dtype: str) -> Packing | None:
    """The default layout of a weight dtype; None if weights are only cast.

    int4 has groups of 128 inputs with a 16-bit scale and a 4-bit zero point, as in AWQ; int8 and
    fp8 have one scale per output, as in compressed-tensors.
    """
    if dtype == "int4":
        return Packing(name="int4", code_bits=4, rows=1, columns=128, scale_bits=16, zero_bits=4)
    if dtype == "int8":
        return Packing(name="int8", code_bits=8, rows=1, columns=ALL, scale_bits=16)
    return (
        Packing(name="fp8", code_bits=8, rows=1, columns=ALL, scale_bits=16, arithmetic="fp8")
        if dtype == "fp8"
        else None
    )


def packing_from_config(config: Mapping[str, Any], name: str) -> Packing:
    """The layout that a checkpoint's `quantization_config` declares.

    Args:
        config: The `quantization_config`.
        name: The model's name, for the error.

    Raises:
        InvalidValue: If the layout of its method is not supported.
    """
    method = str(config.get("quant_method", "")).lower()
    if method == "bitsandbytes" or config.get("load_in_4bit") or config.get("load_in_8bit"):
        method = "bitsandbytes"
    if not method and {"bits", "group_size"} <= config.keys():
        method = "mlx"  # its configs have no quant_method
    read = _PARSERS.get(method)
    if read is None:
        raise InvalidValue(
            f"{name}: quantisation method {method!r} has no known layout, only "
            f"{', '.join(_PARSERS)} have one; choose a weight_dtype"
        )
    try:
        return read(config)
    except checkpoint_formats.UnknownLayout as error:
        raise InvalidValue(
            f"{name}: {method} quantisation {error}; choose a weight_dtype"
        ) from error
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InvalidValue(
            f"{name}: its {method} quantization_config is not as that library writes it "
            f"({describe(error)}); choose a weight_dtype"
        ) from error


def _group(size: object) -> int:
    """A group size; -1 means the whole row."""
    return size if isinstance(size, int) and size > 0 else ALL


def _block(structure: object) -> tuple[int, int]:
    """Outputs and inputs that share a scale, from `[128, 128]` or `128x128`."""
    sizes = structure.split("x") if isinstance(structure, str) else structure
    if not isinstance(sizes, Sequence) or len(sizes) != 2:
        raise InvalidValue.must_be("block_structure", structure, "two sizes, such as [128, 128]")
    return int(sizes[0]), int(sizes[1])


def _gptq(config: Mapping[str, Any]) -> Packing:
    """Packed `qweight` and `qzeros`, float16 `scales`, and an int32 group index per input."""
    layers = layouts_by_name(config).items()
    return replace(
        _of_gptq(config),
        excluded=excluded_names(config),
        by_name=tuple((name, _of_gptq({**config, **keys})) for name, keys in layers),
    )


def _of_gptq(keys: Mapping[str, Any]) -> Packing:
    bits = int(keys.get("bits", 4))
    return Packing(
        name="gptq",
        code_bits=bits,
        rows=1,
        columns=_group(keys.get("group_size", 128)),
        scale_bits=16,
        zero_bits=bits,
        column_bits=32,
    )


def _awq(config: Mapping[str, Any]) -> Packing:
    """As GPTQ without group indices; no zero points if quantisation is symmetric."""
    bits, group = int(config.get("bits", 4)), _group(config.get("group_size", 128))
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
    excluded = excluded_names(config)
    if not config.get("load_in_4bit"):
        return Packing(
            name="bitsandbytes int8",
            code_bits=8,
            rows=1,
            columns=ALL,
            scale_bits=32,
            excluded=excluded,
        )
    kind = config.get("bnb_4bit_quant_type", "fp4")
    if config.get("bnb_4bit_use_double_quant"):
        nested, tables = 8 + 32 / 256, 32 * (16 + 256 + 1)
        return Packing(
            name=f"bitsandbytes {kind}",
            code_bits=4,
            rows=1,
            columns=64,
            scale_bits=nested,
            zero_bits=0,
            column_bits=0,
            matrix_bits=tables,
            excluded=excluded,
        )
    return Packing(
        name=f"bitsandbytes {kind}",
        code_bits=4,
        rows=1,
        columns=64,
        scale_bits=32,
        zero_bits=0,
        column_bits=0,
        matrix_bits=32 * 16,
        excluded=excluded,
    )


def _fp8(config: Mapping[str, Any]) -> Packing:
    """A float32 or 8-bit power-of-two scale per block; one per matrix without a block size."""
    rows, columns = config.get("weight_block_size") or (ALL, ALL)
    scale = 8 if config.get("scale_fmt") == "ue8m0" else 32
    excluded = excluded_names(config)
    return Packing(
        name="fp8",
        code_bits=8,
        rows=rows,
        columns=columns,
        scale_bits=scale,
        excluded=excluded,
        arithmetic="fp8",
    )


def _fbgemm_fp8(config: Mapping[str, Any]) -> Packing:
    """A float32 scale per output."""
    excluded = excluded_names(config)
    return Packing(
        name="fbgemm_fp8",
        code_bits=8,
        rows=1,
        columns=ALL,
        scale_bits=32,
        excluded=excluded,
        arithmetic="fp8",
    )


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


def _compressed_tensors(config: Mapping[str, Any]) -> Packing:
    """The layout of the first config group: bits, strategy, group size and symmetry.

    Scales have 16 bits, except for the 8-bit scales of `nvfp4`. Floating-point codes are
    multiplied directly if activations are quantised too.
    """
    groups: Mapping[str, Mapping[str, Any]] = config.get("config_groups") or {}
    first = next(iter(groups.values()), {})
    weights = first.get("weights") or {}
    bits = int(weights.get("num_bits", 8))
    strategy = weights.get("strategy") or "tensor"
    rows, columns = 1, ALL
    if strategy == "tensor":
        rows = ALL
    elif strategy == "block":
        rows, columns = _block(weights.get("block_structure"))
    elif strategy in ("group", "tensor_group"):
        columns = _group(weights.get("group_size"))
    is_nvfp4 = strategy == "tensor_group"
    multiplied = weights.get("type") == "float" and first.get("input_activations")
    return Packing(
        name=f"compressed-tensors {weights.get('type', 'int')}{bits}",
        code_bits=bits,
        rows=rows,
        columns=columns,
        scale_bits=8 if is_nvfp4 else 16,
        zero_bits=0 if weights.get("symmetric", True) else bits,
        matrix_bits=32 if is_nvfp4 else 0,
        excluded=excluded_names(config),
        arithmetic=f"fp{bits}" if multiplied else None,
    )


_PARSERS: dict[str, Callable[[Mapping[str, Any]], Packing]] = {
    "gptq": _gptq,
    "awq": _awq,
    "bitsandbytes": _bitsandbytes,
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm_fp8,
    "mxfp4": _mxfp4,
    "compressed-tensors": _compressed_tensors,
    **checkpoint_formats.PARSERS,
}
