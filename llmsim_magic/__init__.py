"""Trace HuggingFace models without weights: operators, shapes, FLOPs, memory and time."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from llmsim_magic.notebook.panel.panel import panel as panel
    from llmsim_magic.records.errors import LlmsimError as LlmsimError
    from llmsim_magic.simulate.api import sweep as sweep
    from llmsim_magic.simulate.api import trace as trace
    from llmsim_magic.simulate.cache.forget import forget as forget
    from llmsim_magic.simulate.hardware.size import size as size

__version__ = "0.1.0"
__all__ = ["LlmsimError", "forget", "panel", "size", "sweep", "trace"]

_PUBLIC_MODULES = {
    "LlmsimError": "llmsim_magic.records.errors",
    "forget": "llmsim_magic.simulate.cache.forget",
    "panel": "llmsim_magic.notebook.panel.panel",
    "size": "llmsim_magic.simulate.hardware.size",
    "sweep": "llmsim_magic.simulate.api",
    "trace": "llmsim_magic.simulate.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that importing the package is fast."""
    if name in _PUBLIC_MODULES:
        return getattr(importlib.import_module(_PUBLIC_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted((*globals(), *__all__))


def load_ipython_extension(shell: "InteractiveShell") -> None:
    """Register the magic `%llmsim`; called by `%load_ext llmsim_magic`."""
    from llmsim_magic.notebook.magic import register

    register(shell)
