"""One GET of the hub: bounded in time and bytes, and ended together with its answer."""

import contextlib
import importlib
import os
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from llmsim_magic.capture.hub.config_file import MAX_FILE_BYTES
from llmsim_magic.records.deferred_interrupt import DeferredInterrupt
from llmsim_magic.records.errors import Cancelled, shorten
from llmsim_magic.records.trace.workload import IsCancelled, never_cancelled

TIMEOUT_S = 5.0
_DAY_S = 86_400  # a socket takes no number of any size
_POLL_S = 0.05
_MAX_REDIRECTS = 5
_CHUNK_BYTES = 1 << 16


class TooLarge(Exception):
    """The body is longer than `MAX_FILE_BYTES`."""


class TooManyRedirects(Exception):
    """More than `_MAX_REDIRECTS` redirects, or one to an address that was asked already."""


class BadRedirect(Exception):
    """A redirect to an address of no web server; the message is the quoted address."""


class ClientFailed(Exception):
    """The client cannot be set up with the user's proxy and certificates."""


class UnknownEncoding(Exception):
    """The body is in an encoding that was not asked for."""


class BadToken(Exception):
    """The user's token cannot be read, or cannot be sent in a header."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the hub answers: `content` is empty unless the status is 200.

    `headers` has lower-case names; those of the hub's own redirects are included. `sent_token`
    says whether the request held the user's token.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes
    sent_token: bool


def _ignore(message: str) -> None:
    """The default `progress`."""


@dataclass(slots=True)
class HubWait:
    """How long to wait for the hub, for all requests of one question together.

    Attributes:
        progress: called with a message while waiting.
        cancelled: polled while waiting.
    """

    progress: Callable[[str], None] = _ignore
    cancelled: IsCancelled = never_cancelled
    _end: float | None = None

    @property
    def timeout_s(self) -> float:
        """HF_HUB_DOWNLOAD_TIMEOUT if the user has set it, else `TIMEOUT_S`."""
        constants = importlib.import_module("huggingface_hub.constants")
        is_set = bool(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT"))
        return float(min(constants.HF_HUB_DOWNLOAD_TIMEOUT, _DAY_S)) if is_set else TIMEOUT_S

    def remaining_s(self) -> float:
        """Seconds that are left; the time runs from the first call."""
        if self._end is None:
            self._end = time.monotonic() + self.timeout_s
        return self._end - time.monotonic()


def get(url: str, wait: HubWait) -> Answer:
    """GET an address of the hub, once and without retries.

    Args:
        url: An address of the user's endpoint. The token is sent to no other host.
        wait: How long to wait, and what to call meanwhile.

    Raises:
        Exception: What the client raises; `TimeoutError`, or one of this module.
        Cancelled: If `wait.cancelled` returned True.
    """
    download = _Download(url, wait.remaining_s())
    host = urlsplit(url).netloc.rpartition("@")[2]
    started = time.monotonic()
    shown = -1
    threading.Thread(target=download.run, name="llmsim-hub", daemon=True).start()
    try:
        with DeferredInterrupt(wait.cancelled) as should_stop:
            while not download.done.wait(_POLL_S):
                if should_stop():
                    break
                if wait.remaining_s() <= 0:
                    raise TimeoutError
                if (waited := int(time.monotonic() - started)) > shown:
                    shown = waited
                    wait.progress(f"waiting for {host}" + (f" ({waited} s)" if waited else ""))
    finally:
        download.stop()
    if wait.cancelled():
        raise Cancelled(f"cancelled while waiting for {host}")
    if not download.done.is_set():
        raise KeyboardInterrupt
    if download.error is not None:
        raise download.error
    return download.answer


class _Download:
    """A GET in a thread, which another thread can stop at any time."""

    answer: Answer

    def __init__(self, url: str, timeout_s: float) -> None:
        self.done = threading.Event()
        self.error: Exception | None = None
        self._url = url
        self._end = time.monotonic() + timeout_s
        self._stopped = threading.Event()
        self._sockets: list[Any] = []

    def run(self) -> None:
        try:
            self.answer = self._get()
        except Exception as error:
            self.error = error
        self.done.set()

    def stop(self) -> None:
        """End the download: a blocked read returns when its socket is shut down."""
        if self.done.is_set():
            return
        self._stopped.set()
        for each in self._sockets:
            with contextlib.suppress(Exception):
                each.shutdown(socket.SHUT_RDWR)

    def _get(self) -> Answer:
        try:
            client = importlib.import_module("huggingface_hub").get_session()
        except Exception as error:
            raise ClientFailed from error
        token = _token()
        url = self._url
        headers: dict[str, str] = {}
        asked: set[str] = set()
        while url not in asked and len(asked) <= _MAX_REDIRECTS:
            asked.add(url)
            is_hub = _origin(url) == _origin(self._url)
            own = {"authorization": f"Bearer {token}"} if token and is_hub else {}
            with client.stream(
                "GET",
                url,
                headers={"user-agent": "llmsim-magic", "accept-encoding": "identity", **own},
                timeout=max(self._end - time.monotonic(), 0.001),
                follow_redirects=False,
                extensions={"trace": self._trace},
            ) as response:
                self._watch(response.extensions.get("network_stream"))
                if is_hub:
                    headers |= {name.lower(): value for name, value in response.headers.items()}
                if response.has_redirect_location:
                    url = _redirected(url, response.headers["location"])
                    continue
                content = self._content(response) if response.status_code == 200 else b""
                return Answer(response.status_code, headers, content, bool(own))
        raise TooManyRedirects

    def _content(self, response: Any) -> bytes:
        """The decoded body, of which never more than the limit is held."""
        encoding = response.headers.get("content-encoding", "identity").lower().strip()
        decode = _decoder(encoding)
        content = bytearray()
        for chunk in self._chunks(response):
            content += decode(chunk, MAX_FILE_BYTES + 1 - len(content))
            if len(content) > MAX_FILE_BYTES:
                raise TooLarge
        return bytes(content)

    def _chunks(self, response: Any) -> Iterable[bytes]:
        length = response.headers.get("content-length", "")
        if length.isdecimal() and int(length) > MAX_FILE_BYTES:
            raise TooLarge
        received = 0
        for chunk in response.iter_raw(_CHUNK_BYTES):
            received += len(chunk)
            if received > MAX_FILE_BYTES:
                raise TooLarge
            if self._stopped.is_set() or time.monotonic() > self._end:
                raise TimeoutError
            yield chunk

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        """Called by the client at each step of the request."""
        if self._stopped.is_set():
            raise TimeoutError
        self._watch(info.get("return_value"))

    def _watch(self, stream: Any) -> None:
        """Remember the socket of a network stream, so that `stop` can shut it down."""
        find = getattr(stream, "get_extra_info", None)
        if find is not None and (found := find("socket")) is not None:
            self._sockets.append(found)
            if self._stopped.is_set():
                raise TimeoutError


def _decoder(encoding: str) -> Callable[[bytes, int], bytes]:
    """A function that decodes a chunk to at most so many bytes.

    Raises:
        UnknownEncoding: If it is neither gzip nor deflate.
    """
    if encoding in ("", "identity"):
        return lambda chunk, _: chunk
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise UnknownEncoding(encoding)
    return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress


def _redirected(url: str, location: str) -> str:
    """The address that a redirect names.

    Raises:
        BadRedirect: If it is not one of a web server.
    """
    try:
        target = urljoin(url, location)
        scheme, host, _ = _origin(target)
    except ValueError:
        scheme, host = "", None
    if scheme not in ("http", "https") or not host:
        raise BadRedirect(shorten(location))
    return target


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parsed = urlsplit(url)
    port = parsed.port or {"http": 80, "https": 443}.get(parsed.scheme)
    return parsed.scheme, parsed.hostname, port


def _token() -> str | None:
    """The user's token, if any.

    Raises:
        BadToken: If it cannot be read or holds characters that no token has.
    """
    hub = importlib.import_module("huggingface_hub")
    if hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return None
    try:
        token: str | None = hub.get_token()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise BadToken(f"its file {hub.constants.HF_TOKEN_PATH} cannot be read: {reason}") from None
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise BadToken("it holds a space or a character that is not ASCII")
    return token
