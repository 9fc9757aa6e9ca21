"""The command line, `python -m llmsim_magic MODEL --ops`: prints a report as text."""

import gc
import os
import shutil
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from llmsim_magic.notebook.arguments import Help, Line, parse, parser, written
from llmsim_magic.records.errors import InvalidValue, LlmsimError
from llmsim_magic.records.printable import printable
from llmsim_magic.simulate.option_effect import require_effect
from llmsim_magic.simulate.request import Request

if TYPE_CHECKING:
    from llmsim_magic.simulate.report import Report

PROGRAM = "python -m llmsim_magic"
CHECK = "check"  # the first word of a line that checks conditions; a folder of this name is ./check
_GARBAGE_THRESHOLD = 50_000  # allocations before garbage is collected; Python's default is 700
_CLOSED_PIPE = 141  # 128 + SIGPIPE, the status of a program that a closed pipe ends


def program() -> NoReturn:
    """Run `main` as a program, and end its process.

    Importing torch makes a million objects that live as long as the process. To search them for
    garbage again and again, and once more when the process ends, would take a third of its time.
    """
    gc.set_threshold(_GARBAGE_THRESHOLD)
    status = main()
    gc.freeze()
    sys.exit(status)


def main(words: list[str] | None = None) -> int:
    """Print the report of one request, or check one where the first word is `check`.

    Args:
        words: the arguments; by default those of the process.

    Returns:
        The exit status: 0, 1 if a condition does not hold, 2 after an error, 130 after an
        interrupt, 141 after whoever reads the output has closed it, as `head` does.
    """
    try:
        status = _run(sys.argv[1:] if words is None else words)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # it is None where the process started without it
                stream.flush()
    except BrokenPipeError:
        _discard_output()
        return _CLOSED_PIPE
    return status


def _run(words: list[str]) -> int:
    """Print the report of one request, and return the exit status."""
    is_check = words[:1] == [CHECK]
    program, given = (f"{PROGRAM} {CHECK}", words[1:]) if is_check else (PROGRAM, words)
    try:
        if not given:
            print(parser(program, check=is_check).format_help())
            return 0
        line = parse(given, program, check=is_check)
        if line.request.model is None:
            example = "--max-memory 24GB" if is_check else "--ops"
            raise InvalidValue(
                "no model is given; name a hub id, a folder or a config.json, as in "
                f"{program} gpt2 {example}"
            )
        return _answer(line)
    except Help as help_text:
        print(help_text)
    except LlmsimError as error:
        print(f"llmsim: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("llmsim: interrupted", file=sys.stderr)
        return 130
    return 0


def _answer(line: Line) -> int:
    """Compute and print the report of a line, and return the exit status."""
    request = line.request
    require_effect(request, line.given)
    from llmsim_magic.simulate.answer import answer

    report = answer(request, _show_progress)
    _show_progress("")
    _print_report(report, request)
    if report.sweep is not None and report.sweep.undone:
        undone = f"{report.sweep.undone} workloads were not traced"
        print(f"llmsim: interrupted: {undone}", file=sys.stderr)
        return 130
    is_checked = request.check or request.limits.is_any
    return 1 if is_checked and not all(each.holds for each in report.checked) else 0


def _print_report(report: "Report", request: Request) -> None:
    """Print a report as text, or as JSON and nothing else."""
    if request.prints_json:
        print(report.json())
        return
    if request.check:
        print("\n".join(report.check_lines()))
    else:
        print(report.text(_width(), color=_wants_color()))
    for sentence in written(request, report.written):
        print(f"\n{sentence}")


def _width() -> int:
    """Columns of the terminal, or of COLUMNS; 80 where the output is no terminal."""
    return shutil.get_terminal_size((80, 24)).columns


def _wants_color() -> bool:
    """Whether standard output is a terminal, and neither NO_COLOR nor TERM=dumb forbids colour."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    return is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _discard_output() -> None:
    """Send what is still buffered nowhere, because Python flushes it when the process ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:
            with suppress(OSError, ValueError):  # a stream without a file
                os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _show_progress(message: str) -> None:
    """Show progress on one line of the terminal; an empty message clears the line."""
    if sys.stderr.isatty():
        line = f"{printable(message)} …" if message else ""
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    program()
