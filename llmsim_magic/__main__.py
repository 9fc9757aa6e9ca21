"""`python -m llmsim_magic MODEL --ops`: the same request in a terminal, as text."""

import sys

from llmsim_magic.notebook.arguments import Help, parse, parser
from llmsim_magic.records.errors import InvalidValue, LlmsimError
from llmsim_magic.records.printable import printable

PROGRAM = "python -m llmsim_magic"


def main(words: list[str] | None = None) -> int:
    """Answer one request; 2 after a mistake, which is told in one line, 130 after an interrupt."""
    given = sys.argv[1:] if words is None else words
    try:
        request = parse(given, PROGRAM).request
        if request.model is None:
            if given:
                raise InvalidValue.must_be(
                    "MODEL", "nothing", "a hub id, a folder or a config.json"
                )
            print(parser(PROGRAM).format_help())
            return 0
        from llmsim_magic.simulate.answer import answer

        report = answer(request, _say)
        _say("")
        print(report)
        if request.csv is not None:
            print(f"\nThe tables and graphs shown are in {printable(request.csv)}.")
        if report.sweep is not None and report.sweep.undone:
            left_out = f"{report.sweep.undone} of the workloads were not traced"
            print(f"llmsim: interrupted: {left_out}", file=sys.stderr)
            return 130
    except Help as help_text:
        print(help_text)
    except LlmsimError as error:
        print(f"llmsim: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("llmsim: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
    return 0


def _say(message: str) -> None:
    """Progress on one line of the terminal; the empty message clears it."""
    if sys.stderr.isatty():
        line = f"{printable(message)} …" if message else ""
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
