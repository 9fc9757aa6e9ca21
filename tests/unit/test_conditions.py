"""Limits of memory, parameters and time: how they are written, and what a check answers."""

import json

import pytest

import llmsim_magic as llmsim
from llmsim_magic.__main__ import main
from llmsim_magic.notebook.arguments import parse
from llmsim_magic.notebook.code_export import magic_line
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.sizes import parse_bytes, parse_parameters, parse_seconds
from llmsim_magic.views.tables.conditions import Condition, condition_lines


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("24GB", 24 * 10**9),
        ("24GiB", 24 * 2**30),
        ("24 gb", 24 * 10**9),
        ("1.5TB", 15 * 10**11),
        ("512MiB", 512 * 2**20),
        ("100kB", 10**5),
        ("24G", 24 * 10**9),
        ("1048576", 2**20),
        ("1024B", 1024),
        ("1e9", 10**9),
        ("8B", 8),
        (".5GB", 5 * 10**8),
        ("0GB", None),
        ("-1GB", None),
        ("24XB", None),
        ("GB", None),
        ("", None),
        ("nan", None),
        ("inf", None),
        ("1e999", None),
        ("١GB", None),
        ("9" * 80, None),
    ],
)
def test_sizes_of_memory(text: str, nbytes: int | None) -> None:
    if nbytes is None:
        with pytest.raises(InvalidValue, match="--max-memory must be a size such as 24GB or 24GiB"):
            parse_bytes("--max-memory", text)
    else:
        assert parse_bytes("--max-memory", text) == nbytes


@pytest.mark.parametrize(
    ("text", "number"),
    [("8B", 8 * 10**9), ("500M", 5 * 10**8), ("7.6b", 76 * 10**8), ("1T", 10**12), ("1500", 1500)],
)
def test_numbers_of_parameters(text: str, number: int) -> None:
    assert parse_parameters("--max-params", text) == number


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("--max-memory 24", "--max-memory 24 is 24 bytes: give the unit, such as 24GB or 24GiB"),
        ("--max-memory 79.5", "such as 79.5GB or 79.5GiB"),
        ("--max-memory 24000", "such as 24000MB or 24000MiB"),
        ("--max-memory 2e1", "such as 2e1GB or 2e1GiB"),
        ("--max-params 8", "--max-params 8 is 8 parameters: give the unit, such as 8B or 8M"),
    ],
)
@pytest.mark.parametrize("phase", ["prefill", "train"])
def test_a_number_whose_unit_was_forgotten_is_refused(line: str, advice: str, phase: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse(["gpt2", "--phase", phase, *line.split()])
    assert advice in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10ms", 0.01), ("1.5s", 1.5), ("2", 2.0), ("200us", 2e-4), ("200µs", 2e-4), ("2min", 120.0)],
)
def test_times(text: str, seconds: float) -> None:
    assert parse_seconds("--max-time", text) == pytest.approx(seconds)


def test_a_line_with_limits_is_written_back() -> None:
    line = "gpt2 --max-memory 24GiB --max-params 500M --max-time 10ms --hardware L4"
    request = parse(line.split()).request
    again = parse(magic_line(request).removeprefix("%llmsim ").split()).request
    assert again == request


def _check(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str], str]:
    status = main(["check", *line.split()])
    out, error = capsys.readouterr()
    return status, out.splitlines(), error


def test_each_condition_is_one_line_and_all_hold(capsys: pytest.CaptureFixture[str]) -> None:
    line = "distilgpt2 --max-memory 24GB --max-params 82M --hardware L4 --runtime transformers"
    status, lines, error = _check(line, capsys)
    assert (status, error) == (0, "")
    assert [each.split(":")[0].split() for each in lines] == [
        ["holds", "parameters"],
        ["holds", "memory"],
        ["holds", "fits", "L4"],
    ]


