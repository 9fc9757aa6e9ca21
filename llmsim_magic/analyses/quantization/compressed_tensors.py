"""Layouts of compressed-tensors, whose config groups each select the modules that they quantise."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from llmsim_magic.analyses.quantization.packing import ALL, Packing, UnknownLayout, group_columns
from llmsim_magic.records.errors import InvalidValue, shorten
from llmsim_magic.records.trace.quantization_config import (
    LINEAR,
    excluded_names,
    group_targets,
    has_quantized_weights,
)


def compressed_tensors(config: Mapping[str, Any]) -> Packing | None:
    """The layout of each config group, for the modules that its `targets` select.

    A module of several groups belongs to the one that names it exactly, then by a regular
    expression, then by its class, as in `compressed_tensors.utils.match_targets`.

    Returns:
        The layout of the linear layers; None if no group quantises weights.
    """
    sparsity = config.get("sparsity_config") or {}
    if (stored := sparsity.get("format") or "dense") != "dense":
        raise UnknownLayout(
            f"has sparsity in format {shorten(stored)}, and only dense is supported"
        )
    if not has_quantized_weights(config):
        return None
    groups: Mapping[str, Mapping[str, Any]] = config["config_groups"]
    layouts = {
        target: _of_group(group) for group in groups.values() for target in group_targets(group)
    }
    names = sorted((each for each in layouts if each != LINEAR), key=_rank)
    by_name = tuple((name, of) for name in names if (of := layouts[name]) is not None)
    packed = [of for of in layouts.values() if of is not None]
    whole = layouts.get(LINEAR)
    has_one_arithmetic = len({of.arithmetic for of in packed}) == 1
    main = whole or packed[0]
    return replace(
        main,
        name=" and ".join(dict.fromkeys(of.name for of in packed)),
        excluded=(*excluded_names(config), *(name for name in names if layouts[name] is None)),
        only=() if whole else tuple(name for name, _ in by_name),
        by_name=tuple((name, replace(of, embeddings=True)) for name, of in by_name),
        outer=whole,
        arithmetic=main.arithmetic if has_one_arithmetic else None,
    )


def _rank(target: str) -> tuple[int, str]:
    """Sorts what takes precedence last: a path after a regular expression."""
    return (0 if target.startswith("re:") else 1), target


def _of_group(group: Mapping[str, Any]) -> Packing | None:
    """Bits, strategy, group size and symmetry of a group; None if it quantises no weights.

    Scales have 16 bits, except for the 8-bit scales of `nvfp4`. Floating-point codes are
    multiplied directly if activations are quantised too.
    """
    weights = group.get("weights")
    if not weights:
        return None
    bits = int(weights.get("num_bits", 8))
    strategy = weights.get("strategy") or "tensor"
    rows, columns = 1, ALL
    if strategy == "tensor":
        rows = ALL
    elif strategy == "block":
        rows, columns = _block(weights.get("block_structure"))
    elif strategy in ("group", "tensor_group"):
        columns = group_columns(weights.get("group_size"))
    is_nvfp4 = strategy == "tensor_group"
    multiplied = weights.get("type") == "float" and group.get("input_activations")
    return Packing(
        name=f"compressed-tensors {weights.get('type', 'int')}{bits}",
        code_bits=bits,
        rows=rows,
        columns=columns,
        scale_bits=8 if is_nvfp4 else 16,
        zero_bits=0 if weights.get("symmetric", True) else bits,
        matrix_bits=32 if is_nvfp4 else 0,
        arithmetic=f"fp{bits}" if multiplied else None,
    )


def _block(structure: object) -> tuple[int, int]:
    """Outputs and inputs that share a scale, from `[128, 128]` or `128x128`."""
    sizes = structure.split("x") if isinstance(structure, str) else structure
    if not isinstance(sizes, Sequence) or len(sizes) != 2:
        raise InvalidValue.must_be("block_structure", structure, "two sizes, such as [128, 128]")
    return int(sizes[0]), int(sizes[1])
