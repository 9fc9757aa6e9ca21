"""Say in one line why the hub gave no file: its status, or what kept the answer away."""

import importlib
import socket
import ssl
import time
import zlib
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from llmsim_magic.capture.hub.repository_name import RepositoryName
from llmsim_magic.capture.hub.request import (
    Answer,
    BadRedirect,
    BadToken,
    ClientFailed,
    TooLarge,
    TooManyRedirects,
    UnknownEncoding,
)
from llmsim_magic.capture.hub.settings import certificate_problem
from llmsim_magic.capture.hub.suggest_names import did_you_mean, unknown_model
from llmsim_magic.records.errors import UnknownModel, clip, describe, shorten

_LOGIN = "hf auth login"
_PROXY = "check HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
_CERT = "SSL_CERT_FILE names a file with the certificates to trust"
_NETWORK = "check HF_ENDPOINT, and whether your network wants a login"
_SLOW = "HF_HUB_DOWNLOAD_TIMEOUT=30 waits longer; a folder with its config.json works offline"


class HubUnavailable(UnknownModel):
    """The hub gave no answer about the model: it is off, out of reach, busy or failing."""


class FileMissing(Exception):
    """The repository has no such file, or its host does not say what is missing.

    `is_certain` is False for an answer 404 that names neither a file nor a repository.
    """

    def __init__(self, *, is_certain: bool) -> None:
        super().__init__()
        self.is_certain = is_certain


def raise_for_status(name: RepositoryName, answer: Answer) -> None:
    """Raise what an answer other than 200 means.

    Raises:
        FileMissing: The repository has no such file.
        HubUnavailable: The hub does not say whether the model exists.
        UnknownModel: The repository is missing, private or gated.
    """
    status, code = answer.status, answer.headers.get("x-error-code", "")
    said = answer.headers.get("x-error-message", "")
    if status == 200:
        return
    if code == "GatedRepo":
        raise UnknownModel(_gated(name, has_token=answer.sent_token))
    if code == "RevisionNotFound":
        raise UnknownModel(
            f"{name.repo} has no revision {shorten(name.revision)} on the hub; it must be a "
            "branch, a tag or a commit"
        )
    if status == 404 and code != "RepoNotFound":
        raise FileMissing(is_certain=code == "EntryNotFound" or "x-repo-commit" in answer.headers)
    if status == 401 and answer.sent_token and (code != "RepoNotFound" or "redential" in said):
        raise HubUnavailable(
            f"{name}: your token is refused by the hub (HTTP 401), it may have expired: run "
            f"{_LOGIN}, or hf auth logout and unset HF_TOKEN, since public models need no token"
        )
    if status in (401, 404):
        raise missing_or_private(name, status, has_token=answer.sent_token)
    raise HubUnavailable(f"{name}: {_status(answer)}{_said(said)}")


def missing_or_private(name: RepositoryName, status: int, *, has_token: bool) -> UnknownModel:
    """The hub answers alike about a repository that is missing and one that is private."""
    hint = "your token does not open it" if has_token else f"{_LOGIN} opens your private models"
    return unknown_model(
        str(name), f"is missing on the hub, or private ({hint}; HTTP {status})", with_examples=False
    )


def unreachable(
    name: RepositoryName, error: Exception, timeout_s: float, *, refresh: bool
) -> UnknownModel:
    """The error for a request that ended without an answer; names the cause.

    Args:
        name: What was asked for.
        error: What the request raised.
        timeout_s: The time that it had.
        refresh: The catalogue and the local cache were not searched.
    """
    if isinstance(error, TooLarge):
        return UnknownModel(f"{name}: its config on the hub is over 4 MiB, too large for a config")
    if isinstance(error, BadToken):
        return HubUnavailable(
            f"{name}: your token for the hub is unusable, {error}: run {_LOGIN}, or set HF_TOKEN "
            "(HF_HUB_DISABLE_IMPLICIT_TOKEN=1 asks without one)"
        )
    cause, remedy = _cause(error, timeout_s)
    remedy = remedy or "the path of a folder with its config.json works offline"
    return HubUnavailable(
        f"{_not_here(name, refresh)} the hub cannot be reached: {cause} ({remedy})"
        f"{'' if refresh else did_you_mean(name.repo)}"
    )


def offline(name: RepositoryName, *, refresh: bool) -> UnknownModel:
    """The error for a model that only the hub has, while the user has turned the hub off."""
    ending = "" if refresh else did_you_mean(name.repo)
    return HubUnavailable(f"{_not_here(name, refresh)} the hub is off (HF_HUB_OFFLINE){ending}")


def _not_here(name: RepositoryName, refresh: bool) -> str:
    return f"{name}:" if refresh else f"{name} is not in the catalogue or the local cache, and"


