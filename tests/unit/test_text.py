"""Reports as text: numbers in people's units, folded layers, columns that fit."""

import subprocess
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import pandas as pd
import pytest

from llmsim_magic.notebook.arguments import parse_line
from llmsim_magic.simulate.answer import answer
from llmsim_magic.views import units
from llmsim_magic.views.pages.text_page import as_text as page_as_text
from llmsim_magic.views.pages.text_table import fit
from llmsim_magic.views.screen.columns import COLUMNS
from llmsim_magic.views.screen.folding import Line, fold
from llmsim_magic.views.screen.grid import grid, grids
from llmsim_magic.views.section import Page, Part, Section
from tests.helpers import small_models


def as_text(sections: Iterable[Section], notes: Iterable[str], **options: Any) -> str:
    part = Part("part", "Part", "A part", (), tuple(sections))
    return page_as_text(Page("A page", (part,), notes=tuple(notes)), **options)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (16_381_470_720, "16.4 GB"),
        (999_600, "1.00 MB"),
        (1_342_000_000_000, "1.34 TB"),
    ],
)
def test_bytes_have_decimal_units_and_three_digits(number: int, text: str) -> None:
    assert units.nbytes(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(8_190_735_360, "8.19 B"), (596_049_920, "596 M"), (768, "768"), (671e9, "671 B")],
)
def test_parameters_count_in_billions(number: float, text: str) -> None:
    assert units.parameters(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.00875, "8.75 ms"),
        (0.0009996, "1.00 ms"),
        (114.3e-6, "114 µs"),
        (4.83e-10, "0.483 ns"),
        (1.0, "1.00 s"),
        (119.0, "119 s"),
        (150.0, "2.50 min"),
        (7200.0, "2.00 h"),
        (90_000.0, "1.04 d"),
        (0.0, "0 ns"),
    ],
)
def test_times_have_the_unit_that_people_say(number: float, text: str) -> None:
    assert units.seconds(number) == text


def test_an_interval_has_one_unit() -> None:
    assert units.seconds_interval(0.0235, 0.0531) == "23.5–53.1 ms"
    assert units.seconds_interval(0.311, 1.1) == "0.311–1.10 s"


@pytest.mark.parametrize(
    ("number", "text"), [(38_712.0, "38.7k"), (23.98, "24.0"), (228.2, "228"), (999.7, "1.00k")]
)
def test_rates_are_three_digits(number: float, text: str) -> None:
    assert units.rate(number) == text


def test_a_share_that_is_not_nothing_is_not_zero() -> None:
    assert units.share(0.0) == "0.0 %"
    assert units.share(0.0001) == "<0.1 %"
    assert units.share(0.976) == "97.6 %"


def _labels(lines: list[Line]) -> list[str]:
    return [line.label for line in lines]


def test_identical_layers_are_one_block_and_a_different_one_stands_apart() -> None:
    paths = ["embed", *(f"h.{i}.{name}" for i in range(4) for name in ("a", "b")), "head"]
    sizes = [0, 1, 2, 1, 2, 1, 99, 1, 2, 0]
    lines = fold(paths, [(size,) for size in sizes])
    assert _labels(lines) == ["embed", "h.0–1, 3 ×3", "  a", "  b", "h.2", "  a", "  b", "head"]
    assert lines[2].rows == (1, 3, 7)
    assert lines[1].layers == 3


def test_the_row_of_a_layer_itself_is_the_head_of_its_block() -> None:
    paths = [path for i in range(3) for path in (f"m.layers.{i}", f"m.layers.{i}.mlp")]
    lines = fold(paths, [()] * 6)
    assert _labels(lines) == ["m.layers.0–2 ×3", "  mlp"]
    assert lines[0].rows == (0, 2, 4)


def test_layers_inside_a_layer_fold_too() -> None:
    paths = [f"layers.{i}.experts.{j}.up" for i in range(2) for j in range(8)]
    lines = fold(paths, [()] * 16)
    assert _labels(lines) == ["layers.0–1 ×2", "  experts.0–7 ×8", "    up"]
    assert len(lines[-1].rows) == 16


