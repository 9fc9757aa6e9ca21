"""forget(): clear what was recorded, in this session and on disk."""

from llmsim_magic.capture.hub import local_cache
from llmsim_magic.simulate.cache import session_cache
from llmsim_magic.simulate.cache.cache_folder import disk_cache


def forget() -> None:
    """Clear the models, configs and traces of the session, and the records kept on disk.

    >>> import llmsim_magic as llmsim
    >>> llmsim.forget()
    """
    session_cache.forget()
    local_cache.forget()
    kept = disk_cache()
    if kept is not None:
        kept.forget()
