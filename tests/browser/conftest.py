"""Fixtures for a browser and a JupyterLab server on loopback."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="session")
def browser() -> Iterator["playwright.Browser"]:
    """Chromium as the system has it, or as playwright installed it."""
    with playwright.sync_playwright() as running:
        found = running.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("chromium-browser"),
            args=["--no-sandbox"],
        )
        yield found
        found.close()


@pytest.fixture
def page(browser: "playwright.Browser") -> Iterator["playwright.Page"]:
    """A page that fails the test for an error in its scripts."""
    errors: list[str] = []
    with browser.new_context(
        viewport={"width": 1300, "height": 900}, accept_downloads=True
    ) as context:
        made = context.new_page()
        made.on("pageerror", lambda error: errors.append(str(error)))
        yield made
        assert not [error for error in errors if "llmsim" in error]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a JupyterLab without a password, and the folder that it shows."""
    folder = tmp_path_factory.mktemp("lab")
    state = folder.parent / f"{folder.name}-state"
    homes = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    environment = os.environ | {home: str(state / home.lower()) for home in homes}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--port=0",
        "--IdentityProvider.token=", "--ServerApp.allow_root=True",
        "--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={folder}",
    ]  # fmt: skip
    log = state.with_suffix(".log")
    with (
        log.open("w") as out,
        subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment) as server,
    ):
        try:
            yield _address(log), folder
        finally:
            server.kill()


def _address(log: Path) -> str:
    for _ in range(300):
        found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        if found:
            return found[0]
        time.sleep(0.2)
    raise TimeoutError(log.read_text())
