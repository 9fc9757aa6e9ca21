"""Time work on a device: between CUDA events on a GPU, by the clock on a CPU."""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch

Run = Callable[[], object]
MOST_LAUNCHES = 200  # of a kernel in one graph
_CHAIN = 64


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of each of several runs of the same work."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def least(self) -> float:
        return min(self.seconds)

    @property
    def most(self) -> float:
        return max(self.seconds)


def seconds_of(run: Run, device: torch.device) -> float:
    """Seconds of one run: on a GPU those that its stream takes, with waits for the host."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def timings(
    run: Run,
    device: torch.device,
    *,
    warmups: int = 3,
    least: int = 5,
    most: int = 40,
    budget_s: float = 1.5,
) -> Timings:
    """Time a run at least `least` and at most `most` times, in about `budget_s` seconds.

    Args:
        run: The work; it may start kernels without waiting for them.
        device: The device that it runs on.
        warmups: Number of runs before the first that counts.
        least: Number of runs that count, whatever they take.
        most: Largest number of runs that count.
        budget_s: Seconds after which no further run starts.
    """
    for _ in range(warmups):
        run()
    synchronize(device)
    found: list[float] = []
    deadline = time.perf_counter() + budget_s
    while len(found) < least or (len(found) < most and time.perf_counter() < deadline):
        found.append(seconds_of(run, device))
    return Timings(tuple(found))


def in_graph(run: Run, device: torch.device) -> Run:
    """Capture a run in a CUDA graph, which each call of the result replays.

    On a CPU, which has no graphs, the result is `run`.

    Raises:
        RuntimeError: The run cannot be captured, such as one that waits for the device.
    """
    if device.type != "cuda":
        return run
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream(device).wait_stream(stream)
    synchronize(device)
    graph = torch.cuda.CUDAGraph()
    before = torch.cuda.current_stream(device)
    try:
        with torch.cuda.graph(graph):
            run()
    finally:  # a capture that fails leaves its own stream behind
        torch.cuda.set_stream(before)
    return graph.replay


def kernel_timings(
    runs: Sequence[Run], device: torch.device, *, pass_s: float = 2e-3, passes: int = 7
) -> Timings:
    """Seconds of one kernel, as the mean over a CUDA graph that starts it many times.

    Args:
        runs: The same kernel on different buffers, which are used in turn.
        device: The device that it runs on.
        pass_s: About how long one replay of the graph takes.
        passes: Number of replays that count.

    Returns:
        One mean per replay; each includes the gap between two kernels.
    """
    once = timings(runs[0], device, warmups=1, least=3, most=3).least
    turns = math.ceil(min(max(pass_s / once, 4), MOST_LAUNCHES) / len(runs))
    number = turns * len(runs)

    def repeated() -> None:
        for run in islice(cycle(runs), number):
            run()

    replay = in_graph(repeated, device)
    found = timings(replay, device, warmups=2, least=passes, most=passes)
    return Timings(tuple(each / number for each in found.seconds))


def kernel_gap(device: torch.device) -> float:
    """Seconds from the end of a kernel of a CUDA graph to the start of the next.

    The period of a chain of kernels, less the time of one as the driver's profiler reports it; 0 on
    a CPU, and where the driver does not let the user profile.
    """
    if device.type != "cuda":
        return 0.0
    x = torch.ones(4, 64, device=device)

    def chain() -> None:
        for _ in range(_CHAIN):
            x.add_(1)

    replay = in_graph(chain, device)
    period = timings(replay, device, warmups=2, least=9, most=9).median / _CHAIN
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        replay()
        synchronize(device)
    return gap_in(period, profile.events() or ())


def gap_in(period_s: float, events: Iterable[Any]) -> float:
    """What a period has beyond the median time of a kernel in a profile; 0 without kernels."""
    kernels = [
        event.time_range.elapsed_us() for event in events if event.device_type.name == "CUDA"
    ]
    if len(kernels) < _CHAIN // 2:
        return 0.0
    return max(period_s - statistics.median(kernels) / 1e6, 0.0)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
