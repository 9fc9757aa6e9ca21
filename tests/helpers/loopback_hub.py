"""A model hub on the loopback: repositories with commits, redirects to a second host, and faults.

`hub.add("owner/name", {"config.json": {...}})` publishes a repository. `hub.fault` replaces every
answer by one of the misbehaviours below.
"""

import hashlib
import json
import re
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock
from urllib.parse import unquote

Fault = Callable[["Handler"], None]
_RESOLVE = re.compile(r"/(?P<repo>[^/]+(?:/[^/]+)?)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_API = re.compile(r"/api/models/(?P<repo>.+)/revision/(?P<revision>[^/]+)")


class Request(NamedTuple):
    """A request that a server received."""

    method: str
    path: str
    authorization: str | None


@dataclass
class LoopbackHub:
    """What the hub holds, and what it was asked."""

    address: str = ""
    other_address: str = ""  # a second host, for redirects
    asked: list[Request] = field(default_factory=list)
    asked_elsewhere: list[Request] = field(default_factory=list)
    files: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    cards: dict[str, dict[str, Any]] = field(default_factory=dict)
    fault: Fault | None = None
    has_error_codes: bool = True
    has_commits: bool = True
    has_api: bool = True
    redirects: str = ""  # "", "same host" or "other host"
    sent_bytes: int = 0

    def add(self, repo: str, files: dict[str, Any], revision: str = "main") -> str:
        """Publish files, JSON unless bytes; returns the commit."""
        held = self.files.setdefault((repo, revision), {})
        for name, value in files.items():
            held[name] = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.commit(repo, revision)

    def commit(self, repo: str, revision: str) -> str:
        """The commit of a revision: it depends on the files."""
        content = repr(sorted(self.files[repo, revision].items()))
        return hashlib.sha1(content.encode()).hexdigest()

    @property
    def paths(self) -> list[str]:
        """The paths that were asked for, in order."""
        return [request.path for request in self.asked]


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does."""

    protocol_version = "HTTP/1.1"
    hub: LoopbackHub
    is_other_host = False

    def do_GET(self) -> None:
        hub = self.hub
        request = Request(self.command, unquote(self.path), self.headers.get("authorization"))
        (hub.asked_elsewhere if self.is_other_host else hub.asked).append(request)
        with suppress(ConnectionError, TimeoutError):
            if hub.fault is not None:
                hub.fault(self)
            elif match := _API.fullmatch(self.path):
                self._describe(match["repo"], unquote(match["revision"]))
            elif match := _RESOLVE.fullmatch(self.path.removeprefix("/moved")):
                self._file(match["repo"], unquote(match["revision"]), unquote(match["file"]))
            else:
                self.reply(404, code="RepoNotFound")

    do_HEAD = do_POST = do_GET

    def _find(self, repo: str, revision: str) -> dict[str, bytes] | None:
        for (name, known), files in self.hub.files.items():
            if name == repo and revision in (known, self.hub.commit(name, known)):
                return files
        return None

    def _describe(self, repo: str, revision: str) -> None:
        files = self._find(repo, revision)
        if files is None or not self.hub.has_api:
            self.reply(404, code="RepoNotFound")
            return
        siblings = [{"rfilename": name} for name in files]
        card = {"cardData": self.hub.cards[repo]} if repo in self.hub.cards else {}
        self.reply(200, json.dumps({"id": repo, "siblings": siblings, **card}).encode())

    def _file(self, repo: str, revision: str, file: str) -> None:
        hub = self.hub
        files = self._find(repo, revision)
        if files is None:
            is_repo = any(name == repo for name, _ in hub.files)
            self.reply(404, code="RevisionNotFound" if is_repo else "RepoNotFound")
            return
        known = next(each for (name, each), held in hub.files.items() if held is files)
        headers = {"X-Repo-Commit": hub.commit(repo, known)} if hub.has_commits else {}
        if file not in files:
            self.reply(404, code="EntryNotFound", headers=headers)
            return
        headers["ETag"] = f'"{hashlib.sha1(files[file]).hexdigest()}"'
        moved = {"same host": "", "other host": hub.other_address}
        if hub.redirects and not self.path.startswith("/moved"):
            location = f"{moved[hub.redirects]}/moved{self.path}"
            self.reply(302, headers=headers | {"Location": location})
            return
        self.reply(200, files[file], headers=headers)

    def reply(
        self,
        status: int,
        content: bytes = b"",
        *,
        code: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        if code and self.hub.has_error_codes:
            self.send_header("X-Error-Code", code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def write(self, content: bytes) -> None:
        """Write a part of a body; counted in `hub.sent_bytes`."""
        self.wfile.write(content)
        self.hub.sent_bytes += len(content)

    def log_message(self, *_: object) -> None:
        """Not to the terminal."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """A client that goes away is no error."""


def status(code: int, headers: dict[str, str] | None = None) -> Fault:
    """Every answer has this status."""
    return lambda handler: handler.reply(code, b"no", headers=headers)


def stalls(handler: Handler) -> None:
    """No answer ever comes."""
    time.sleep(20)


def trickles(handler: Handler) -> None:
    """A byte of the body every 20 ms, for ever."""
    _begin(handler)
    while True:
        handler.write(b" ")
        handler.wfile.flush()
        time.sleep(0.02)


def trickles_headers(handler: Handler) -> None:
    """A byte of the headers every 20 ms, for ever."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while True:
        handler.write(b"a")
        handler.wfile.flush()
        time.sleep(0.02)


def resets(handler: Handler) -> None:
    """The connection is closed instead of an answer."""
    handler.close_connection = True
    handler.connection.close()


def breaks_off(handler: Handler) -> None:
    """The body is shorter than its Content-Length."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.write(b'{"model_type"')
    handler.close_connection = True


def loops(handler: Handler) -> None:
    """A redirect to the same address."""
    handler.reply(302, headers={"Location": handler.path})


def endless(handler: Handler) -> None:
    """A body without end."""
    _begin(handler)
    while True:
        handler.write(b" " * (1 << 16))


@cache
def bomb() -> bytes:
    """The body that `gzip_bomb` sends; takes a moment to make."""
    packer = zlib.compressobj(1, wbits=zlib.MAX_WBITS | 16)
    return b"".join(packer.compress(b" " * (1 << 20)) for _ in range(200)) + packer.flush()


def gzip_bomb(handler: Handler) -> None:
    """Less than 1 MB that unpacks to 200 MiB, though no compression was asked for."""
    handler.reply(200, bomb(), headers={"Content-Encoding": "gzip"})


def _begin(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.close_connection = True


@contextmanager
def loopback_hub(certificate: tuple[str, str] | None = None) -> Iterator[LoopbackHub]:
    """A running hub, with its second host; `certificate` and its key are files of a TLS server."""
    hub = LoopbackHub()
    servers = []
    for is_other in (False, True):
        handler = type("Bound", (Handler,), {"hub": hub, "is_other_host": is_other})
        server = _Server(("127.0.0.1", 0), handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
    hub.address, hub.other_address = (f"http://127.0.0.1:{each.server_port}" for each in servers)
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


@contextmanager
def hub_of_this_process(address: str, home: Path) -> Iterator[None]:
    """huggingface_hub, in this process, asks the hub of an address and caches in a folder."""
    from huggingface_hub import close_session, constants

    from llmsim_magic.capture.hub import local_cache

    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    values = {
        "ENDPOINT": address,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_OFFLINE": False,
    }
    environment = {"HF_TOKEN": "", "HF_HUB_DOWNLOAD_TIMEOUT": "", "NO_PROXY": "127.0.0.1"}
    local_cache.forget()
    with mock.patch.multiple(constants, **values), mock.patch.dict("os.environ", environment):
        try:
            yield
        finally:
            close_session()
            local_cache.forget()
