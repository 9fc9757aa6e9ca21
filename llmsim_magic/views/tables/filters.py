"""Some of the rows of a table of operators."""

from collections.abc import Collection

import pandas as pd


def layers_of(ops: pd.DataFrame) -> list[int]:
    """The layers that its operators lie in."""
    return sorted(int(layer) for layer in ops["layer"].dropna().unique())


def matching(
    ops: pd.DataFrame,
    *,
    path: str = "",
    layers: Collection[int | None] | None = None,
    kind: str | None = None,
) -> pd.DataFrame:
    """The operators with `path` in their paths, in any of `layers`, of a kind.

    The layer of an operator outside of any is None.
    """
    kept = ops["path"].str.contains(path, regex=False)
    if layers is not None:
        kept &= ops["layer"].isin([each for each in layers if each is not None]) | (
            ops["layer"].isna() & (None in layers)
        )
    if kind is not None:
        kept &= ops["kind"] == kind
    return ops[kept]
