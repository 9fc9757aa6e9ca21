"""Keep what transformers and peft say about a step of ours from being shown."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging

from llmsim_magic.records.muted_thread import muted_packages

# Of torch, its checkpoints alone: what else it warns of may be about code of the user.
_PACKAGES = ("transformers", "peft", "torch.utils.checkpoint")


@contextmanager
def without_library_warnings() -> Iterator[None]:
    """Silence transformers and peft in this thread; code of the user's is heard as before.

    What transformers says once in a process is said to the user later, if code of the user's
    causes it.
    """
    with muted_packages(_PACKAGES) as mute:
        yield
    if mute.has_dropped:
        logging.warning_once.cache_clear()