def test_a_key_counts_relative_to_its_layer() -> None:
    paths = [f"layers.{i}:add" for i in range(4)]
    sources = ["embed", *(f"layers.{i}:add" for i in range(3))]
    lines = fold(paths, [(source,) for source in sources])
    assert _labels(lines) == ["layers.0", "  :add", "layers.1–3 ×3", "  :add"]


def test_numbered_modules_that_all_differ_stay_as_they_are() -> None:
    assert _labels(fold(["net.0", "net.1"], [("Conv",), ("ReLU",)])) == ["net.0", "net.1"]


def test_a_block_shows_the_mean_of_its_layers_times() -> None:
    table = pd.DataFrame({"path": ["h.0", "h.1"], "time_s": [1e-3, 3e-3], "flops": [5, 5]})
    shown = grid(table)
    texts = {column.column.head: column.texts for column in shown.columns}
    assert texts == {"path": ["h.0–1 ×2"], "time": ["2.00 ms"], "FLOPs": ["5"]}


def test_a_block_inside_a_layer_has_the_sum_of_one_layer() -> None:
    paths = [f"layers.{i}.experts.{j}.up" for i in range(2) for j in range(8)]
    shown = grid(pd.DataFrame({"path": paths, "flops": [5] * 16, "time_s": [1e-3] * 16}))
    flops, time = (next(c for c in shown.columns if c.name == n) for n in ("flops", "time_s"))
    assert flops.texts == ["80", "40", "5"]
    assert flops.of_layer == {0: "40", 1: "5"}
    assert time.texts == ["16.0 ms", "8.00 ms", "1.00 ms"]


def test_what_every_row_has_is_said_once() -> None:
    table = pd.DataFrame({"phase": ["prefill", "decode"], "batch": [4, 4], "flops": [10, 20]})
    text = as_text([Section("Title", table)], ())
    assert "batch 4" in text.splitlines()
    assert text.count("batch") == 1


