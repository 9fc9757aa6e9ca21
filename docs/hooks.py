"""What the site takes from the code: options, columns and catalogues; and pages outside `docs`.

A page asks for a generated part by a comment, `<!-- generated: options -->`.
"""

import argparse
import logging
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import llmsim_magic as llmsim
from llmsim_magic.catalog import accelerators, models
from llmsim_magic.notebook.arguments import parse_line, parser
from llmsim_magic.simulate.answer import answer
from llmsim_magic.simulate.options import OPTIONS
from llmsim_magic.views.tables.column_meanings import meaning

if TYPE_CHECKING:
    import pandas as pd

ROOT = Path(__file__).parents[1]
# Pages that lie elsewhere in the repository, by their place in the site.
ELSEWHERE = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    **{f"benchmarks/{file.name}": f"benchmarks/{file.name}" for file in
       sorted((ROOT / "benchmarks").glob("*.md"))},
}  # fmt: skip
_PLACES = {source: place for place, source in ELSEWHERE.items()}
_MARKER = re.compile(r"<!-- generated: (\w+) -->")
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")
_CHOICES = {option.flag: option.choices for option in OPTIONS if option.choices}
_MANY = 14  # values of an option that are listed beside it
_log = logging.getLogger("mkdocs.hooks.llmsim_magic")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside the folder of the documentation."""
    for place, source in ELSEWHERE.items():
        text = (ROOT / source).read_text("utf-8")
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the generated parts, and turn links into the repository into links of the site."""
    place = page.file.src_uri
    filled = _MARKER.sub(lambda found: GENERATED[found[1]](), markdown)
    return _LINK.sub(lambda found: _link(found, place), filled)


def _link(found: re.Match[str], place: str) -> str:
    """The link as the site needs it; as plain text where the site does not have the file."""
    image, text, target, part = found[1], found[2], found[3], found[4] or ""
    source = ELSEWHERE.get(place, f"docs/{place}")
    file = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if file in _PLACES:
        there = _PLACES[file]
    elif file.startswith("docs/"):
        there = file.removeprefix("docs/")
    else:
        return text
    return f"{image}[{text}]({posixpath.relpath(there, posixpath.dirname(place))}{part})"


def _options() -> str:
    return "\n".join(_option_lines(parser()))


def _option_lines(found: argparse.ArgumentParser) -> Iterator[str]:
    groups = [group for group in found._action_groups if group._group_actions]
    # argparse keeps what is in no group in its first two.
    general = [action for group in groups[:2] for action in group._group_actions]
    named = [(group.title or "", group._group_actions) for group in groups[2:]]
    for title, actions in [("general", general), *named]:
        yield f"\n## {title.partition(' (')[0].capitalize()}\n"
        yield "| option | default | what it does |"
        yield "|---|---|---|"
        for action in actions:
            yield _row(_spelling(action), _default(action), _text(action))


def _spelling(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else f" {action.metavar or action.dest}"
    names = action.option_strings or [""]
    return ", ".join(f"`{(name + value).strip()}`" for name in names)


def _default(action: argparse.Action) -> str:
    default = action.default
    return "" if default in (None, False, (), argparse.SUPPRESS) else f"`{default}`"


def _text(action: argparse.Action) -> str:
    text = action.help or ""
    for name in action.option_strings:
        values = _CHOICES.get(name, ())
        if 0 < len(values) <= _MANY:
            text += "<br>One of " + ", ".join(f"`{value}`" for value in values) + "."
        elif values:
            text += f"<br>One of {len(values)} names, listed in the [catalogue](catalogue.md)."
    return text


def _columns() -> str:
    return "\n".join(
        line for name, (call, table) in _tables().items() for line in _table(name, call, table)
    )


def _tables() -> "dict[str, tuple[str, pd.DataFrame]]":
    """Every table of a small model, by the name of its file, with the code that gives it."""
    report = llmsim.trace("gpt2", hardware="H100")
    sweep = llmsim.sweep("gpt2", batch=[1], context=[128], phase="prefill")
    names = ("ops", "modules", "edges", "kernels", "summary", "topological", "costs", "layers",
             "memory", "latency", "times")  # fmt: skip
    found = {name: (f"report.{name}", getattr(report, name)) for name in names}
    compared = answer(parse_line("gpt2 --compare distilgpt2").request)
    found["differences"] = ("report.differences", compared.differences)
    found["sizing"] = ("llmsim.size(…).table", llmsim.size("gpt2", hardware=["H100"]).table)
    found["workloads"] = ("sweep.totals", sweep.totals)
    found["shapes"] = ("sweep.shapes", sweep.shapes)
    found["sweep_ops"] = ("sweep.ops", sweep.ops)
    step = llmsim.trace("gpt2", phase="train", batch=1, context=128)
    found["timeline"] = ("report.timeline", step.timeline)
    return found


def _table(name: str, call: str, table: "pd.DataFrame") -> Iterator[str]:
    yield f"\n## {name}\n"
    yield f"`{call}`, in a file `{name}.csv`. {len(table.columns)} columns.\n"
    yield "| column | dtype | meaning |"
    yield "|---|---|---|"
    columns = [(str(column), str(table[column].dtype)) for column in table.columns]
    if table.index.name:
        columns.insert(0, (table.index.name, f"{table.index.dtype}, index"))
    for column, dtype in columns:
        meant = meaning(name, column)
        if meant is None:
            _log.warning("column_meanings.py does not say what `%s` of `%s` is", column, name)
        yield _row(f"`{column}`", dtype, meant or "")


def _models() -> str:
    lines = ["| model | parameters | also called |", "|---|--:|---|"]
    for name, entry in sorted(models.entries().items(), key=lambda pair: pair[0].lower()):
        aliases = ", ".join(f"`{alias}`" for alias in entry.aliases)
        lines.append(_row(f"`{name}`", f"{entry.params:,}", aliases))
    return "\n".join(lines)


def _devices() -> str:
    lines = [
        "| device | vendor | memory, GiB | bandwidth, GB/s | bf16, TFLOP/s | fp8, TFLOP/s |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for device in accelerators.entries().values():
        figures = (
            (device.memory_bytes, 2**30),
            (device.bandwidth_bytes_per_s, 1e9),
            (device.peak_flops.get("bf16"), 1e12),
            (device.peak_flops.get("fp8"), 1e12),
        )
        cells = ["" if figure is None else f"{figure / unit:,.4g}" for figure, unit in figures]
        lines.append(_row(f"`{device.name}`", device.vendor, *cells))
    return "\n".join(lines)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


GENERATED: dict[str, Callable[[], str]] = {
    "options": _options,
    "columns": _columns,
    "models": _models,
    "devices": _devices,
}
