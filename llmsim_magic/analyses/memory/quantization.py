"""How quantised matrices are stored: codes, scales and zero points, from a config or a dtype.

The layouts are those that the formats' own libraries write; every size is exact in bits.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from llmsim_magic.records.errors import InvalidValue, one_of, safe_str

WEIGHT_DTYPES = ("int4", "int8", "fp8", "bf16", "fp16", "fp32")
KV_DTYPES = ("int8", "fp8", "bf16", "fp16", "fp32")
ITEM_BITS = {"int4": 4, "int8": 8, "fp8": 8, "bf16": 16, "fp16": 16, "fp32": 32}
_SPELLINGS = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32"}
_ALL = 0  # a block as long as the matrix


@dataclass(frozen=True, slots=True)
class Packing:
    """Codes of `code_bits` in blocks of `rows` × `columns` that share a scale and a zero point.

    A row holds one output, its columns are inputs; 0 is as many as there are. `column_bits` is
    stored for each input, `matrix_bits` for each matrix. `left_out` are patterns of modules that
    keep the dtype of the model; `described` says the assumption in words. `arithmetic` is what the
    codes are multiplied in where a device can; None where they are always widened.
    """

    name: str
    code_bits: int
    rows: int
    columns: int
    scale_bits: float
    zero_bits: float = 0
    column_bits: int = 0
    matrix_bits: int = 0
    left_out: tuple[str, ...] = ()
    targets_only_stacks: bool = False
    arithmetic: str | None = None

    @property
    def described(self) -> str:
        block = f"{self.rows or 'all'} × {self.columns or 'all'}"
        zero = f" and a {self.zero_bits:g}-bit zero point" if self.zero_bits else ""
        what = "experts" if self.targets_only_stacks else "linear layers and experts"
        kept = f", and {len(self.left_out)} parts that its config names" if self.left_out else ""
        return (
            f"{self.name}: matrices of {what} inside the repeated layers in {self.code_bits} bits, "
            f"a {self.scale_bits:g}-bit scale{zero} for each block of {block} (outputs × inputs); "
            f"norms, embeddings, routers and the head as they are{kept}"
        )

    def parts(self, shape: Sequence[int]) -> tuple[int, int]:
        """Bytes of codes, and of scales and all beside them, of matrices `[…, outputs, inputs]`.

        Each matrix has blocks of its own, those at its edges not full.
        """
        *lead, outputs, inputs = shape
        number = prod(lead)
        codes = ceil(number * outputs * inputs * self.code_bits / 8)
        blocks = ceil(outputs / (self.rows or outputs)) * ceil(inputs / (self.columns or inputs))
        beside = blocks * (self.scale_bits + self.zero_bits) + inputs * self.column_bits
        return codes, ceil(number * (beside + self.matrix_bits) / 8)

    def leaves_out(self, module: str) -> bool:
        """Whether a module is named by a pattern: its path, a part above it, or its last name."""
        return any(_names(pattern, module) for pattern in self.left_out)


def weight_dtype(given: object) -> str:
    """The short name of a dtype that weights may be stored in; `InvalidValue` for another."""
    return _known("weight_dtype", given, WEIGHT_DTYPES)


def kv_dtype(given: object) -> str:
    """The short name of a dtype that keys and values may be stored in; `InvalidValue`."""
    return _known("kv_dtype", given, KV_DTYPES)


def _known(name: str, given: object, legal: tuple[str, ...]) -> str:
    word = safe_str(given).removeprefix("torch.").lower()
    word = _SPELLINGS.get(word, word)
    if word not in legal:
        raise InvalidValue.must_be(name, given, one_of(legal))
    return word


def chosen(dtype: str) -> Packing | None:
    """The usual layout of a chosen dtype; None where every weight is merely cast.

    int4: groups of 128 inputs with a 16-bit scale and a 4-bit zero point, as AWQ packs them;
    int8 and fp8: a scale for each output, as compressed-tensors stores channels.
    """
    if dtype == "int4":
        return Packing("int4", 4, 1, 128, 16, 4)
    if dtype == "int8":
        return Packing("int8", 8, 1, _ALL, 16)
    return Packing("fp8", 8, 1, _ALL, 16, arithmetic="fp8") if dtype == "fp8" else None


def declared(config: Mapping[str, Any], name: str) -> Packing:
    """The layout that a checkpoint's `quantization_config` declares.

    Raises `InvalidValue` for a method whose layout is not known here.
    """
    method = str(config.get("quant_method", "")).lower()
    if method == "bitsandbytes" or config.get("load_in_4bit") or config.get("load_in_8bit"):
        method = "bitsandbytes"
    read = _METHODS.get(method)
    if read is None:
        raise InvalidValue.must_be(
            f"{name}: quantization_config", method, f"{one_of(_METHODS)}; choose a weight_dtype"
        )
    return read(config)


def _left_out(config: Mapping[str, Any], *names: str) -> tuple[str, ...]:
    return tuple(pattern for name in names for pattern in config.get(name) or ())


def _group(size: object) -> int:
    """A group size; -1 is a whole row."""
    return size if isinstance(size, int) and size > 0 else _ALL


def _block(structure: object) -> tuple[int, int]:
    """`[128, 128]` or `128x128`: outputs and inputs that share a scale."""
    sizes = structure.split("x") if isinstance(structure, str) else structure
    if not isinstance(sizes, Sequence) or len(sizes) != 2:
        raise InvalidValue.must_be("block_structure", structure, "two sizes, such as [128, 128]")
    return int(sizes[0]), int(sizes[1])


def _gptq(config: Mapping[str, Any]) -> Packing:
    """`qweight` and `qzeros` packed, `scales` in float16, and the group of each input in int32."""
    bits, group = int(config.get("bits", 4)), _group(config.get("group_size", 128))
    left_out = _left_out(config, "modules_to_not_convert")
    return Packing("gptq", bits, 1, group, 16, bits, 32, left_out=left_out)


def _awq(config: Mapping[str, Any]) -> Packing:
    """The same without the inputs' groups, which follow each other; no zeros where symmetric."""
    bits, group = int(config.get("bits", 4)), _group(config.get("group_size", 128))
    zeros = bits if config.get("zero_point", True) else 0
    left_out = _left_out(config, "modules_to_not_convert")
    return Packing("awq", bits, 1, group, 16, zeros, left_out=left_out)


