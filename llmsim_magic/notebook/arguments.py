"""The grammar of `%llmsim` and of `python -m llmsim_magic`: a line in, a request out."""

import argparse
import keyword
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from llmsim_magic.catalog import accelerators
from llmsim_magic.records.errors import InvalidValue, LlmsimError, one_of, shorten
from llmsim_magic.records.hardware.dtypes import (
    DTYPE_ALIASES,
    DTYPES,
    KV_DTYPES,
    WEIGHT_DTYPES,
)
from llmsim_magic.records.trace.parallel import Parallel
from llmsim_magic.records.trace.selection import LEVELS, Selection, Unfolded
from llmsim_magic.records.trace.workload import ATTENTIONS, PHASES
from llmsim_magic.simulate.request import (
    ALL,
    LAUNCHES,
    LOCAL,
    VIEWS,
    Build,
    Deployment,
    Request,
)

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


class UsageMistake(LlmsimError):
    """An option that does not exist, or lacks its value."""


class Help(Exception):
    """The user asked for help; the message is the help."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line as parsed: the request, the name to keep the report under, and how to show it."""

    request: Request
    output: str | None
    panel: bool
    quiet: bool


class _Parser(argparse.ArgumentParser):
    """argparse that raises instead of leaving the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageMistake(f"{message}; see {self.prog} --help")


class _Help(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        raise Help(parser.format_help())


def parser(program: str = PROGRAM) -> argparse.ArgumentParser:
    """Every option with what it is for."""
    made = _Parser(
        program,
        description="What a HuggingFace model does when it runs: no weights are needed.",
        epilog=_examples(program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    made.add_argument(
        "model", nargs="?", metavar="MODEL",
        help="hub id, folder, config.json, or the name of a variable holding a model or config",
    )  # fmt: skip
    made.add_argument(
        "--model", dest="model_option", metavar="MODEL", help="the same, as an option"
    )
    views = made.add_argument_group("views (--summary where none is named)")
    for view, text in zip(VIEWS, _VIEW_HELP, strict=True):
        views.add_argument(f"--{view}", action="append_const", const=view, dest="views", help=text)
    views.add_argument("--explain", metavar="PATH", help="the arithmetic behind one module")
    drawn = made.add_argument_group("graphs")
    drawn.add_argument("--depth", metavar="N", type=_number("depth"),
                       help="open modules so deep (what fits a screen)")  # fmt: skip
    drawn.add_argument("--layers", metavar="N[,N]|all", type=_layers, default=(),
                       help="draw these layers by themselves")  # fmt: skip
    drawn.add_argument("--level", metavar="LEVEL", default="operator",
                       help="what a node is: module, operator or kernel")  # fmt: skip
    work = made.add_argument_group("workload")
    work.add_argument("--phase", type=_phases, default=(), metavar="PHASE",
                      help="prefill, decode or both")  # fmt: skip
    work.add_argument("--batch", type=_numbers("batch"), default=(), metavar="N[,N]",
                      help="batch sizes (1)")  # fmt: skip
    work.add_argument("--context", type=_numbers("context"), default=(), metavar="N[,N]",
                      help="tokens read, or already in the cache (128)")  # fmt: skip
    work.add_argument("--sure", action="store_true", help="trace even thousands of workloads")
    work.add_argument("--no-replay", action="store_true",
                      help="run also layers that do what an earlier one did")  # fmt: skip
    build = made.add_argument_group("model")
    build.add_argument(
        "--dtype",
        metavar="DTYPE",
        help="bfloat16, float16, float32, or bf16, fp16, fp32 (the config's)",
    )
    build.add_argument(
        "--base", action="store_true", help="without the head, as AutoModel builds it"
    )
    build.add_argument("--attn", metavar="KIND", help="sdpa (fused) or eager (scores written out)")
    build.add_argument("--trust-remote-code", action="store_true",
                       help="run code from the model's own repository")  # fmt: skip
    build.add_argument("--refresh", action="store_true", help="ask the hub before the catalogue")
    devices = made.add_argument_group("devices")
    devices.add_argument("--hardware", metavar="NAME[,NAME]", type=_names, default=(),
                         help="time and memory there: H100, local (this machine), all")  # fmt: skip
    devices.add_argument("--weight-dtype", metavar="DTYPE",
                         help="what weights are stored in: int4, int8, fp8, bf16, …")  # fmt: skip
    devices.add_argument("--kv-dtype", metavar="DTYPE", help="what keys and values are stored in")
    devices.add_argument("--launch", metavar="KIND", default="graph",
                         help="graph (captured once, as engines do) or eager")  # fmt: skip
    for name, text in _PARALLEL_HELP.items():
        devices.add_argument(f"--{name}", metavar="N", type=_number(name), default=1, help=text)
    devices.add_argument("--compare", metavar="MODEL", help="a second model, side by side")
    result = made.add_argument_group("result")
    result.add_argument("--csv", metavar="DIR", help="write the tables and graphs shown")
    result.add_argument("--overwrite", action="store_true",
                        help="there, also files that something else wrote")  # fmt: skip
    if program == PROGRAM:
        result.add_argument(
            "--panel", action="store_true", help="explore it with dropdowns and sliders"
        )
        result.add_argument(
            "-o", dest="output", metavar="NAME", help="keep the report as a variable"
        )
    made.add_argument("--help", "-h", nargs=0, action=_Help, help="this text")
    return made


def _examples(program: str) -> str:
    """Those that a front door can run: a variable exists in a notebook alone."""
    lines = EXAMPLES.splitlines()
    fit = [line for line in lines if program == PROGRAM or not _only_in_a_notebook(line)]
    return "\n".join(fit).replace(PROGRAM, program)


def _only_in_a_notebook(line: str) -> bool:
    return line.startswith("  r =") or line.endswith("--panel")


_VIEW_HELP = (
    "operators, parameters, FLOPs, bytes and cache in one table",
    "every module and operator with shapes, parameters, FLOPs, bytes, source",
    "module hierarchy and dataflow, as a table and a graph",
    "execution order and what each operator waits for, as a table and a graph",
    "shapes for batch 1, 16 × context 1, 128 × prefill, decode",
    "FLOPs, bytes and arithmetic intensity by type of operator; time on --hardware",
    "weights, cache, activations and runtime; what fits on --hardware",
)
_PARALLEL_HELP = {
    "tp": "devices that share each layer, by the model's own plan",
    "pp": "stages that share the layers",
    "ep": "devices that share the experts",
}
VALUES: dict[str, tuple[str, ...]] = {
    "--phase": (*PHASES, "both"),
    "--dtype": (*DTYPES, *DTYPE_ALIASES),
    "--attn": ATTENTIONS,
    "--level": LEVELS,
    "--hardware": (*accelerators.entries(), LOCAL, ALL),
    "--weight-dtype": WEIGHT_DTYPES,
    "--kv-dtype": KV_DTYPES,
    "--launch": LAUNCHES,
}


def parse_line(line: str, defaults: Mapping[str, Any] | None = None) -> Line:
    """A magic's line. A comment is dropped; a trailing `;` keeps the answer from being shown.

    `defaults` are values, as they would be written, of options that are not.
    Raises `LlmsimError` for a mistake, `Help` for `--help`.
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
    words: Sequence[str], program: str = PROGRAM, defaults: Mapping[str, Any] | None = None
) -> Line:
    """The words of a line, by the same rules in a notebook and in a terminal."""
    made = parser(program)
    made.set_defaults(**(defaults or {}))
    found = made.parse_args(words)
    if found.model and found.model_option:
        raise UsageMistake(f"two models: {shorten(found.model)} and {shorten(found.model_option)}")
    output = getattr(found, "output", None)
    if output is not None and (not output.isidentifier() or keyword.iskeyword(output)):
        raise InvalidValue.must_be("-o", output, "a variable's name")
    views = tuple(dict.fromkeys(found.views or ()))
    if not views and found.explain is None:
        views = ("summary",)
    build = Build(
        found.base,
        found.attn,
        found.dtype,
        found.trust_remote_code,
        found.refresh,
        Parallel(found.tp, found.pp, found.ep),
    )
    deployed = Deployment(found.hardware, found.weight_dtype, found.kv_dtype, found.launch)
    request = Request(
        found.model or found.model_option,
        views,
        found.phase,
        found.batch,
        found.context,
        build,
        found.explain,
        Selection(found.depth, found.layers, found.level),
        deployed,
        found.compare,
        found.csv,
        found.overwrite,
        replay=not found.no_replay,
        sure=found.sure,
    )
    return Line(request, output, panel=getattr(found, "panel", False), quiet=False)


def _number(name: str) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not text.lstrip("-").isdecimal():
            raise InvalidValue.must_be(f"--{name}", text, "a whole number of at least 1")
        if int(text) < 1:
            raise InvalidValue.must_be(f"--{name}", text, "at least 1")
        return int(text)

    return convert


def _numbers(name: str) -> Callable[[str], tuple[int, ...]]:
    convert = _number(name)
    return lambda text: tuple(dict.fromkeys(convert(part.strip()) for part in text.split(",")))


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))


def _layers(text: str) -> Unfolded:
    if text == "all":
        return "all"
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise InvalidValue.must_be("--layers", text, "all, or indices of layers such as 0,27")
    return frozenset(map(int, parts))


def _phases(text: str) -> tuple[str, ...]:
    if text == "both":
        return PHASES
    if text not in PHASES:
        raise InvalidValue.must_be("--phase", text, one_of((*PHASES, "both")))
    return (text,)