def _wide() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "path": ["a" * 60, "b"],
            "op": ["Linear", "x" * 40],
            "flops": [10**12, 3],
            **{f"extra_{i}": ["y" * 20, "z"] for i in range(9)},
        }
    )


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_columns_that_do_not_fit_are_named_and_no_line_is_wider(width: int) -> None:
    text = as_text([Section("Title", _wide(), "A remark. " * 30)], ["note " * 50], width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "Not shown: " in text
    assert "--csv DIR or --json FILE" in " ".join(text.split())


@pytest.mark.parametrize("name", COLUMNS)
def test_a_head_is_one_name_in_a_list(name: str) -> None:
    """The sentence of what is not shown separates names by commas."""
    assert not {",", ";"} & set(COLUMNS[name].head)


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize(
    "line", ["--phase train --costs --memory --ops", "--costs --memory --ops --multi-config"]
)
def test_no_column_is_shown_and_said_not_to_be(line: str, width: int) -> None:
    tables = _tables(line)
    assert len(tables) > 4
    for table in tables:
        for _, each in grids(table):
            fitted = fit(each, width)
            heads = {column.column.head.replace("\n", " ") for column in fitted.columns}
            assert not heads & {
                *fitted.left_out,
                *(name.replace("_", " ") for name in each.details),
            }


@cache
def _tables(line: str) -> list[pd.DataFrame]:
    """The tables of all views of a small model that a line shows."""
    request = parse_line(f"gpt2 --hardware H100 --context 8 {line}").request
    page = answer(replace(request, model=small_models.qwen3())).content()
    bodies = [section.shown() for part in page.parts for section in part.sections]
    return [body for body in bodies if isinstance(body, pd.DataFrame)]


def test_alternatives_show_what_they_are_sorted_by() -> None:
    """In a terminal of 80 columns, of one device and of several."""
    names = ["tokens/s per device", "peak", "fits"]
    for devices in (["H100"], ["H100-SXM5-80GB", "A40"]):
        table = pd.DataFrame(
            {
                "device": devices * 2,
                "change": ["--checkpointing --accumulate 4", "as asked"] * len(devices),
                "fits": True,
                "peak_bytes": 10**9,
                "time_s": 0.5,
                "tokens_per_s_per_device": 31_415.9,
            }
        )
        (_, each), *_ = grids(table)
        heads = [column.column.head.replace("\n", " ") for column in fit(each, 80).columns]
        assert {*names} <= {*heads}


def test_a_sentence_leaves_room_for_main_columns() -> None:
    said = " ".join(["--checkpointing", "--zero 3 --dp 8"] * 4)
    table = pd.DataFrame(
        {"change": [said], "peak_bytes": [10**9], "tokens_per_s_per_device": [5.0]}
    )
    (_, each), *_ = grids(table)
    fitted = fit(each, 80)
    assert not fitted.left_out
    assert sum(fitted.widths) + 2 * 2 == 80  # the sentence has what the others leave


def test_heads_have_two_lines_where_that_shows_more() -> None:
    table = pd.DataFrame(
        {
            "device": ["A" * 20],
            "largest_micro_batch": [1],
            "longest_context": [2],
            "devices_with_zero": [3],
        }
    )
    (_, each), *_ = grids(table)
    assert [column.column.head for column in fit(each, 80).columns] == [
        "device",
        "largest micro-batch",
        "longest context",
        "devices with ZeRO",
    ]
    narrow = fit(each, 60)
    assert not narrow.left_out
    assert narrow.columns[1].column.head == "largest\nmicro-batch"
    assert narrow.widths == [20, 11, 7, 9]


def test_a_path_that_is_too_wide_keeps_its_end() -> None:
    table = pd.DataFrame({"path": [f"{'deep.' * 40}up_proj"], "flops": [1]})
    assert "…" in as_text([Section("T", table)], (), width=60)
    assert "up_proj" in as_text([Section("T", table)], (), width=60)


def test_the_least_important_columns_go_first() -> None:
    table = pd.DataFrame(
        {"op": ["Linear" * 3], "elementwise_ops": [1], "time_s": [0.5], "bytes_weights": [10**9]}
    )
    narrow = as_text([Section("T", table)], (), width=40)
    assert "500 ms" in narrow
    assert "1.00 GB" not in narrow
    assert "Not shown: weight bytes" in narrow


def test_more_rows_than_asked_for_are_counted() -> None:
    table = pd.DataFrame({"op": [f"op{i}" for i in range(100)]})
    text = as_text([Section("T", table)], (), max_rows=10)
    assert "op9\n" in text
    assert "op10" not in text
    assert "90 more rows" in text


def test_colour_is_only_where_it_is_asked_for() -> None:
    sections = [Section("Title", _wide(), "Remark.")]
    assert "\x1b[" not in as_text(sections, ["note"])
    assert "\x1b[1mTitle" in as_text(sections, ["note"], color=True)


def test_markup_and_escapes_in_a_name_are_shown_as_they_are() -> None:
    table = pd.DataFrame({"path": ["[bold]x[/bold]", "\x1b[31mred"], "op": [":smile:", "[/]"]})
    text = as_text([Section("[red]T", table, "[link]")], ["[i]n"], color=False)
    for said in ("[bold]x[/bold]", r"\x1b[31mred", ":smile:", "[/]", "[red]T", "[link]", "[i]n"):
        assert said in text


def test_what_does_not_fit_is_red_in_colour() -> None:
    table = pd.DataFrame({"device": ["L4", "H100"], "fits": [False, True]})
    text = as_text([Section("T", table)], (), color=True)
    assert "\x1b[1;31mno" in text
    assert "\x1b[32myes" in text


def test_only_the_signs_that_a_table_uses_are_explained() -> None:
    plain = as_text([Section("T", pd.DataFrame({"op": ["Linear"]}))], ())
    assert "N:" not in plain
    many = pd.DataFrame(
        {"path": ["h.0", "h.1"], "output_shapes": [[(1, 16, 128, 128), (1, 8, 128, 128)]] * 2}
    )
    shown = as_text([Section("T", many)], ())
    assert "[1, 16, 128, 128] +1" in shown
    assert "×N: N identical layers, and below it one of them; +N: N more shapes." in shown


def test_the_first_text_of_a_process_leaves_its_random_numbers_unchanged() -> None:
    """The import of rich draws one."""
    code = """
        import random
        from llmsim_magic.views.pages.text_page import as_text
        from llmsim_magic.views.section import Page
        before = random.getstate()
        as_text(Page("A page", ()))
        assert random.getstate() == before
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
