"""Import torch and transformers when a question first needs them."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from llmsim_magic.capture.hub.settings import import_problem
from llmsim_magic.records.background_import import is_imported, wait_for_imports
from llmsim_magic.records.deferred_interrupt import DeferredInterrupt
from llmsim_magic.records.errors import CannotTrace, describe
from llmsim_magic.simulate.cache.environment import code_in_use, environment, is_as_installed


@dataclass(frozen=True, slots=True)
class CodeState:
    """The code of a process.

    Attributes:
        environment: a digest of what is installed, or was when it was imported.
        changes: 0, or a number of what the process has changed in it since.
    """

    environment: str
    changes: int


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


def code_state() -> CodeState:
    """The code that this process runs now: equal for two questions that it would answer alike."""
    return CodeState(code_in_use(), _changes())


def runs_installed_code(code: CodeState) -> bool:
    """Whether a process in this state runs what is installed, unchanged."""
    return code.changes == 0 and is_as_installed() and environment() == code.environment


def _changes() -> int:
    """0 while what is imported of torch and transformers is as it was imported.

    Else a number of this process: what was built or traced at one number ran the same code.
    """
    if not is_imported("torch") and not is_imported("transformers"):
        return 0
    from llmsim_magic.capture.meta.changed_code import changes

    return changes()


def are_imported() -> bool:
    """Whether this process has imported torch and transformers."""
    return is_imported("torch") and is_imported("transformers")
