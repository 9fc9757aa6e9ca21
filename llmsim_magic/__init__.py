"""What a HuggingFace model really does when it runs, and what it costs, without its weights."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from llmsim_magic.notebook.panel import panel as panel
    from llmsim_magic.records.errors import LlmsimError as LlmsimError
    from llmsim_magic.simulate.entry import sweep as sweep
    from llmsim_magic.simulate.entry import trace as trace
    from llmsim_magic.simulate.memory import forget as forget
    from llmsim_magic.simulate.size import size as size

__version__ = "0.1.0"
__all__ = ["LlmsimError", "forget", "panel", "size", "sweep", "trace"]

_HOMES = {
    "LlmsimError": "llmsim_magic.records.errors",
    "forget": "llmsim_magic.simulate.memory",
    "panel": "llmsim_magic.notebook.panel",
    "size": "llmsim_magic.simulate.size",
    "sweep": "llmsim_magic.simulate.entry",
    "trace": "llmsim_magic.simulate.entry",
}


def __getattr__(name: str) -> Any:
    """The public names, imported at first use so that the package itself loads at once."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted((*globals(), *__all__))


def load_ipython_extension(shell: "InteractiveShell") -> None:
    """`%load_ext llmsim_magic`: the magic `%llmsim`."""
    from llmsim_magic.notebook.magic import register

    register(shell)
