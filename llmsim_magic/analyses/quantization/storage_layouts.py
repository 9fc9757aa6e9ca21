"""Storage layouts of quantised weights: codes, scales and zero points.

Layouts follow the reference library of each format, and sizes are exact to the bit.
"""

from collections.abc import Callable, Mapping
from typing import Any

from llmsim_magic.analyses.quantization import activation_formats, weight_only_formats
from llmsim_magic.analyses.quantization.packing import ALL, Packing, UnknownLayout
from llmsim_magic.records.errors import InvalidValue, describe, shorten
from llmsim_magic.records.hardware.dtypes import KV_DTYPES, WEIGHT_DTYPES, short_dtype
from llmsim_magic.records.trace.quantization_config import quantization_method

_PARSERS: dict[str, Callable[[Mapping[str, Any]], Packing | None]] = {
    **weight_only_formats.PARSERS,
    **activation_formats.PARSERS,
}


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
    if dtype == "fp8":
        return Packing(
            name="fp8", code_bits=8, rows=1, columns=ALL, scale_bits=16, arithmetic="fp8"
        )
    return None


def packing_from_config(config: Mapping[str, Any], name: str) -> Packing | None:
    """The layout that a checkpoint's `quantization_config` declares; None if it packs no weights.

    Args:
        config: The `quantization_config`.
        name: The model's name, for the error.

    Raises:
        InvalidValue: If the method is not supported, or its layout does not follow from the config.
    """
    method = quantization_method(config)
    read = _PARSERS.get(method)
    if read is None:
        raise InvalidValue(
            f"{name}: quantisation method {shorten(method)} has no known layout, only "
            f"{', '.join(_PARSERS)} have one; choose a weight_dtype"
        )
    try:
        return read(config)
    except UnknownLayout as error:
        raise InvalidValue(
            f"{name}: its {method} quantization_config {error}; choose a weight_dtype"
        ) from error
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InvalidValue(
            f"{name}: its {method} quantization_config is not as that library writes it "
            f"({describe(error)}); choose a weight_dtype"
        ) from error
