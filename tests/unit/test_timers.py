"""How work on a device is timed; what a CPU lacks is faked."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmsim_magic.capture.measure import timers
from llmsim_magic.capture.measure.timers import (
    gap_in,
    in_graph,
    kernel_gap,
    kernel_timings,
    seconds_of,
    timings,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_run_is_timed_between_least_and_most_times() -> None:
    calls: list[None] = []
    found = timings(lambda: calls.append(None), CPU, warmups=2, least=3, most=6)
    assert len(found.seconds) == 6
    assert len(calls) == 8
    found = timings(lambda: time.sleep(0.002), CPU, warmups=0, least=3, budget_s=0.0)
    assert len(found.seconds) == 3
    assert 0.002 <= found.least <= found.median <= found.most
    assert seconds_of(lambda: time.sleep(0.002), CPU) >= 0.002


def test_a_cpu_has_no_graphs() -> None:
    run = list
    assert in_graph(run, CPU) is run


def test_a_kernel_uses_its_buffers_in_turn_and_equally_often() -> None:
    order: list[int] = []

    def use(buffer: int) -> None:
        order.append(buffer)
        time.sleep(2e-5)

    found = kernel_timings([lambda n=n: use(n) for n in range(3)], CPU, pass_s=1e-3, passes=4)
    assert len(found.seconds) == 4
    assert 2e-5 <= found.least < 1e-3
    in_turn = order[4:]  # the first four estimate how often to repeat
    assert in_turn == [n % 3 for n in range(len(in_turn))]
    assert len(in_turn) % (6 * 3) == 0


def test_the_gap_is_what_a_period_has_beyond_a_kernel() -> None:
    def event(kind: str, us: float) -> Any:
        span = SimpleNamespace(elapsed_us=lambda: us)
        return SimpleNamespace(device_type=SimpleNamespace(name=kind), time_range=span)

    kernels = [event("CUDA", us) for us in (1.0, 2.0, 2.0) for _ in range(20)]
    launch = [event("CPU", 50.0)] * 100
    assert gap_in(3e-6, [*kernels, *launch]) == pytest.approx(1e-6)
    assert gap_in(1e-6, kernels) == 0.0
    assert gap_in(3e-6, launch) == 0.0, "without a profile of the device"


def test_a_cpu_has_no_gap() -> None:
    assert kernel_gap(CPU) == 0.0


class _FakeCuda:
    """The parts of `torch.cuda` that timers use; a graph notes what it replays."""

    def __init__(self) -> None:
        self.stream = "default"
        self.is_capturing = False
        self.replays = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = time.perf_counter()

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, end: "Event") -> float:
                return (end.at - self.at) * 1e3

        class Graph:
            def replay(self) -> None:
                fake.replays += 1

        @contextmanager
        def graph(graph: Graph) -> Iterator[None]:
            fake.stream, fake.is_capturing = "capture", True
            try:
                yield
            finally:
                fake.is_capturing = False
            fake.stream = "default"  # not if the capture fails, as in torch

        @contextmanager
        def stream(stream: object) -> Iterator[None]:
            yield

        waiting = SimpleNamespace(wait_stream=lambda other: None)
        names: dict[str, Any] = {
            "Event": Event,
            "CUDAGraph": Graph,
            "graph": graph,
            "stream": stream,
            "Stream": lambda device: waiting,
            "synchronize": lambda device: None,
            "set_stream": lambda stream: setattr(fake, "stream", stream.name),
            "current_stream": lambda device: SimpleNamespace(
                name=fake.stream, wait_stream=lambda other: None
            ),
        }
        for name, value in names.items():
            monkeypatch.setattr(torch.cuda, name, value)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> _FakeCuda:
    fake = _FakeCuda()
    fake.install(monkeypatch)
    return fake


def test_events_give_milliseconds(cuda: _FakeCuda) -> None:
    assert 0.002 <= seconds_of(lambda: time.sleep(0.002), CUDA) < 0.1


def test_a_run_is_captured_once_after_two_warm_runs(cuda: _FakeCuda) -> None:
    captured: list[bool] = []
    replay = in_graph(lambda: captured.append(cuda.is_capturing), CUDA)
    assert captured == [False, False, True]
    replay()
    assert (cuda.replays, len(captured)) == (1, 3)
    assert cuda.stream == "default"


def test_a_capture_that_fails_leaves_the_stream_as_it_was(cuda: _FakeCuda) -> None:
    def wait_for_the_device() -> None:
        if cuda.is_capturing:
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        in_graph(wait_for_the_device, CUDA)
    assert cuda.stream == "default"


def test_a_kernel_s_time_is_the_mean_over_a_replay(
    cuda: _FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timers, "seconds_of", lambda run, device: (run(), 1e-3)[1])
    launches: list[bool] = []
    found = kernel_timings([lambda: launches.append(cuda.is_capturing)], CUDA, passes=5)
    in_one_graph = launches.count(True)
    assert in_one_graph == 4  # a kernel of a millisecond fills a pass of two at least
    assert found.seconds == (1e-3 / in_one_graph,) * 5
    assert cuda.replays == 5 + 2
