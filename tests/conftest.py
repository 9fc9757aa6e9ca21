"""What holds for every test: one thread for each worker, no network, and no record of before.

A fuzzer tries `LLMSIM_FUZZ` cases, the same ones each time; `benchmarks/fuzz.py` tries others.
"""

import os
import platform
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: it is the tests that run in parallel
os.environ["LLMSIM_CACHE"] = "off"  # a test of what is kept on disk names a folder of its own
settings.register_profile(
    "few",
    max_examples=int(os.environ.get("LLMSIM_FUZZ", "100")),
    derandomize=True,
    deadline=None,  # the judge has its own
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("few")


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    """Nothing that a test does, or a library on its way, reaches or asks for another machine."""
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(args[1], tuple):
        host = args[1][0]
    else:
        return
    if host and str(host) not in ("localhost", "127.0.0.1", "::1", "0.0.0.0", platform.node()):
        raise ConnectionRefusedError(f"no test has a network: {event} {host}")


sys.addaudithook(_refuse)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thin",
        type=int,
        default=1,
        metavar="N",
        help="of the cases of each parametrised test, run one of N",
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out cases of those tests that are run, after `-m` and `-k` have chosen them."""
    every = config.getoption("--thin")
    places: Counter[tuple[Any, str]] = Counter()
    kept, left = [], []
    for item in items:
        test = item.path, getattr(item, "originalname", item.name)
        (left if places[test] % every else kept).append(item)
        places[test] += 1
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = kept
