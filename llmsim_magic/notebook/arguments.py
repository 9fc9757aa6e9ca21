"""Parse the arguments of `%llmsim` and `python -m llmsim_magic` into a request."""

import argparse
import difflib
import keyword
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from llmsim_magic.records.errors import InvalidValue, LlmsimError, clip, shorten
from llmsim_magic.records.printable import printable
from llmsim_magic.records.trace.lora import is_lora_key
from llmsim_magic.simulate.options import BY_NAME, OPTIONS, Option, request_of
from llmsim_magic.simulate.request import Request
from llmsim_magic.simulate.views import VIEWS
from llmsim_magic.views.safe_files import written_message

EXAMPLES = """\
examples:
  %llmsim Qwen/Qwen3-0.6B --multi-config
  %llmsim gpt2 --ops --summary --deps --topological
  %llmsim bert-base-uncased --ops --csv tables
  r = %llmsim my_model --phase decode --batch 16 --context 4096
  %llmsim deepseek-ai/DeepSeek-V3 --deps --level module
  %llmsim Qwen/Qwen3-0.6B --explain model.layers.0.mlp.up_proj
  %llmsim Qwen/Qwen3-0.6B --costs --hardware H100
  %llmsim Qwen/Qwen3-32B --memory --hardware all --context 32768 --batch 8
  %llmsim Qwen/Qwen3-8B --compare meta-llama/Llama-3.1-8B --hardware H100
  %llmsim Qwen/Qwen3-0.6B --panel
"""
PROGRAM = "%llmsim"
# Word processors and phones turn two hyphens into a dash.
_DASHES = ("-", "–", "—")
# `--zero3`, which is `--zero 3` without its space.
_NUMBER_AT_END = re.compile(r"(--[a-z]+)[-_]?([0-9]+)")
_ON = ("true", "yes", "on", "1")
_OFF = ("false", "no", "off", "0")
_BY_FLAG = {option.flag: option for option in OPTIONS if not option.is_flag}
_LONGEST = 80  # characters of an unknown option that are compared
_ALIKE = 0.7  # similarity of an option that is suggested
_SHOW = "Show the operators, costs and memory of a HuggingFace model, without weights."
_CHECK = (
    "Check a HuggingFace model against limits, without weights: one line per condition. With "
    "--hardware, it also has to fit the devices."
)
_CHECK_EXAMPLES = """\
examples:
  %llmsim Qwen/Qwen3-8B --max-memory 24GB --max-params 9B
  %llmsim Qwen/Qwen3-8B --hardware L4 --runtime vllm --context 8192 --batch 4
  %llmsim Qwen/Qwen3-0.6B --hardware H100 --phase decode --max-time 10ms --launch graph
"""
_STATUS = """\
exit status:
  0    answered; every condition holds
  1    a condition does not hold
  2    a mistake in the line, or a model that cannot be traced
  130  interrupted
  141  the reader of the output closed it
"""


class UsageMistake(LlmsimError):
    """An unknown option, or an option without its value."""


class Help(Exception):
    """Raised for `--help`; the message is the help text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A parsed line.

    Attributes:
        request: what to compute and which views to show.
        given: names of the options on the line, without defaults of the session.
        output: the variable that stores the report, if any.
        panel: open the panel.
        quiet: do not display the report.
    """

    request: Request
    given: frozenset[str]
    output: str | None
    panel: bool
    quiet: bool


