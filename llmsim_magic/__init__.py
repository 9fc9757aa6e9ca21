"""What a HuggingFace model really does when it runs, and what it costs, without its weights."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from llmsim_magic.notebook.panel.panel import panel as panel
    from llmsim_magic.records.errors import LlmsimError as LlmsimError
    from llmsim_magic.simulate.api import sweep as sweep
    from llmsim_magic.simulate.api import trace as trace
    from llmsim_magic.simulate.hardware.size import size as size
    from llmsim_magic.simulate.models.session_cache import forget as forget

__version__ = "0.1.0"
__all__ = ["LlmsimError", "forget", "panel", "size", "sweep", "trace"]

_HOMES = {
    "LlmsimError": "llmsim_magic.records.errors",
    "forget": "llmsim_magic.simulate.models.session_cache",
    "panel": "llmsim_magic.notebook.panel.panel",
    "size": "llmsim_magic.simulate.hardware.size",
    "sweep": "llmsim_magic.simulate.api",
    "trace": "llmsim_magic.simulate.api",
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