def _gated(name: RepositoryName, *, has_token: bool) -> str:
    if has_token:
        return (
            f"{name} is a gated model, and your account has no access yet: request it on the "
            f"model's page on the hub ({name.repo})"
        )
    return f"{name} is a gated model: request access on the hub, then run {_LOGIN}"


def _status(answer: Answer) -> str:
    """What a status means that says nothing about the model, and what to do."""
    status, http = answer.status, f"HTTP {answer.status}"
    later = f"try again {_retry_after(answer)}"
    if status == 429:
        more = "" if answer.sent_token else f"; {_LOGIN} raises the limit"
        return f"the hub limits how often you ask ({http}): {later}{more}"
    if status >= 500:
        return f"the hub fails ({http}): {later}"
    if status == 403:
        whose = "your token may not read it" if answer.sent_token else f"try {_LOGIN}"
        return f"the hub forbids access ({http}): {whose}"
    return f"the hub answers with {http}, which gives no config: {later}, or name a local folder"


def _said(message: str) -> str:
    return f"; the hub says {shorten(message, 120)}" if message else ""


def _retry_after(answer: Answer) -> str:
    """When to ask again, by the header Retry-After: seconds or a date."""
    value = answer.headers.get("retry-after", "").strip()
    if value.isdecimal() and len(value) < 9:
        return f"in {int(value)} s"
    try:
        seconds = parsedate_to_datetime(value).timestamp() - time.time()
    except (TypeError, ValueError):
        return "later"
    return f"in {max(round(seconds), 1)} s"


def _cause(error: Exception, timeout_s: float) -> tuple[str, str]:
    """What kept the answer away, and what to do where that is known.

    The client is of httpx or httpx2, whichever huggingface_hub uses: its errors go by name.
    """
    host, remedy = _host(), _PROXY if _proxy() else ""
    slow = f"{host} took longer than {timeout_s:g} s"
    text = clip(describe(error), 160)
    if isinstance(error, ClientFailed):
        return _setup_failure(error.__cause__ or error)
    chain = list(_chain(error))
    for each in chain:
        if isinstance(each, ssl.SSLCertVerificationError):
            text = clip(each.verify_message or "verification failed")
    causes: dict[type[BaseException] | str, tuple[str, str]] = {
        TooManyRedirects: (f"{host} redirects without end", _NETWORK),
        UnknownEncoding: (f"{host} answers in an encoding that was not asked for, {error}", ""),
        ssl.SSLCertVerificationError: (f"the certificate of {host} is not trusted, {text}", _CERT),
        "ProxyError": (f"the proxy fails, {text}", _PROXY),
        TimeoutError: (slow, _SLOW),
        "TimeoutException": (slow, _SLOW),
        socket.gaierror: (f"the name {host} has no address here", remedy),
        ConnectionRefusedError: (f"{host} refuses the connection", remedy),
        ssl.SSLError: (f"{host} does not speak TLS as it should, {text}", remedy),
        "RemoteProtocolError": (f"{host} broke off its answer, {text}", "try again"),
        "NetworkError": (f"the connection to {host} broke, {text}", "try again"),
        zlib.error: (f"the answer of {host} cannot be decoded, {text}", "try again"),
        BadRedirect: (f"{host} redirects to {text}, an address of no web server", _NETWORK),
        "UnsupportedProtocol": (f"{host} redirects to an address of no web server", _NETWORK),
        "InvalidURL": (f"{host} redirects to an address of no web server", _NETWORK),
    }
    for kind, cause in causes.items():
        if any(_is_a(each, kind) for each in chain):
            return cause
    return f"{host}: {text}", remedy


def _setup_failure(error: BaseException) -> tuple[str, str]:
    """What the client raises while it is set up from the user's proxy and certificates."""
    text = f"the client cannot be set up, {clip(describe(error), 160)}"
    if isinstance(error, OSError):
        if problem := certificate_problem():
            return problem, "set it to a file with the certificates to trust, or unset it"
        return text, _CERT
    return text, _PROXY


def _host() -> str:
    """The hub's host, and the proxy on the way to it."""
    proxy = _proxy()
    return _endpoint().netloc.rpartition("@")[2] + (
        f" (through the proxy {proxy})" if proxy else ""
    )


def _proxy() -> str:
    """The host of the user's proxy, if the hub is asked through one; without its credentials."""
    proxies, address = getproxies(), _endpoint()
    proxy = proxies.get(address.scheme) or proxies.get("all") or ""
    if not proxy or proxy_bypass(address.netloc):
        return ""
    return clip(proxy.rpartition("@")[2].rpartition("//")[2] or proxy, 60)


def _endpoint() -> SplitResult:
    return urlsplit(importlib.import_module("huggingface_hub.constants").ENDPOINT)


def _is_a(error: BaseException, kind: type[BaseException] | str) -> bool:
    if isinstance(kind, type):
        return isinstance(error, kind)
    return kind in {base.__name__ for base in type(error).__mro__}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
