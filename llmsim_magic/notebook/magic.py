"""The line magic `%llmsim`: parse, ask, display."""

from dataclasses import replace
from typing import TYPE_CHECKING

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_magic, magics_class
from IPython.display import display

from llmsim_magic.catalog import models
from llmsim_magic.notebook.arguments import Help, parse_line, parser
from llmsim_magic.notebook.completion import complete, is_model
from llmsim_magic.notebook.progress import Notice
from llmsim_magic.records.errors import LlmsimError, clip
from llmsim_magic.simulate.request import Request

if TYPE_CHECKING:
    from llmsim_magic.simulate.report import Report


@magics_class
class LlmsimMagics(Magics):
    """What a HuggingFace model really does when it runs."""

    shell: InteractiveShell

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self._shown: tuple[int, int] | None = None

    @line_magic
    def llmsim(self, line: str) -> "Report | None":
        try:
            parsed = parse_line(line)
            request = self._with_variable(parsed.request)
            if request is None:
                print(parser().format_help())
                return None
            from llmsim_magic.simulate.entry import answer

            with Notice() as notice:
                report = answer(request, notice.say)
        except Help as help_text:
            print(help_text)
            return None
        except LlmsimError as error:
            raise UsageError(str(error)) from None
        if parsed.output is not None:
            self.shell.user_ns[parsed.output] = report
        if not parsed.quiet:
            self.show(report)
        if request.csv is not None:
            print(f"The tables and graphs shown are in {request.csv}.")
        self._shown = (id(report), self.shell.execution_count)
        return report

    def show(self, report: "Report") -> None:
        """Display a report, but not once more as the value of the cell that has just shown it."""
        if self._shown != (id(report), self.shell.execution_count):
            display(report._repr_mimebundle_(), raw=True)
        self._shown = None

    def _with_variable(self, request: Request) -> Request | None:
        """The request with a variable's value for its name; None where no model is named."""
        name = request.model
        if name is None:
            return None
        first, *attributes = name.split(".")
        if first not in self.shell.user_ns:
            return request
        value = self.shell.user_ns[first]
        for attribute in attributes:
            value = getattr(value, attribute, None)
        if is_model(value) or isinstance(value, str):
            return replace(request, model=value)
        if models.find(name) is not None:
            return request
        raise UsageError(
            f"model: the variable {clip(name)} holds a value of type {type(value).__name__}, "
            "not a model, a config or a name"
        )


def register(shell: InteractiveShell) -> None:
    """Make the magic, its help and its completion known to a shell."""
    magics = LlmsimMagics(shell)
    LlmsimMagics.llmsim.__doc__ = parser().format_help()
    shell.register_magics(magics)
    if shell.display_formatter is not None:
        shell.display_formatter.ipython_display_formatter.for_type_by_name(
            "llmsim_magic.simulate.report", "Report", magics.show
        )
    if complete not in shell.Completer.custom_matchers:
        shell.Completer.custom_matchers.append(complete)
