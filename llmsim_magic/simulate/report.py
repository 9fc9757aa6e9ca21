"""Report, the result of `trace()`: tables, graphs and explanations of one traced pass."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from llmsim_magic.records.errors import Cancelled, LlmsimError
from llmsim_magic.records.trace.workload import IsCancelled, never_cancelled
from llmsim_magic.simulate.models.recipes import Progress, no_progress
from llmsim_magic.simulate.models.workloads import no_tracing
from llmsim_magic.simulate.report_tables import ReportTables
from llmsim_magic.simulate.view import View
from llmsim_magic.views.file_names import file_stem, model_stem
from llmsim_magic.views.notes import memory_notes, notes
from llmsim_magic.views.pages.text_page import DEFAULT_WIDTH, as_text
from llmsim_magic.views.safe_files import write_file, write_files
from llmsim_magic.views.section import Page, Part

if TYPE_CHECKING:
    import pandas as pd

    from llmsim_magic.views.graphs.graph import Graph


@dataclass(frozen=True, kw_only=True)
class Report(ReportTables):
    """One traced forward pass as tables, graphs and explanations; displays itself in a notebook.

    Displaying a report traces nothing: `prepare` computes the views beforehand, those that are slow
    before the first display.

    Attributes:
        views: the views that the report displays.
        explained: path of the module that the page explains.
        written: the files that `to_csv` wrote last.

    >>> import llmsim_magic as llmsim
    >>> report = llmsim.trace("gpt2", context=128)
    >>> report.layers.columns[:3].tolist()
    ['path', 'layer', 'operators']
    """

    views: tuple[View["Report"], ...] = ()
    explained: str | None = None
    written: list[Path] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def graphs(self) -> Mapping[str, str]:
        """The displayed graphs as SVG, by view: `deps`, `topological`."""
        return {name: graph.svg for name, graph in self.drawings.items()}

    def files(self) -> dict[str, bytes]:
        """Tables shown as CSV, graphs as SVG and JSON, explanation: content by file name.

        Names begin with the model and its workload, such as `Qwen3-0.6B.prefill.b1.c128.ops.csv`;
        those of tables of several workloads with the model alone.
        """
        from llmsim_magic.views.csv_export import to_csv

        made = {
            self.file_name(view, f"{name}.csv"): to_csv(table)
            for view in self.views
            for name, table in view.tables(self).items()
        }
        stem = file_stem(self.trace)
        for name, graph in self.drawings.items():
            made |= {
                f"{stem}.{name}.svg": graph.svg.encode(),
                f"{stem}.{name}.json": graph.json(),
            }
        if self.explained is not None:
            made[f"{stem}.explanation.txt"] = f"{self.explain(self.explained)}\n".encode()
        if self.costing.devices and self._shows_times:
            made[f"{stem}.timeline.json"] = self.costing.events.encode()
            made[f"{stem}.roofline.svg"] = self.costing.roofline.svg.encode()
        if self.trace.training is not None and self.shows("memory"):
            made[f"{stem}.memory.svg"] = self.costing.memory_plot.svg.encode()
        return made

    def file_name(self, view: View["Report"], what: str) -> str:
        """The name of a file of a view, such as `Qwen3-0.6B.prefill.b1.c128.ops.csv`.

        Args:
            view: the view that shows what is in the file.
            what: its content and format, such as `ops.csv`.
        """
        stem = model_stem(self.trace) if view.has_all_workloads else file_stem(self.trace)
        if view.name == "compare" and self.compared is not None:
            stem = f"{stem}.beside.{model_stem(self.compared.trace)[:60]}"
        return f"{stem}.{what}"

    def to_csv(self, folder: str | Path, *, overwrite: bool = False) -> list[Path]:
        """Write the displayed tables as CSV and graphs as SVG and JSON into a folder.

        Files that llmsim_magic wrote earlier are replaced. Each file is written atomically.

        Args:
            folder: the folder; created if it does not exist.
            overwrite: also replace files that another program wrote or changed.

        Returns:
            The paths of the files.

        Raises:
            OverwriteRefused: another program wrote or changed one of the files; nothing is written.
            InvalidValue: the folder cannot be written.

        >>> import tempfile
        >>> import llmsim_magic as llmsim
        >>> report = llmsim.trace("gpt2", context=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = report.to_csv(folder)
        """
        self.written[:] = write_files(folder, self.files(), overwrite=overwrite)
        return [*self.written]

    def to_html(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the displayed report as an HTML page that works offline.

        Args:
            path: the HTML file.
            overwrite: replace a file that another program wrote or changed.

        Returns:
            The path of the file.

        Raises:
            OverwriteRefused: another program wrote or changed the file.
            InvalidValue: the file cannot be written.
        """
        return write_file(path, self.page().encode(), overwrite=overwrite)

    def json(self) -> str:
        """The displayed tables with model, workloads, versions and notes as JSON, `llmsim/1`."""
        from llmsim_magic.views.json_export import Exported, to_json

        failures = self.sweep.failures if self.sweep else ()
        traces = self.sweep.traces if self.sweep else (self.trace,)
        others = [trace.workload for trace in traces if trace is not self.trace]
        explained = None if self.explained is None else str(self.explain(self.explained))
        with no_tracing():
            return to_json(
                Exported(
                    trace=self.trace,
                    workloads=(self.trace.workload, *others),
                    failures=failures,
                    compared=self.compared.trace.model if self.compared else None,
                    deployment=asdict(self.deployment),
                    views=tuple(view.name for view in self.views),
                    tables=self.tables(),
                    notes=self.remarks(),
                    explanation=explained,
                )
            )

    def to_json(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the displayed report as JSON; docs/reference/json.md describes the schema.

        Args:
            path: the JSON file.
            overwrite: replace a file that another program wrote or changed.

        Returns:
            The path of the file.

        Raises:
            OverwriteRefused: another program wrote or changed the file.
            InvalidValue: the file cannot be written.

        >>> import json
        >>> import llmsim_magic as llmsim
        >>> report = llmsim.trace("gpt2", context=8)
        >>> json.loads(report.json())["schema"]
        'llmsim/1'
        """
        return write_file(path, f"{self.json()}\n".encode(), overwrite=overwrite)

    def page(self) -> str:
        """The displayed report as an HTML page that works offline."""
        from llmsim_magic.views.pages.html_page import as_page

        content = self.prepare().content()
        with no_tracing():
            return as_page(content)

    @property
    def title(self) -> str:
        """The name of the model, its workload, the options of a training step, and the devices."""
        return f"{self.trace.model.name}: {', '.join((str(self.trace.workload), *self._options))}"

    @property
    def model_title(self) -> str:
        """As `title`, of all workloads."""
        options = ", ".join(self._options)
        return f"{self.trace.model.name}: {options}" if options else self.trace.model.name

    @property
    def _options(self) -> tuple[str, ...]:
        training, parallel = self.trace.training, self.trace.model.parallel
        options = "" if training is None else training.changes
        return tuple(filter(None, (options, "" if parallel.is_one else str(parallel))))

    def shows(self, name: str) -> bool:
        """Whether the report displays the view of this name."""
        return any(view.name == name for view in self.views)

    def prepare(
        self,
        progress: Progress = no_progress,
        cancelled: IsCancelled = never_cancelled,
        *,
        with_slow: bool = True,
    ) -> "Report":
        """Compute the views, including those that trace further workloads.

        Args:
            progress: called with a message before each view.
            cancelled: called between views; returns True to stop.
            with_slow: also the views that take longer than all else.

        Returns:
            The report itself.

        Raises:
            Cancelled: `cancelled` returned True before every view was computed.
            LlmsimError: a view cannot be computed.
        """
        for view in self.views:
            if cancelled():
                raise Cancelled(
                    f"{self.trace.model.name}: cancelled before {view.title} was computed"
                )
            if view.compute is not None and (with_slow or not view.is_slow):
                progress(f"computing {view.title.lower()}")
                if self.planner is None:
                    view.compute(self)
                    continue
                with self.planner.reporting(progress, cancelled):
                    view.compute(self)
        return self

    def content(self) -> Page:
        """What is displayed: an answer for each view, and the sentences beside them.

        Traces nothing.
        """
        with no_tracing():
            parts = tuple(
                Part(
                    name=view.name.replace(" ", "-"),
                    label=view.title,
                    title=view.heading(self),
                    figures=tuple(view.headline(self)),
                    sections=tuple(view.sections(self)),
                )
                for view in self.views
            )
            warnings = self.costing.misfits
            notes = tuple(note for note in self.remarks() if note not in warnings)
            return Page(self.title, parts, warnings, notes)

    def tables(self) -> "dict[str, pd.DataFrame]":
        """The tables of the displayed views, by file name."""
        found: dict[str, pd.DataFrame] = {}
        for view in self.views:
            found |= view.tables(self)
        return found

    def remarks(self) -> tuple[str, ...]:
        """The sentences beside the displayed views: what does not fit, then `notes`.

        Those of memory are among them where it is shown.
        """
        beside = self.sweep.notes if self.sweep else ()
        of_memory = memory_notes(self.costing.memories) if self.shows("memory") else ()
        costing = self.costing
        of_times = costing.remarks() if self._shows_times else ()
        unsupported = self.traced_alternatives.notes if self.shows("hardware alternatives") else ()
        found = (
            *costing.misfits,
            *notes(self.trace),
            *beside,
            *of_memory,
            *of_times,
            *unsupported,
        )
        return tuple(dict.fromkeys(found))

    @property
    def _shows_times(self) -> bool:
        """Whether a view has times on devices; whether a model fits needs none, nor its dtype."""
        is_check = all(view.name == "max-memory" for view in self.views)
        return not is_check or self.limits.seconds is not None

    @property
    def notes(self) -> tuple[str, ...]:
        """What does not fit and what is assumed, as sentences; each occurs once.

        As `memory` does, the first access may trace further workloads.

        >>> import llmsim_magic as llmsim
        >>> report = llmsim.trace("mistralai/Mixtral-8x7B-v0.1", context=8)
        >>> report.notes[0]
        'assumes balanced expert routing (32 layers)'
        """
        of_memory: tuple[str, ...] = ()
        with suppress(LlmsimError):  # memory that cannot be predicted has no assumptions
            of_memory = memory_notes(self.costing.memories)
        return tuple(dict.fromkeys((*self.remarks(), *of_memory)))

    @cached_property
    def drawings(self) -> "dict[str, Graph]":
        """The displayed graphs, by view: `deps`, `topological`."""
        return {view.name: view.draw(self) for view in self.views if view.draw is not None}

    def _repr_mimebundle_(self, **options: object) -> dict[str, str]:
        from llmsim_magic.views.pages.html_page import as_bundle

        content = self.prepare().content()
        with no_tracing():
            return as_bundle(content)

    def text(self, width: int = DEFAULT_WIDTH, *, color: bool = False) -> str:
        """The displayed report as text: identical layers folded, the columns that fit.

        Args:
            width: characters of a line; of a terminal narrower than 40, 40.
            color: whether to add escape sequences of colour, which a terminal shows.
        """
        content = self.prepare().content()
        with no_tracing():
            return as_text(content, width=width, color=color)

    def check_lines(self) -> tuple[str, ...]:
        """A line for each condition: whether it holds, the figure and the limit."""
        from llmsim_magic.views.tables.conditions import condition_lines

        return tuple(condition_lines(self.checked))

    def __repr__(self) -> str:
        return self.text()