def _bitsandbytes(config: Mapping[str, Any]) -> Packing:
    """int8 with a float32 for each output, or 4 bits with one for each 64.

    Nested, that is 8 bits and a float32 for each 256; the tables of codes stand by each matrix.
    """
    left_out = _left_out(config, "llm_int8_skip_modules")
    if not config.get("load_in_4bit"):
        return Packing("bitsandbytes int8", 8, 1, _ALL, 32, left_out=left_out)
    kind = config.get("bnb_4bit_quant_type", "fp4")
    if config.get("bnb_4bit_use_double_quant"):
        nested, tables = 8 + 32 / 256, 32 * (16 + 256 + 1)
        return Packing(f"bitsandbytes {kind}", 4, 1, 64, nested, 0, 0, tables, left_out)
    return Packing(f"bitsandbytes {kind}", 4, 1, 64, 32, 0, 0, 32 * 16, left_out)


def _fp8(config: Mapping[str, Any]) -> Packing:
    """A float32 scale, or a power of two in 8 bits, for each block; without one for each matrix."""
    rows, columns = config.get("weight_block_size") or (_ALL, _ALL)
    scale = 8 if config.get("scale_fmt") == "ue8m0" else 32
    left_out = _left_out(config, "modules_to_not_convert")
    return Packing("fp8", 8, rows, columns, scale, left_out=left_out, arithmetic="fp8")


def _fbgemm_fp8(config: Mapping[str, Any]) -> Packing:
    """A float32 scale for each output."""
    left_out = _left_out(config, "modules_to_not_convert")
    return Packing("fbgemm_fp8", 8, 1, _ALL, 32, left_out=left_out, arithmetic="fp8")


def _mxfp4(config: Mapping[str, Any]) -> Packing:
    """The experts alone: 4 bits, and a power of two in 8 bits for each 32 inputs."""
    left_out = _left_out(config, "modules_to_not_convert")
    return Packing("mxfp4", 4, 1, 32, 8, left_out=left_out, targets_only_stacks=True)


def _compressed_tensors(config: Mapping[str, Any]) -> Packing:
    """By the weights of the first group of its config: bits, strategy, group and symmetry.

    Scales are in 16 bits as the model, but one of 8 bits for each 16 of `nvfp4`. Floating codes
    are multiplied as such if activations are quantised too.
    """
    groups: Mapping[str, Mapping[str, Any]] = config.get("config_groups") or {}
    first = next(iter(groups.values()), {})
    weights = first.get("weights") or {}
    bits = int(weights.get("num_bits", 8))
    strategy = weights.get("strategy") or "tensor"
    rows, columns = 1, _ALL
    if strategy == "tensor":
        rows = _ALL
    elif strategy == "block":
        rows, columns = _block(weights.get("block_structure"))
    elif strategy in ("group", "tensor_group"):
        columns = _group(weights.get("group_size"))
    is_nvfp4 = strategy == "tensor_group"
    multiplied = weights.get("type") == "float" and first.get("input_activations")
    return Packing(
        f"compressed-tensors {weights.get('type', 'int')}{bits}",
        bits,
        rows,
        columns,
        8 if is_nvfp4 else 16,
        0 if weights.get("symmetric", True) else bits,
        matrix_bits=32 if is_nvfp4 else 0,
        left_out=_left_out(config, "ignore"),
        arithmetic=f"fp{bits}" if multiplied else None,
    )


_METHODS: dict[str, Callable[[Mapping[str, Any]], Packing]] = {
    "gptq": _gptq,
    "awq": _awq,
    "bitsandbytes": _bitsandbytes,
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm_fp8,
    "mxfp4": _mxfp4,
    "compressed-tensors": _compressed_tensors,
}


def _names(pattern: str, module: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), module) is not None
    if module == pattern or module.startswith(f"{pattern}.") or module.endswith(f".{pattern}"):
        return True
    if "*" not in pattern:
        return False
    written = re.escape(pattern).replace(r"\*", ".*")
    return re.match(rf"{written}(\.|$)", module) is not None
