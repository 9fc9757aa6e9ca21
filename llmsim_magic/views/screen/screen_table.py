"""Tables with their rows and columns as a reader needs them, before layers fold."""

import re
from typing import Any

import pandas as pd

from llmsim_magic.views.screen import cells
from llmsim_magic.views.screen.columns import COLUMNS

_INTERVALS = ("time", "prefill", "decode", "train", "tokens_per_s", "prefill_tokens_per_s",
              "decode_tokens_per_s", "train_tokens_per_s")  # fmt: skip
_PHASE_FORMULA = re.compile(r"(?:(prefill|decode) )?(.*)")
WORKLOAD = re.compile(r"(?:prefill|decode|train) \d+×\d+|forward")
FORMULA = "formula"
_TOKENS_READ = re.compile(r"\bS\b")


def for_screen(table: pd.DataFrame) -> pd.DataFrame:
    """The table for a screen.

    Values of rows with a unit become text. Both ends of a band share a column. Shapes of workloads
    have the formulas of each phase before them.
    """
    return _with_intervals(_split_shapes(_named_parts(_with_units(_list_types(table)))))


def _list_types(table: pd.DataFrame) -> pd.DataFrame:
    """A table of quantities whose row `operator_types` lists the rows `operators.Linear`."""
    if "quantity" not in table:
        return table
    names = table["quantity"].astype(str)
    is_count = names.str.startswith("operators.")
    if is_count.any():
        counted = zip(names[is_count], table["value"][is_count], strict=True)
        listed = ", ".join(f"{name.removeprefix('operators.')} {value}" for name, value in counted)
        table = table.assign(means=table["means"].mask(names == "operator_types", listed))
    said = names.map(quantity_words)
    if "share" in table:  # of memory, where it is no length of a prompt
        said = said.replace("context", "driver context")
    return table.assign(quantity=said)[~is_count].reset_index(drop=True)


def quantity_words(name: str) -> str:
    """`prefill time on H100, low` for `prefill_s on H100.low`."""
    words = re.sub(r"_s on ", " time on ", name).replace("_", " ")
    words = re.sub(r"\bflops\b", "FLOPs", words)
    return re.sub(r"\.(low|high)$", r", \1", words)


def _with_units(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its values as text in the unit of their row, where it names one."""
    if "unit" not in table:
        return table
    units = [str(unit) for unit in table["unit"]]
    texts: dict[str, Any] = {}
    for name in map(str, table):
        if name == "unit":
            under = [unit.partition(", ")[2] or pd.NA for unit in units]
            texts["under"] = under
        elif name == "ratio" or (name in COLUMNS and COLUMNS[name].kind != "number"):
            texts[name] = table[name]
        else:
            pairs = zip(table[name], units, strict=True)
            texts[name] = [cells.quantity_text(value, unit) for value, unit in pairs]
    return pd.DataFrame({name: texts[name] for name in ("quantity", *texts) if name in texts})


def _named_parts(table: pd.DataFrame) -> pd.DataFrame:
    """The table of ranks with the same names of the parts of memory as the others have."""
    if "activations" not in table:
        return table
    parts = ("weights", "buffers", "cache", "activations", "context")
    return table.rename(columns={name: f"{name}_bytes" for name in parts} | {"rank": "stage"})


def _split_shapes(table: pd.DataFrame) -> pd.DataFrame:
    """The table of shapes with its formulas first."""
    if "symbolic" not in table:
        return table
    names = [str(name) for name in table]
    keys = [name for name in ("path", "op", "pass", "call") if name in names]
    rest = [name for name in names if name not in (*keys, "symbolic")]
    formulas = pd.DataFrame({FORMULA: list(map(_formula, table["symbolic"]))}, dtype=object)
    head = table[keys]
    if (table["call"] == 0).all():
        head = head.drop(columns="call")
    return pd.concat([head, formulas, table[rest]], axis=1)


def _formula(text: Any) -> Any:
    """`prefill [B, S] → [B, S, 8]; decode [B, 1] → [B, 1, 8]` as one formula, or one a line."""
    return pd.NA if pd.isna(text) else one_formula(str(text).split("; "))


def one_formula(phases: list[str]) -> str:
    """The formula of prefill alone if that of decode is the same with S = 1; else one a line."""
    parts = [_PHASE_FORMULA.fullmatch(phase) for phase in phases]
    by_phase = {found[1] or "": found[2] for found in parts if found is not None}
    prefill, decode = by_phase.get("prefill"), by_phase.get("decode")
    if prefill is not None and decode == _TOKENS_READ.sub("1", prefill):
        return prefill
    return "\n".join(f"{phase} {text}".strip() for phase, text in by_phase.items())


def _with_intervals(table: pd.DataFrame) -> pd.DataFrame:
    """The table with both ends of a band in one column."""
    made: dict[str, Any] = {}
    low_names = {}
    for name in _INTERVALS:
        is_rate = name.endswith("per_s")
        low, high = (f"{name}_{end}" if is_rate else f"{name}_{end}_s" for end in ("low", "high"))
        if low in table and high in table:
            low_names[low], low_names[high] = f"{name}_interval", ""
            made[f"{name}_interval"] = pd.Series(zip(table[low], table[high], strict=True))
    if not made:
        return table
    columns: dict[str, Any] = {}
    for name in map(str, table):
        new = low_names.get(name, name)
        if new:
            columns[new] = made.get(new, table.get(name))
    return pd.DataFrame(columns)
