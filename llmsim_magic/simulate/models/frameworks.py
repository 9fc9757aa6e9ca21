"""Import torch and transformers when a question first needs them."""

import importlib
from collections.abc import Callable

from llmsim_magic.capture.hub.settings import import_problem
from llmsim_magic.records.background_import import is_imported, wait_for_imports
from llmsim_magic.records.deferred_interrupt import DeferredInterrupt
from llmsim_magic.records.errors import CannotTrace, describe


def require_frameworks(progress: Callable[[str], None]) -> None:
    """Import torch and transformers; if one is missing, say how to install it.

    Raises:
        CannotTrace: one of them is missing, or cannot be imported.
    """
    if not are_imported():
        progress("importing torch and transformers")
    wait_for_imports()
    for package in ("torch", "transformers"):
        try:
            with DeferredInterrupt(insists=False):  # an interrupted import leaves torch broken
                importlib.import_module(package)
        except ImportError as error:
            raise CannotTrace(
                f"{error.name} is not installed: pip install torch --index-url "
                "https://download.pytorch.org/whl/cpu && pip install transformers"
            ) from error
        except Exception as error:  # transformers reads the working folder, which may not exist
            reason = import_problem() or describe(error)
            raise CannotTrace(f"{package} cannot be imported: {reason}") from error


def are_imported() -> bool:
    """Whether this process has imported torch and transformers."""
    return is_imported("torch") and is_imported("transformers")
