"""Reports as JSON of a documented, versioned schema: raw names, every row and digit."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from llmsim_magic.records.deferred_interrupt import defer_interrupt
from llmsim_magic.records.trace.trace import ModelInfo, Trace
from llmsim_magic.records.trace.training import Training
from llmsim_magic.records.trace.workload import Workload

if TYPE_CHECKING:
    import pandas as pd

# Becomes llmsim/2 when a field is renamed, removed or changes its type; new fields do not count.
SCHEMA = "llmsim/1"
_SCHEMA_FILE = "llmsim-1.schema.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What a report exports as JSON.

    Attributes:
        trace: the pass that tables of one pass describe.
        workloads: every workload that was traced, that of `trace` first.
        failures: each workload that could not be traced, with the reason.
        compared: the second model of a comparison.
        deployment: the devices, stored dtypes, runtime and launch that were asked for.
        views: names of the displayed views.
        tables: their tables, by name.
        notes: sentences about the report.
        explanation: the arithmetic behind a module.
    """

    trace: Trace
    workloads: Sequence[Workload]
    failures: Sequence[tuple[Workload, str]] = ()
    compared: ModelInfo | None = None
    deployment: Mapping[str, Any] = field(default_factory=dict)
    views: Sequence[str] = ()
    tables: "Mapping[str, pd.DataFrame]" = field(default_factory=dict)
    notes: Sequence[str] = ()
    explanation: str | None = None


@defer_interrupt
def to_json(exported: Exported) -> str:
    """A report as one JSON object on one line, in ASCII; `json_schema` describes it."""
    document = {
        "schema": SCHEMA,
        "model": _model(exported.trace.model),
        "compared": None if exported.compared is None else _model(exported.compared),
        "workloads": [_workload(workload) for workload in exported.workloads],
        "failures": [
            {**_workload(workload), "reason": reason} for workload, reason in exported.failures
        ],
        "deployment": _plain(dict(exported.deployment)),
        "training": _training(exported.trace.training),
        "versions": dict(exported.trace.versions),
        "views": list(exported.views),
        "notes": list(exported.notes),
        "explanation": exported.explanation,
        "tables": {name: records(table) for name, table in exported.tables.items()},
    }
    return json.dumps(document, allow_nan=False)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of what `to_json` writes."""
    text = files("llmsim_magic.views").joinpath(_SCHEMA_FILE).read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def records(table: "pd.DataFrame") -> list[dict[str, Any]]:
    """The rows of a table, with a named index as the first field; None for a missing value."""
    named = table.reset_index() if table.index.name is not None else table
    names = list(map(str, named))
    columns: Iterable[list[Any]] = ([_plain(value) for value in named[name]] for name in named)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _model(model: ModelInfo) -> dict[str, Any]:
    return {
        "name": model.name,
        "class": model.class_name,
        "model_type": model.model_type,
        "dtype": model.dtype,
        "attention": model.attention,
        "head": model.head,
        "config_from": model.origin,
        "tp": model.parallel.tp,
        "pp": model.parallel.pp,
        "ep": model.parallel.ep,
    }


def _training(training: Training | None) -> dict[str, Any] | None:
    """The options of a training step."""
    return None if training is None else asdict(training)


def _workload(workload: Workload) -> dict[str, Any]:
    has_size = bool(workload.context) and workload.phase != "forward"
    return {
        "phase": workload.phase,
        "batch": workload.batch if has_size else None,
        "context": workload.context if has_size else None,
    }


def _plain(value: Any) -> Any:
    """The value in the types of JSON: exact integers, shortest floats, None for a missing one."""
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if hasattr(value, "item"):  # a NumPy scalar
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    import pandas as pd

    return None if value is pd.NA else str(value)
