"""The user's settings of huggingface_hub, checked before anything reads or uses them."""

import importlib
import os
from urllib.parse import urlsplit

from llmsim_magic.records.errors import CannotTrace, InvalidValue, clip, describe, shorten

# huggingface_hub converts these to whole numbers while it is imported.
_TIMEOUTS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")


def import_hub() -> None:
    """Import huggingface_hub, which reads its environment variables then.

    Raises:
        InvalidValue: The address of the hub, or a timeout, has no value that it can take.
        CannotTrace: It cannot be imported for another reason.
    """
    if problem := import_problem():
        raise InvalidValue(problem)
    try:
        importlib.import_module("huggingface_hub.constants")
        importlib.import_module("huggingface_hub")
    except Exception as error:
        raise CannotTrace(
            f"huggingface_hub cannot be imported: {describe(error)}; check the environment "
            "variables whose names start with HF_"
        ) from error


def import_problem() -> str | None:
    """What is wrong with the address of the hub or a timeout; None if nothing is.

    With such a value, neither huggingface_hub nor transformers may be importable.
    """
    return _timeout_problem() or _endpoint_problem()


def _endpoint_problem() -> str | None:
    try:
        endpoint: str = importlib.import_module("huggingface_hub.constants").ENDPOINT
    except Exception:  # another setting
        return None
    try:
        parsed = urlsplit(endpoint)
        is_valid = parsed.scheme in ("http", "https") and bool(parsed.hostname) and parsed.port != 0
    except ValueError:
        is_valid = False
    if is_valid and endpoint.isprintable() and " " not in endpoint:
        return None
    return (
        f"HF_ENDPOINT {clip(repr(endpoint))} must be an address with its scheme, with a "
        "port of at most 65535 if any, and without spaces, as in https://huggingface.co"
    )


def certificate_problem() -> str | None:
    """What is wrong with the file of certificates that the user has set; None if nothing is."""
    file = os.environ.get("SSL_CERT_FILE")
    if not file:
        return None
    if not os.path.isfile(file):
        return f"SSL_CERT_FILE names {shorten(file)}, which is not a file"
    return f"SSL_CERT_FILE names {shorten(file)}, which holds no certificates that can be read"


def _timeout_problem() -> str | None:
    for name in _TIMEOUTS:
        value = os.environ.get(name)
        if value and not (value.strip().isdecimal() and value.strip(" 0")):
            return (
                f"{name} must be a whole number of seconds, at least 1, not {shorten(value)}; "
                f"{name}=30 waits half a minute"
            )
    return None
