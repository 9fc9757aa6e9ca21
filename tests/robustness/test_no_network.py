"""The network is used only for the hub, and only for models not found locally."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from llmsim_magic.catalog import models
from tests.helpers import small_models
from tests.helpers.audit import Watched, watched

MODELS = list(models.entries())[::4]
QUICK = MODELS[:: len(MODELS) // 3]
IN_PYTHON = """
import llmsim_magic as llmsim
assert len(llmsim.size("gpt2", hardware=["H100", "L4"]).table)
assert len(llmsim.sweep("gpt2", batch=[1], context=[8]).totals)
report = llmsim.trace("bert-base-uncased", context=8, hardware="H100")
report.symbolic, report.explain("bert.embeddings"), report.page(), report.files()
"""
IN_A_SHELL = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for cell in ("%load_ext llmsim_magic", "%llmsim distilgpt2 --ops --deps --costs --hardware H100",
             "%llmsim gpt2 --memory --compare distilgpt2 --hardware L4", "%llmsim?"):
    shell.run_cell(cell).raise_error()
shell.Completer.complete("%llmsim Qwen")
"""
IN_A_PANEL = """
from llmsim_magic.notebook.panel.panel import panel
made = panel("gpt2", view="ops", context=8)
made.refresh().join()
assert made.report is not None, made.status.error
"""


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """One whose cache of the hub is empty."""
    with watched(HF_HOME=str(tmp_path_factory.mktemp("home"))) as running:
        yield running


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in MODELS],
)
def test_a_model_of_the_catalogue_asks_nobody(process: Watched, name: str) -> None:
    told = process.ask(None, name, "--summary", "--hardware", "H100")
    assert told.status == 0, told.said
    assert told.network == []


@pytest.mark.slow
@pytest.mark.parametrize("code", [IN_PYTHON, IN_A_SHELL, IN_A_PANEL])
def test_no_front_door_asks_anybody(process: Watched, code: str) -> None:
    told = process.run(code)
    assert told.network == []


def test_a_folder_or_a_mistake_asks_nobody(process: Watched, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(small_models.llama().to_dict()))
    assert process.ask(None, str(tmp_path), "--context", "4").network == []
    for words in (
        "./nowhere",
        "no model at all",
        "gpt2 --phase none",
        "gpt2 --hardware X1",
        "--help",
    ):
        assert process.ask(None, *words.split()).network == []


def test_a_name_that_is_unknown_asks_the_hub_once(process: Watched) -> None:
    told = process.ask(None, "some-owner/some-model")
    assert told.status == 2
    assert "the hub cannot be reached" in told.said
    (asked,) = told.network
    assert asked.startswith("socket.getaddrinfo('huggingface.co', 443")


@pytest.mark.slow
def test_where_the_hub_is_off_nobody_is_asked(tmp_path: Path) -> None:
    with watched(HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1") as process:
        told = process.ask(None, "some-owner/some-model")
    assert told.status == 2
    assert "the hub is off" in told.said
    assert told.network == []


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """The address of a hub with one model, and what it is asked for."""
    asked: list[str] = []
    config = small_models.llama().to_dict() | {
        "auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}
    }

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path}")
            content = json.dumps(config).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_HEAD = do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Not to the terminal."""

    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
def test_the_hub_is_asked_for_a_config_and_nothing_else(
    hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    address, asked = hub
    with watched(HF_HOME=str(tmp_path), HF_ENDPOINT=address) as process:
        told = process.ask(None, "some-owner/some-model", "--ops", "--memory", "--context", "4")
        assert told.status == 0, told.said
        assert asked == ["GET /some-owner/some-model/resolve/main/config.json"]
        again = process.ask(None, "gpt2", "--refresh", "--context", "4")
        assert asked[1:] == ["GET /gpt2/resolve/main/config.json"], again.said
    assert all(address.removeprefix("http://127.0.0.1:") in each for each in told.network)


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("2001:db8::1", 80), ("example.org", 80)])
def test_no_test_has_a_network(address: tuple[str, int]) -> None:
    with pytest.raises(ConnectionRefusedError, match="no test has a network"):
        socket.create_connection(address, timeout=1)
    with (
        pytest.raises(ConnectionRefusedError),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
    ):
        one.sendto(b"x", ("192.0.2.1", 80))


def test_a_test_has_this_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
