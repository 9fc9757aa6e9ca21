"""Dtypes: their names, aliases and bits, in one table."""

from collections.abc import Collection

from llmsim_magic.records.errors import InvalidValue, one_of, safe_str
from llmsim_magic.records.spelling import nearest

# Bits per element of every dtype that is stored or computed in, by its short name.
BITS = {
    "fp32": 32,
    "tf32": 32,
    "fp16": 16,
    "bf16": 16,
    "fp8": 8,
    "int8": 8,
    "fp4": 4,
    "int4": 4,
}
_ALIASES = {
    "float32": "fp32",
    "float": "fp32",
    "f32": "fp32",
    "float16": "fp16",
    "half": "fp16",
    "f16": "fp16",
    "bfloat16": "bf16",
    "float8": "fp8",
    "float8_e4m3fn": "fp8",
    "float8_e5m2": "fp8",
    "fp8_block": "fp8",
    "nvfp4": "fp4",
    "mxfp4": "fp4",
}
# What a device multiplies in, what weights and KV cache can be stored in, what a model runs in.
ARITHMETICS = ("fp32", "tf32", "fp16", "bf16", "fp8", "int8", "fp4")
WEIGHT_DTYPES = ("int4", "int8", "fp8", "bf16", "fp16", "fp32")
KV_DTYPES = ("int8", "fp8", "bf16", "fp16", "fp32")
DTYPES = ("float32", "float16", "bfloat16")
DTYPE_ALIASES = {_ALIASES[name]: name for name in DTYPES}


def short_dtype(option: str, given: object, legal: Collection[str]) -> str:
    """The short name of a dtype, such as `bf16` for `torch.bfloat16`.

    Args:
        option: The name of the option, for the error.
        given: A dtype or its name in any spelling.
        legal: The short names that the option accepts.

    Raises:
        InvalidValue: If the dtype is not one of `legal`.
    """
    word = safe_str(given).strip().lower().removeprefix("torch.")
    name = _ALIASES.get(word, word)
    if name not in legal:
        known = {alias: short for alias, short in _ALIASES.items() if short in legal}
        raise InvalidValue.must_be(option, given, one_of(legal), nearest(word, legal, known))
    return name


def arithmetic(dtype: object) -> str:
    """The short name of a dtype that devices compute in; raises `InvalidValue` for any other."""
    if type(dtype) is str and dtype in ARITHMETICS:
        return dtype
    return short_dtype("dtype", dtype, ARITHMETICS)


def dtype_name(given: object) -> str:
    """The full name of a model's dtype: `bfloat16` for `bf16` and for `torch.bfloat16`.

    Raises:
        InvalidValue: If a model cannot run in the dtype.
    """
    text = safe_str(given).removeprefix("torch.")
    name = DTYPE_ALIASES.get(text, text)
    if name not in DTYPES:
        meant = nearest(text, DTYPES, DTYPE_ALIASES)
        raise InvalidValue.must_be("dtype", given, one_of(DTYPES), meant)
    return name
