"""Write tables and graphs into a folder."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.views.drawing import Graph

if TYPE_CHECKING:
    import pandas as pd


def writable(folder: str | Path) -> Path:
    """The folder, made where it was missing; asked before any work is done.

    Raises `InvalidValue` where it cannot be written.
    """
    path = Path(folder).expanduser()
    if not str(folder):
        raise InvalidValue("csv", "", "a folder's name")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise InvalidValue(
            "csv", str(folder), f"a folder that can be written ({error.strerror})"
        ) from error


def write_text(path: str | Path, text: str) -> Path:
    """Write a file, its folder made where it was missing; raises `InvalidValue`."""
    file = Path(path).expanduser()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    except OSError as error:
        raise InvalidValue(
            "path", str(path), f"a file that can be written ({error.strerror})"
        ) from error
    return file


def write_all(
    folder: str | Path, tables: "Mapping[str, pd.DataFrame]", graphs: Mapping[str, Graph]
) -> list[Path]:
    """Each table as `NAME.csv` and each graph as `NAME.svg`; returns what was written."""
    path = writable(folder)
    written = []
    for name, table in tables.items():
        file = path / f"{name}.csv"
        has_index = table.index.name is not None
        table.to_csv(file, index=has_index)
        written.append(file)
    written += [graph.save(path / f"{name}.svg") for name, graph in graphs.items()]
    return written
