"""What the times of a pass share between devices, launches and stored dtypes does not mix them."""

import math
from dataclasses import replace
from functools import cache

import pytest

import llmsim_magic as llmsim
from llmsim_magic.analyses.kernels.memoize import memoize_by_options
from llmsim_magic.analyses.time.kernel_sizes import StoredDtypes
from llmsim_magic.analyses.time.latency import latency
from llmsim_magic.analyses.time.pass_time import PassTime
from llmsim_magic.analyses.time.roofline import residual
from llmsim_magic.analyses.torch_time.transformers_time import transformers_time
from llmsim_magic.catalog import accelerators
from llmsim_magic.catalog.calibration import calibration
from llmsim_magic.records.hardware.calibration import Surface
from llmsim_magic.records.trace.trace import Trace
from tests.helpers.small_models import CONFIGS

DEVICES = ("T4", "H100-SXM5-80GB", "A100-SXM4-80GB", "MI300X", "B200-SXM")
STORED = (
    None,
    StoredDtypes(weights="int4", group=128),
    StoredDtypes(weights="int8", packed={"model.layers.0.mlp.up_proj.weight": 8.5}),
    StoredDtypes(weights="int8", packed={"model.layers.0.mlp.up_proj.weight": 9.0}),
)


@cache
def traced(name: str, phase: str) -> Trace:
    return llmsim.trace(CONFIGS[name](), phase=phase, context=24, dtype="float16").trace


def fresh(trace: Trace) -> Trace:
    """The same pass without what is memoized."""
    return replace(trace, recorded=replace(trace.recorded))


def times(trace: Trace, device: str, stored: StoredDtypes | None) -> list[PassTime]:
    accelerator = accelerators.find(device)
    return [
        latency(trace, accelerator, stored=stored),
        transformers_time(trace, accelerator, "graph", stored=stored),
        transformers_time(trace, accelerator, "eager", stored=stored),
    ]


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_a_device_is_priced_alike_alone_and_after_others(name: str, phase: str) -> None:
    shared = fresh(traced(name, phase))
    after = {
        (device, place): times(shared, device, stored)
        for device in DEVICES
        for place, stored in enumerate(STORED)
    }
    for (device, place), found in after.items():
        assert found == times(fresh(shared), device, STORED[place])


def test_results_are_kept_by_option_and_not_without_end() -> None:
    calls = []

    @memoize_by_options
    def count(trace: Trace, first: int, second: str = "") -> int:
        calls.append((first, second))
        return first

    trace = fresh(traced("gpt2", "prefill"))
    assert [count(trace, n, second=text) for text in "aab" for n in (1, 2)] == [1, 2] * 3
    assert calls == [(1, "a"), (2, "a"), (1, "b"), (2, "b")]
    for number in range(1000):
        count(trace, number)
    assert len(vars(trace)[next(key for key in vars(trace) if "count" in key)]) < 100


def test_the_residual_is_the_sum_of_its_covariances() -> None:
    surface = next(
        fitted.surface
        for fits in calibration().fits.values()
        for fitted in fits.values()
        if len(fitted.surface.places) > 10
    )
    place = tuple(x + 0.3 for x in surface.places[3])
    scaled = [
        [(a - b) / c for a, b, c in zip(place, known, surface.scales, strict=True)]
        for known in surface.places
    ]
    distances = [math.sqrt(3 * sum(each**2 for each in row)) for row in scaled]
    near = [(1 + distance) * math.exp(-distance) for distance in distances]
    expected = math.fsum(a * b for a, b in zip(surface.weights, near, strict=True))
    assert residual(surface, place) == pytest.approx((expected, max(near)), rel=1e-12)
    assert residual(Surface((), (), ()), place) == (0.0, 0.0)
