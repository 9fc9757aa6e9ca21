"""The line magic `%llmsim`: parse, ask, display."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_magic, magics_class
from IPython.display import display
from traitlets import Bool, TraitError, Unicode, validate

from llmsim_magic.notebook.arguments import Help, Line, parse_line, parser
from llmsim_magic.notebook.completion import complete
from llmsim_magic.notebook.progress import ProgressLine
from llmsim_magic.notebook.variables import model_named
from llmsim_magic.records.errors import InvalidValue, LlmsimError
from llmsim_magic.records.printable import printable

if TYPE_CHECKING:
    from llmsim_magic.notebook.panel.panel import Panel
    from llmsim_magic.simulate.report import Report

_DEFAULTS = ("phase", "batch", "context", "dtype", "attn", "depth", "level")


@magics_class
class LLMSim(Magics):
    """What a HuggingFace model really does when it runs.

    `%config LLMSim.batch = "1,16"` sets what `--batch` is where a line does not say it.
    """

    shell: InteractiveShell

    phase = Unicode("", help="prefill, decode or both").tag(config=True)
    batch = Unicode("", help="batch sizes, such as 1,16").tag(config=True)
    context = Unicode("", help="tokens read, or already in the cache").tag(config=True)
    dtype = Unicode("", help="bfloat16, float16 or float32 (the config's)").tag(config=True)
    attn = Unicode("", help="sdpa or eager").tag(config=True)
    depth = Unicode("", help="modules opened so deep in a graph").tag(config=True)
    level = Unicode("", help="what a node is: module, operator or kernel").tag(config=True)
    base = Bool(False, help="models without their heads").tag(config=True)

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self._shown: tuple[int, int] | None = None

    @validate(*_DEFAULTS)
    def _legal(self, proposal: Any) -> str:
        """What the option itself would take."""
        value = str(proposal["value"])
        try:
            parse_line("model", {proposal["trait"].name: value} if value else {})
        except LlmsimError as error:
            raise TraitError(str(error)) from error
        return value

    def defaults(self) -> dict[str, Any]:
        """Options that are set for all lines, by their names."""
        names = (*_DEFAULTS, "base")
        return {name: value for name in names if (value := getattr(self, name))}

    @line_magic
    def llmsim(self, line: str) -> "Report | Panel | None":
        try:
            parsed = parse_line(line, self.defaults())
            answer = self._panel(parsed) if self._wants_panel(parsed) else self._report(parsed)
            if not parsed.quiet:
                self.show(answer)
        except Help as help_text:
            print(help_text)
            return None
        except LlmsimError as error:
            raise UsageError(str(error)) from None
        if parsed.output is not None:
            self.shell.user_ns[parsed.output] = answer
        if parsed.request.csv is not None and not parsed.panel:
            print(f"The tables and graphs shown are in {printable(parsed.request.csv)}.")
        self._shown = (id(answer), self.shell.execution_count)
        return answer

    def show(self, answer: "Report | Panel") -> None:
        """Display an answer, but not once more as the value of the cell that has just shown it."""
        if self._shown != (id(answer), self.shell.execution_count):
            if hasattr(answer, "_repr_mimebundle_"):
                display(answer._repr_mimebundle_(), raw=True)
            else:
                answer.show()
        self._shown = None

    def _wants_panel(self, parsed: Line) -> bool:
        """A panel needs a kernel, whose front end has widgets: a terminal's shell has none."""
        return parsed.panel or (parsed.request.model is None and hasattr(self.shell, "kernel"))

    def _report(self, parsed: Line) -> "Report":
        if parsed.request.model is None:
            raise Help(parser().format_help())
        from llmsim_magic.simulate.answer import answer

        model = model_named(parsed.request.model, self.shell.user_ns)
        request = replace(parsed.request, model=model)
        with ProgressLine() as notice:
            return answer(request, notice.say)

    def _panel(self, parsed: Line) -> "Panel":
        from llmsim_magic.notebook.panel.panel import Panel

        if parsed.request.csv is not None:
            raise InvalidValue.must_be(
                "--csv", parsed.request.csv, "for a panel, which saves for itself"
            )
        asked = parsed.request
        for name, values in (
            ("phase", asked.phases), ("batch", asked.batches), ("context", asked.contexts),
        ):  # fmt: skip
            if len(values) > 1:
                given = ",".join(map(str, values))
                raise InvalidValue.must_be(
                    f"--{name}", given, "one value, as a panel shows one workload"
                )
        return Panel(parsed.request)


def register(shell: InteractiveShell) -> None:
    """Make the magic, its help, its options and its completion known to a shell."""
    magics = LLMSim(shell)
    LLMSim.llmsim.__doc__ = parser().format_help()
    shell.register_magics(magics)
    configurables: list[Any] = shell.configurables
    configurables[:] = [each for each in configurables if type(each) is not LLMSim]
    configurables.append(magics)
    if shell.display_formatter is not None:
        formatter = shell.display_formatter.ipython_display_formatter
        formatter.for_type_by_name("llmsim_magic.simulate.report", "Report", magics.show)
        formatter.for_type_by_name("llmsim_magic.notebook.panel.panel", "Panel", magics.show)
    shell.events.register("pre_run_cell", _begin)
    if complete not in shell.Completer.custom_matchers:
        shell.Completer.custom_matchers.append(complete)


def _begin(info: object) -> None:
    """A cell begins when no panel's thread builds or runs a model."""
    from llmsim_magic.simulate.models.recipes import wait_until_idle

    wait_until_idle()
