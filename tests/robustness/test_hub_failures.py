"""Whatever a hub answers or does not: one line with the cause, in bounded time and memory."""

import _thread
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

import llmsim_magic as llmsim
from llmsim_magic.__main__ import main
from llmsim_magic.records.errors import Cancelled, LlmsimError, UnknownModel
from tests.helpers import loopback_hub, small_models
from tests.helpers.loopback_hub import Fault, LoopbackHub, status
from tests.helpers.shells import NO_HISTORY

MIB = 1 << 20


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    with (
        loopback_hub.loopback_hub() as running,
        loopback_hub.hub_of_this_process(running.address, tmp_path),
    ):
        yield running


@pytest.fixture
def impatient(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user waits one second for the hub."""
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 1)


def error_line(name: str, **options: bool) -> str:
    with pytest.raises(LlmsimError) as error:
        llmsim.trace(name, context=4, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def downloads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "llmsim-hub"]


def wait_until(condition: Callable[[], bool], timeout_s: float = 2.0) -> bool:
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


GATED, NO_REPO = {"X-Error-Code": "GatedRepo"}, {"X-Error-Code": "RepoNotFound"}
STATUSES: list[tuple[int, dict[str, str], str, list[str]]] = [
    (401, NO_REPO, "", ["missing", "private", "hf auth login"]),
    (404, NO_REPO, "", ["missing", "private", "hf auth login"]),
    (404, NO_REPO, "hf_x", ["missing", "private", "your token does not open it"]),
    (401, {}, "hf_x", ["your token is refused", "hf auth login"]),
    (
        401,
        NO_REPO | {"X-Error-Message": "Invalid credentials in Authorization header"},
        "hf_x",
        ["your token is refused"],
    ),
    (401, GATED, "", ["gated", "hf auth login"]),
    (403, GATED, "hf_x", ["gated", "no access yet"]),
    (403, {}, "hf_x", ["forbids", "403", "your token"]),
    (403, {"X-Error-Message": "This resource is disabled."}, "", ["forbids", "disabled"]),
    (404, {"X-Error-Code": "RevisionNotFound"}, "", ["no revision 'main'"]),
    (429, {"Retry-After": "17"}, "", ["limits", "429", "in 17 s", "hf auth login"]),
    (429, {}, "hf_x", ["limits", "later"]),
    (500, {}, "", ["the hub fails", "500", "later"]),
    (503, {"Retry-After": "30"}, "", ["the hub fails", "503", "in 30 s"]),
    (418, {}, "", ["418"]),
    (204, {}, "", ["204"]),
]


@pytest.mark.parametrize(("code", "headers", "token", "said"), STATUSES)
def test_a_status_is_said_for_what_it_means(
    hub: LoopbackHub,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    headers: dict[str, str],
    token: str,
    said: list[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    hub.fault = status(code, headers)
    line = error_line("owner/name")
    for words in said:
        assert words in line
    assert ("missing" in line) == ("missing" in said)
    assert "hf_x" not in line
    assert hub.paths == ["/owner/name/resolve/main/config.json"]  # once, without a retry


def test_a_retry_after_that_is_a_date_is_said_in_seconds(hub: LoopbackHub) -> None:
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    hub.fault = status(429, {"Retry-After": date})
    line = error_line("owner/name")
    assert any(f"in {seconds} s" in line for seconds in range(95, 101)), line


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (loopback_hub.stalls, "took longer than 1 s (HF_HUB_DOWNLOAD_TIMEOUT"),
        (loopback_hub.trickles, "took longer than 1 s (HF_HUB_DOWNLOAD_TIMEOUT"),
        (loopback_hub.trickles_headers, "took longer than 1 s (HF_HUB_DOWNLOAD_TIMEOUT"),
        (loopback_hub.resets, "broke off"),
        (loopback_hub.breaks_off, "broke off"),
        (loopback_hub.loops, "redirects without end"),
        (loopback_hub.endless, "over 4 MiB"),
        (loopback_hub.gzip_bomb, "over 4 MiB"),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_a_broken_answer_is_one_line_and_ends_with_its_download(
    hub: LoopbackHub, fault: Fault, said: str
) -> None:
    loopback_hub.bomb()
    hub.fault = fault
    started = time.monotonic()
    assert said in error_line("owner/name")
    assert time.monotonic() - started < 2
    assert len(hub.asked) == 1
    assert wait_until(lambda: not downloads())
    sent = hub.sent_bytes
    time.sleep(0.1)
    assert hub.sent_bytes - sent < MIB  # what the sockets hold at most
    assert sent < 32 * MIB


@pytest.mark.parametrize("fault", [loopback_hub.endless, loopback_hub.gzip_bomb])
def test_a_large_body_takes_little_memory(hub: LoopbackHub, fault: Fault) -> None:
    loopback_hub.bomb()
    error_line("owner/warm")  # imports
    hub.fault = fault
    tracemalloc.start()
    try:
        assert "over 4 MiB" in error_line("owner/name")
        assert tracemalloc.get_traced_memory()[1] < 24 * MIB  # the limit, a copy, and buffers
    finally:
        tracemalloc.stop()


def test_five_seconds_are_waited_unless_the_user_says_more(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("owner/slow", {"config.json": small_models.llama().to_dict()})
    monkeypatch.setattr("llmsim_magic.capture.hub.request.TIMEOUT_S", 0.2)

    def slow(handler: loopback_hub.Handler) -> None:
        time.sleep(0.5)
        handler.reply(200, hub.files["owner/slow", "main"]["config.json"])

    hub.fault = slow
    assert "took longer than 0.2 s" in error_line("owner/slow")
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "3")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 3)
    seen: list[str] = []
    report = llmsim.trace("owner/slow", context=4, progress=seen.append)
    assert report.trace.model.origin == "hub"
    assert f"waiting for {hub.address.removeprefix('http://')}" in seen


@pytest.mark.usefixtures("impatient")
def test_the_wait_is_shown_second_by_second(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fault = loopback_hub.stalls
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 1.5)
    seen: list[str] = []
    with pytest.raises(UnknownModel):
        llmsim.trace("owner/name", progress=seen.append)
    host = hub.address.removeprefix("http://")
    assert seen == [f"waiting for {host}", f"waiting for {host} (1 s)"]


@pytest.fixture
def heard_interrupts() -> Iterator[None]:
    """A shell starts what runs in the background with interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard_interrupts")
def test_an_interrupt_ends_the_wait_and_the_download(hub: LoopbackHub) -> None:
    hub.fault = loopback_hub.stalls
    timer = threading.Timer(0.3, _thread.interrupt_main)
    timer.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        llmsim.trace("owner/name")
    assert time.monotonic() - started < 1
    timer.join()
    assert wait_until(lambda: not downloads())


def test_a_cancelled_wait_ends_at_once(hub: LoopbackHub) -> None:
    hub.fault = loopback_hub.trickles
    started = time.monotonic()
    with pytest.raises(Cancelled):
        llmsim.sweep("owner/name", cancelled=lambda: time.monotonic() - started > 0.3)
    assert time.monotonic() - started < 1
    assert wait_until(lambda: not downloads())


def test_cancel_in_the_panel_ends_the_download(hub: LoopbackHub) -> None:
    hub.fault = loopback_hub.trickles
    panel = llmsim.panel("owner/name", context=4)
    panel.refresh()
    assert wait_until(lambda: hub.sent_bytes > 0, 10)
    panel.cancel()
    assert wait_until(lambda: not downloads())
    assert panel.report is None


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("huggingface.co", "HF_ENDPOINT 'huggingface.co' must be an address with its scheme"),
        ("https://", "HF_ENDPOINT"),
        ("http://127.0.0.1:99999", "HF_ENDPOINT 'http://127.0.0.1:99999' must be an address"),
        (" http://127.0.0.1", "HF_ENDPOINT ' http://127.0.0.1' must be an address"),
        ("http://127.0.0.1/a b", "without spaces"),
        ("http://user:secret@nowhere.invalid", "the name nowhere.invalid has no address"),
        ("http://nowhere.invalid", "the name nowhere.invalid has no address"),
    ],
)
def test_an_address_that_leads_nowhere_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str, said: str
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    with (
        loopback_hub.hub_of_this_process(endpoint, tmp_path),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(socket, "getaddrinfo", unknown)
        assert said in error_line("owner/name")


def asked_in_a_new_process(words: list[str], **environment: str) -> str:
    """What the command line says where these settings are there from the start."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-m", "llmsim_magic", *words],
        env=own | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_ENDPOINT", "http://127.0.0.1:99999"),
        ("HF_ENDPOINT", " http://127.0.0.1:1"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "-1"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "0"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "abc"),
        ("HF_HUB_ETAG_TIMEOUT", "0.5"),
    ],
)
def test_a_setting_without_meaning_is_named_before_the_hub_is_asked(
    tmp_path: Path, name: str, value: str
) -> None:
    line = asked_in_a_new_process(["owner/name"], **{"HF_HOME": str(tmp_path), name: value})
    assert line.startswith(f"llmsim: {name} ")
    assert "must be" in line
    assert repr(value) in line


@pytest.mark.slow
def test_an_endpoint_that_keeps_transformers_from_its_import_is_named(tmp_path: Path) -> None:
    endpoint = "http://127.0.0.1:99999"
    line = asked_in_a_new_process(["gpt2"], HF_HOME=str(tmp_path), HF_ENDPOINT=endpoint)
    assert f"transformers cannot be imported: HF_ENDPOINT '{endpoint}' must be" in line


@pytest.mark.parametrize("content", [None, b"no certificate"])
def test_a_file_of_certificates_that_cannot_be_read_is_named(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    file = tmp_path / "certificates.pem"
    if content is not None:
        file.write_bytes(content)
    huggingface_hub.close_session()
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    line = error_line("owner/name")
    wrong = "is not a file" if content is None else "holds no certificates"
    assert "SSL_CERT_FILE names" in line
    assert wrong in line
    assert not hub.asked


@pytest.mark.parametrize(
    "location", ["http://[bad", "http://host:99999/", "file:///etc/passwd", "ftp://x/y"]
)
def test_a_redirect_to_no_web_server_is_named(hub: LoopbackHub, location: str) -> None:
    hub.fault = status(307, {"Location": location})
    line = error_line("owner/name")
    assert f"redirects to '{location}', an address of no web server" in line
    assert "PROXY" not in line


def test_a_hub_that_is_not_there_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with loopback_hub.hub_of_this_process(f"http://{address}", tmp_path):
        assert f"{address} refuses the connection" in error_line("owner/name")


def test_a_proxy_is_named_without_its_password(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("HTTP_PROXY", f"http://user:secret@{proxy}")
    line = error_line("owner/name")
    assert f"through the proxy {proxy}" in line
    assert "HTTP_PROXY" in line
    assert "secret" not in line
    assert not hub.asked


def test_a_certificate_that_is_not_trusted_is_named(tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("key.pem", "certificate.pem")]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-subj", "/CN=localhost", "-keyout", files[0], "-out", files[1]]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    with loopback_hub.loopback_hub(certificate=(files[1], files[0])) as hub:
        address = hub.address.replace("http:", "https:")
        with loopback_hub.hub_of_this_process(address, tmp_path):
            line = error_line("owner/name")
    assert "is not trusted" in line
    assert "SSL_CERT_FILE" in line


@pytest.mark.parametrize("token", ["hf_é", "hf_a b", "hf_\x01"])
def test_a_token_that_cannot_be_sent_is_named_but_not_shown(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    line = error_line("owner/name")
    assert "your token for the hub is unusable" in line
    assert token not in line
    assert not hub.asked


@pytest.mark.parametrize(
    "make", [lambda file: file.mkdir(), lambda file: file.write_bytes(b"\xff\xfe\xfd")]
)
def test_a_token_file_that_cannot_be_read_is_named(
    hub: LoopbackHub, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "token")
    line = error_line("owner/name")
    assert str(tmp_path / "token") in line
    assert "cannot be read" in line
    assert not hub.asked


@pytest.mark.parametrize("redirects", ["same host", "other host"])
def test_the_token_goes_to_the_hub_alone(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, redirects: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.add("owner/name", {"config.json": small_models.llama().to_dict()})
    hub.redirects = redirects
    assert llmsim.trace("owner/name", context=4).trace.model.origin == "hub"
    assert {request.authorization for request in hub.asked} == {"Bearer hf_secret"}
    assert {request.authorization for request in hub.asked_elsewhere} <= {None}
    assert len(hub.asked) + len(hub.asked_elsewhere) == 2


def test_every_front_door_says_the_same_line(
    hub: LoopbackHub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fault = status(503)
    line = error_line("owner/name")
    assert main(["owner/name", "--context", "4"]) == 2
    assert capsys.readouterr().err == f"llmsim: {line}\n"
    shell = InteractiveShell.instance(config=NO_HISTORY)
    shell.run_line_magic("load_ext", "llmsim_magic")
    with pytest.raises(UsageError) as error:
        shell.run_line_magic("llmsim", "owner/name --context 4")
    assert str(error.value) == line
    panel = llmsim.panel("owner/name", context=4)
    thread = panel.refresh()
    if thread is not None:
        thread.join()
    assert wait_until(lambda: line in str(panel.status.error), 10)
