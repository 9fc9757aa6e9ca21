"""The line magic `%llmsim`: parse the line, compute the report, display it."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_magic, magics_class
from IPython.display import display
from traitlets import Bool, TraitError, Unicode, default, observe, validate

from llmsim_magic.notebook.arguments import Help, Line, parse_line, parser, written
from llmsim_magic.notebook.completion import complete
from llmsim_magic.notebook.progress import ProgressLine
from llmsim_magic.notebook.variables import find_model
from llmsim_magic.notebook.warm_up import warm_up
from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.simulate.cache.cache_folder import choose
from llmsim_magic.simulate.option_effect import require_effect

if TYPE_CHECKING:
    from llmsim_magic.notebook.panel.panel import Panel
    from llmsim_magic.simulate.report import Report

_DEFAULTS = ("phase", "batch", "context", "dtype", "attn", "depth", "level")


@magics_class
class LLMSim(Magics):
    """Shows the operators, costs and memory of a HuggingFace model.

    `%config LLMSim.batch = "1,16"` sets the default of `--batch`.
    """

    shell: InteractiveShell

    phase = Unicode("", help="prefill, decode or both").tag(config=True)
    batch = Unicode("", help="batch sizes, such as 1,16").tag(config=True)
    context = Unicode("", help="context lengths in tokens, such as 1,128").tag(config=True)
    dtype = Unicode("", help="bfloat16, float16 or float32").tag(config=True)
    attn = Unicode("", help="sdpa or eager").tag(config=True)
    depth = Unicode("", help="levels of modules to open in a graph").tag(config=True)
    level = Unicode("", help="nodes of a graph: module, operator or kernel").tag(config=True)
    base = Bool(False, help="leave out the head of models").tag(config=True)
    cache = Unicode("", help="folder of the records kept on disk, or off").tag(config=True)
    warm_up = Bool(
        help="import torch and transformers in the background, while the kernel is idle"
    ).tag(config=True)

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self._shown: tuple[int, int] | None = None
        self.last_paths: tuple[str, ...] = ()  # of modules, for completion

    @default("warm_up")
    def _is_in_notebook(self) -> bool:
        """Whether the shell is a notebook's kernel, whose user is about to ask."""
        return hasattr(self.shell, "kernel")

    @observe("warm_up")
    def _warm_up_changed(self, change: Any) -> None:
        if change["new"]:
            warm_up.is_wanted = True
        else:
            warm_up.stop()

    @validate(*_DEFAULTS)
    def _validate_default(self, proposal: Any) -> str:
        """Check a default by the rules of its option."""
        value = str(proposal["value"])
        try:
            parse_line("model", {proposal["trait"].name: value} if value else {})
        except LlmsimError as error:
            raise TraitError(str(error)) from error
        return value

    @validate("cache")
    def _choose_cache(self, proposal: Any) -> str:
        """Keep records in another folder, or none."""
        value = str(proposal["value"])
        try:
            choose(value)
        except LlmsimError as error:
            raise TraitError(str(error)) from error
        return value

    def defaults(self) -> dict[str, Any]:
        """The defaults that `%config` set, by name of the option."""
        names = (*_DEFAULTS, "base")
        return {name: value for name in names if (value := getattr(self, name))}

    @line_magic
    def llmsim(self, line: str) -> "Report | Panel | None":  # `register` sets its docstring
        try:
            parsed = parse_line(line, self.defaults())
            answer: Report | Panel
            if self._wants_panel(parsed):
                answer = self._panel(parsed)
            else:
                answer = report = self._report(parsed)
                if parsed.request.prints_json:
                    print(report.json())
            if not parsed.quiet and not parsed.request.prints_json:
                self.show(answer)
        except Help as help_text:
            print(help_text)
            return None
        except LlmsimError as error:
            raise UsageError(str(error)) from None
        if parsed.output is not None:
            self.shell.user_ns[parsed.output] = answer
        if not parsed.request.prints_json:
            files = getattr(answer, "written", ())  # a panel writes by its own button
            for sentence in written(parsed.request, files):
                print(sentence)
        self._shown = (id(answer), self.shell.execution_count)
        return answer

    def show(self, answer: "Report | Panel") -> None:
        """Display a report or panel, unless this cell has displayed it already."""
        if self._shown != (id(answer), self.shell.execution_count):
            if hasattr(answer, "_repr_mimebundle_"):
                display(answer._repr_mimebundle_(), raw=True)
            else:
                answer.show()
        self._shown = None

    def _wants_panel(self, parsed: Line) -> bool:
        """Whether to open a panel: on `--panel`, or without a model in a notebook kernel."""
        return parsed.panel or (parsed.request.model is None and hasattr(self.shell, "kernel"))

    def _report(self, parsed: Line) -> "Report":
        if parsed.request.model is None:
            raise Help(parser().format_help())
        from llmsim_magic.simulate.answer import answer

        require_effect(parsed.request, parsed.given)
        model = find_model(parsed.request.model, self.shell.user_ns)
        request = replace(parsed.request, model=model)
        with ProgressLine() as progress:
            report = answer(request, progress.update)
        self.last_paths = tuple(module.path for module in report.trace.modules if module.path)
        return report

    def _panel(self, parsed: Line) -> "Panel":
        from llmsim_magic.notebook.panel.panel import Panel

        return Panel(parsed.request)


def register(shell: InteractiveShell) -> None:
    """Register the magic, its help, its `%config` options and its completion with a shell."""
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
    shell.events.register("pre_run_cell", _wait_for_panels)
    warm_up.is_wanted = magics.warm_up
    shell.events.register("pre_run_cell", warm_up.before_cell)
    shell.events.register("post_run_cell", warm_up.after_cell)
    if complete not in shell.Completer.custom_matchers:
        shell.Completer.custom_matchers.append(complete)


def _wait_for_panels(info: object) -> None:
    """Delay a cell until no panel builds or runs a model in its thread."""
    from llmsim_magic.simulate.models.building import wait_until_idle

    wait_until_idle()