class _Parser(argparse.ArgumentParser):
    """An argparse parser that raises instead of exiting the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageMistake(f"{message}; see {self.prog} --help")

    def parse_words(self, words: Sequence[str]) -> argparse.Namespace:
        """`parse_args`, with the nearest options in the error about an unknown one."""
        words = _joined(words)
        for word, following in pairwise((*words, "")):
            # argparse reads `-ops` as `-o ps`, and `-hardware` as `-h`.
            if word.startswith("-") and f"-{_name_of(word)}" in self._option_string_actions:
                self._refuse_option(word)
            self._refuse_value_of_flag(word, following)
        found, unknown = self.parse_known_args(words)
        for word in unknown:
            if word.startswith(_DASHES):
                self._refuse_option(word)
        if unknown:
            named = ", ".join(map(shorten, unknown))
            self.error(f"one model is expected, and {named} is given beside it")
        return found

    def _refuse_option(self, word: str) -> NoReturn:
        given = _name_of(word)
        joined = _NUMBER_AT_END.fullmatch(given)
        if joined is not None and joined[1] in self._option_string_actions:
            self.error(f"unknown option {clip(given)}; did you mean {joined[1]} {joined[2]}?")
        typed = given.lstrip("".join(_DASHES)).replace("_", "-").lower()[:_LONGEST]
        options = [name for name in self._option_string_actions if name.startswith("--")]
        names = [name.removeprefix("--") for name in options]
        near = [name for name in names if name.startswith(typed)]
        near = near or difflib.get_close_matches(typed, names, n=1, cutoff=_ALIKE)
        meant = f"; did you mean --{near[0]}?" if near else ""
        self.error(f"unknown option {clip(given)}{meant}")

    def _refuse_value_of_flag(self, word: str, following: str) -> None:
        """Raise for `--checkpointing=full` and `--checkpointing true`: a flag is on or left out."""
        flag, sign, value = word.partition("=")
        action = self._option_string_actions.get(flag)
        if action is None or action.nargs != 0 or not flag.startswith("--"):
            return
        if not sign and following.lower() not in (*_ON, *_OFF):
            return
        value = value if sign else following
        remedy = f"leave {flag} out" if value.lower() in _OFF else f"write {flag} alone"
        self.error(f"{flag} takes no value, and {shorten(value)} is given; {remedy}")


def _joined(words: Sequence[str]) -> list[str]:
    """The words, with values that were typed with spaces as one: `H100, A100`, `r=16 targets=q`.

    Args:
        words: those of a line, without quotes.
    """
    found: list[str] = []
    option: Option | None = None  # whose value the last word is, or the next one
    has_value = False
    for word in words:
        if word.startswith("-"):
            flag, sign, _ = word.partition("=")
            option, has_value = _BY_FLAG.get(flag), bool(sign)
            found.append(word)
        elif option is not None and has_value and _continues(option, found[-1], word):
            found[-1] = f"{found[-1]} {word}"
        else:
            found.append(word)
            option, has_value = (None, False) if has_value else (option, True)
    return found


def _continues(option: Option, last: str, word: str) -> bool:
    """Whether a word belongs to the value of an option that the last one holds."""
    if option.name == "lora":
        is_open = last.endswith((",", "+", "=")) or word.startswith((",", "+", "="))
        return is_open or is_lora_key(word)
    return option.is_list and (last.endswith(",") or word.startswith(","))


def _name_of(word: str) -> str:
    """The option of a word such as `--batch=4`."""
    return word.partition("=")[0]


class _HelpAction(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        raise Help(parser.format_help())


def parser(program: str = PROGRAM, *, check: bool = False) -> _Parser:
    """The argument parser, built from `VIEWS` and `OPTIONS`.

    Args:
        program: the name of the program in its help.
        check: leave out what a check has no use for: views, graphs and a second model.
    """
    made = _Parser(
        program,
        description=_CHECK if check else _SHOW,
        epilog=_epilog(program, check=check),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    made.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="hub id, folder or config.json"
        + (", or a variable that holds a model or config" if program == PROGRAM else ""),
    )
    made.add_argument(
        "--model", dest="model_option", metavar="MODEL", help="the same as the positional MODEL"
    )
    groups: dict[str, Any] = {}
    if not check:
        groups["views"] = made.add_argument_group("views (--summary by default)")
    for view in () if check else VIEWS.values():
        groups["views"].add_argument(
            f"--{view.name}", action="append_const", const=view.name, dest="views", help=view.help
        )
    for option in OPTIONS:
        if check and (option.group in ("views", "graphs") or option.name == "compare"):
            continue
        if option.group not in groups:
            groups[option.group] = made.add_argument_group(option.group)
        _add(groups[option.group], option)
    if program == PROGRAM:
        result = groups["result"]
        result.add_argument("--panel", action="store_true", help="open the interactive panel")
        result.add_argument("-o", dest="output", metavar="NAME", help="store the report in NAME")
    made.add_argument("--help", "-h", nargs=0, action=_HelpAction, help="show this help")
    return made


def _add(group: Any, option: Option) -> None:
    if option.is_flag:
        group.add_argument(
            option.flag,
            *option.aliases,
            dest=option.name,
            action="store_false" if option.default else "store_true",
            default=argparse.SUPPRESS,  # so that only options on the line are in the result
            help=option.help,
        )
    else:
        group.add_argument(
            option.flag,
            dest=option.name,
            metavar=option.metavar,
            type=option.parse,
            default=argparse.SUPPRESS,
            help=option.help,
        )


def _epilog(program: str, *, check: bool) -> str:
    if program == PROGRAM:
        return _examples(program)
    examples = _CHECK_EXAMPLES.replace(PROGRAM, program) if check else _examples(program)
    return f"{examples}\n{_STATUS}"


def _examples(program: str) -> str:
    """The examples that work in this program: variables and the panel need a notebook."""
    lines = EXAMPLES.splitlines()
    usable = [line for line in lines if program == PROGRAM or not _needs_notebook(line)]
    return "\n".join(usable).replace(PROGRAM, program)


def _needs_notebook(line: str) -> bool:
    return line.startswith("  r =") or line.endswith("--panel")


def parse_line(line: str, defaults: Mapping[str, Any] | None = None) -> Line:
    """Parse the line of the magic. Comments are ignored; a trailing `;` suppresses the display.

    Args:
        line: the text after `%llmsim`.
        defaults: default text of options, by name.

    Raises:
        LlmsimError: an unknown option or an illegal value.
        Help: the line contains `--help`.
    """
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        raise UsageMistake(f"{shorten(line)}: {error}") from error
    quiet = bool(words) and words[-1].endswith(";")
    if quiet:
        words[-1] = words[-1][:-1]
        words = [word for word in words if word]
    return replace(parse(words, PROGRAM, defaults), quiet=quiet)


def parse(
    words: Sequence[str],
    program: str = PROGRAM,
    defaults: Mapping[str, Any] | None = None,
    *,
    check: bool = False,
) -> Line:
    """Parse the words of a line of the magic or the terminal.

    Args:
        words: the words.
        program: the name of the program in its help and messages.
        defaults: default text of options, by name.
        check: the line is one of `llmsim check`, which shows conditions and no view.

    Raises:
        LlmsimError: an unknown option or an illegal value.
        Help: the words contain `--help`.
    """
    found = parser(program, check=check).parse_words(words)
    if found.model and found.model_option:
        raise UsageMistake(
            f"two models given, {shorten(found.model)} and {shorten(found.model_option)}; "
            "to show two models side by side, use --compare"
        )
    output = getattr(found, "output", None)
    if output is not None and (not output.isidentifier() or keyword.iskeyword(output)):
        raise InvalidValue.must_be("-o", output, "a variable name")
    given = {name: value for name, value in vars(found).items() if name in BY_NAME}
    views = tuple(dict.fromkeys(getattr(found, "views", None) or ()))
    if not views and "explain" not in given and not check:
        views = ("summary",)
    model = found.model or found.model_option
    request = request_of(model, views, _parsed(defaults or {}) | given, check=check)
    return Line(
        request=request,
        given=frozenset(given),
        output=output,
        panel=getattr(found, "panel", False),
        quiet=False,
    )


def written(request: Request, files: Sequence[Path]) -> Iterator[str]:
    """Sentences that say where a report was written: its tables and graphs, and its JSON."""
    if files:
        yield written_message(files)
    if request.json_file is not None:
        yield f"Wrote {printable(request.json_file)}"


def _parsed(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values of defaults of options, which are text or flags."""
    found = {}
    for name, value in defaults.items():
        parse = BY_NAME[name].parse
        found[name] = value if parse is None else parse(value)
    return found