@pytest.mark.parametrize(
    ("limit", "quantity"),
    [
        ("--max-params 81.9M", "parameters"),  # distilgpt2 has 81,912,576
        ("--max-memory 300MB", "memory"),  # its weights alone are 327,650,304 bytes
        ("--max-time 1us --hardware H100 --launch eager --runtime transformers", "time"),
    ],
)
def test_a_condition_that_does_not_hold_ends_with_1(
    limit: str, quantity: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines, _ = _check(f"distilgpt2 {limit}", capsys)
    assert status == 1
    assert any(each.startswith(f"does not hold  {quantity}: ") for each in lines)


def test_figures_that_round_to_the_limit_are_written_in_full(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, (line,), _ = _check("distilgpt2 --max-params 81.9M", capsys)
    assert "81,912,576 of at most 81,900,000 parameters" in line


def test_a_limit_is_kept_if_the_figure_is_equal() -> None:
    equal = Condition(quantity="memory", where="", value=5, limit=5, unit="bytes")
    assert equal.holds
    assert next(condition_lines([equal])) == "holds          memory: 5 B of at most 5 B"


def test_a_model_that_does_not_fit_the_device_says_what_would(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, lines, _ = _check("Qwen/Qwen3-32B --hardware L4 --runtime vllm", capsys)
    assert status == 1
    assert len(lines) == 1
    assert lines[0].startswith("does not hold  fits L4: ")
    assert "to make it fit: " in lines[0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("gpt2", "needs a condition"),
        ("--max-memory 1GB", "no model is given"),
        ("gpt2 --max-memory 24XB", "24GB or 24GiB"),
        ("gpt2 --max-time 1s", "--hardware"),
        ("gpt2 --max-memory 1GB --hardware all", "name the devices"),
        ("gpt2 --max-memory 1GB --ops", "--ops"),
        ("no/such-model --max-memory 1GB", "no/such-model"),
    ],
)
def test_a_mistake_ends_with_2_and_one_line(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines, error = _check(line, capsys)
    assert (status, lines) == (2, [])
    assert len(error.strip().splitlines()) == 1
    assert said in error


def test_the_help_of_a_check_has_the_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"]):
        assert main(["check", *words]) == 0
        text = capsys.readouterr().out
        assert "exit status:" in text
        assert "--max-memory" in text
        assert "--topological" not in text
    assert main(["--help"]) == 0
    assert "exit status:" in capsys.readouterr().out


def test_limits_beside_a_view_are_a_table_and_decide_the_status(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["distilgpt2", "--summary", "--max-params", "1M"]) == 1
    text = capsys.readouterr().out
    assert "Conditions of distilgpt2" in text
    assert "81.9 M" in text
    assert main(["distilgpt2", "--summary", "--max-params", "1B"]) == 0


def test_a_check_as_json_has_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["check", "distilgpt2", "--max-params", "1M", "--max-memory", "24GB", "--json", "-"])
        == 1
    )
    rows = json.loads(capsys.readouterr().out)["tables"]["conditions"]
    assert [(row["quantity"], row["holds"]) for row in rows] == [
        ("parameters", False),
        ("memory", True),
    ]
    assert rows[0]["value"] == 81_912_576
    assert rows[0]["limit"] == 10**6


def test_what_fits_does_not_depend_on_the_dtypes_a_device_computes_in(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Times of bfloat16 are not predicted on a T4, and a check without --max-time has none."""
    line = ["check", "Qwen/Qwen3-0.6B", "--context", "8", "--hardware", "T4", "--json", "-"]
    assert main(line) == 0
    tables = json.loads(capsys.readouterr().out)["tables"]
    assert {row["quantity"] for row in tables["conditions"]} == {"fits T4"}


def test_every_workload_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    line = "distilgpt2 --max-memory 24GB --batch 1,2 --context 8 --phase both"
    status, lines, _ = _check(line, capsys)
    assert status == 0
    assert len(lines) == 4


def test_parameters_are_those_of_the_whole_model_however_it_is_split(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, lines, _ = _check("Qwen/Qwen3-0.6B --tp 2 --max-params 1B", capsys)
    assert "596 M" in lines[0]


def test_the_conditions_of_a_report_in_python_are_devices_that_fit() -> None:
    report = llmsim.trace("distilgpt2", hardware="L4", runtime="vllm")
    assert report.conditions["holds"].tolist() == [True]
    assert llmsim.trace("distilgpt2").conditions.empty
