"""Properties of predicted times that hold for any calibration."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Any

import pytest

import llmsim_magic as llmsim
from llmsim_magic.analyses.cost.operator_costs import recorded_costs
from llmsim_magic.analyses.time.kernel_sizes import StoredDtypes, kernel_shapes
from llmsim_magic.analyses.time.latency import latency
from llmsim_magic.analyses.time.pass_time import PassTime
from llmsim_magic.analyses.time.perfetto import chrome_trace
from llmsim_magic.analyses.time.roofline import (
    estimate,
    nearest_devices,
    roofline_seconds,
)
from llmsim_magic.analyses.time.roofline_points import points, roofs
from llmsim_magic.analyses.time.roofline_terms import roofline_terms
from llmsim_magic.catalog import accelerators
from llmsim_magic.catalog.calibration import calibration
from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.calibration import Calibration
from llmsim_magic.records.hardware.kernel_shapes import (
    Attention,
    Collective,
    KernelShape,
    Matmul,
    Stream,
)
from llmsim_magic.records.trace.trace import Trace
from tests.helpers.small_models import CONFIGS, CONTEXT

H100 = accelerators.find("H100-SXM5-80GB")
SIZES: list[KernelShape] = [
    Matmul(m=1, n=4096, k=4096),
    Matmul(m=4096, n=4096, k=4096, dtype="fp8"),
    Attention(batch=8, heads=32, kv_heads=8, head_dim=128, queries=1, keys=4096),
    Attention(batch=1, heads=32, kv_heads=8, head_dim=128, queries=2048, keys=2048),
    Stream("normalisation", 2**24, 4096),
    Collective("all_reduce", 2**24, 8),
]
every_size = pytest.mark.parametrize("size", SIZES, ids=lambda size: size.kind)


@cache
def traced(name: str = "qwen3", phase: str = "decode") -> Trace:
    return llmsim.trace(CONFIGS[name](), phase=phase, batch=2, context=CONTEXT).trace


@cache
def timed(regime: Any = "graph") -> PassTime:
    return latency(traced(), H100, regime=regime)


def test_causal_attention_sees_no_later_key() -> None:
    """Query i of n sees keys 1 to i; of the last q of k queries the first sees k - q + 1."""
    assert (
        Attention(batch=1, heads=1, kv_heads=1, head_dim=1, queries=4, keys=4).pairs
        == 1 + 2 + 3 + 4
    )
    assert Attention(batch=1, heads=1, kv_heads=1, head_dim=1, queries=2, keys=5).pairs == 4 + 5
    assert (
        Attention(batch=1, heads=1, kv_heads=1, head_dim=1, queries=4, keys=4, causal=False).pairs
        == 16
    )


def test_grouped_products_read_every_group_s_weights() -> None:
    one, four = Matmul(m=2, n=8, k=16), Matmul(m=2, n=8, k=16, groups=4)
    assert four.flops == 4 * one.flops
    assert four.bytes == 4 * one.bytes
    assert one.bytes == 2 * (2 * 16 + 16 * 8 + 2 * 8)


@every_size
def test_a_prediction_lies_in_its_band_and_says_what_binds(size: KernelShape) -> None:
    found = estimate(size, H100, calibration())
    assert 0 < found.low < found.seconds < found.high
    assert found.binds in ("compute", "memory", "launch", "interconnect")


def test_what_binds_follows_from_the_work() -> None:
    binds = [
        estimate(size, H100, calibration()).binds for size in (*SIZES, Matmul(m=1, n=16, k=16))
    ]
    assert binds[0] == "memory"
    assert binds[1] == "compute"
    assert binds[5] == "interconnect"
    assert binds[6] == "launch"


@every_size
def test_no_device_outdoes_its_datasheet(size: KernelShape) -> None:
    """A margin for clocks that boost: memory and tensor cores do no more than is printed."""
    for name, fitted in calibration().fits[size.kind].items():
        device = accelerators.find(name)
        if fitted.near.high / fitted.near.low > 2:
            continue  # too few samples to hold it to anything
        terms = roofline_terms(size, device, 0.0, 0.0, cold=True)
        best = max(terms.compute_s, terms.fresh_s)
        assert estimate(size, device, calibration(), cold=True).seconds > 0.9 * best


@pytest.mark.parametrize("field", ["compute_s", "fresh_s", "resident_s", "items"])
def test_more_work_never_takes_less_time(field: str) -> None:
    for size in SIZES:
        constants = calibration().fits[size.kind][H100.name].constants
        terms = roofline_terms(size, H100, constants.tile, constants.cached)
        more = replace(terms, **{field: getattr(terms, field) * 2 + 1e-6})
        assert roofline_seconds(constants, more) >= roofline_seconds(constants, terms)


def test_kernels_started_by_the_host_take_longer_than_in_a_graph() -> None:
    a100 = accelerators.find("A100-SXM4-80GB")
    product = Matmul(m=8, n=4096, k=4096)
    graph, eager = (estimate(product, a100, calibration(), regime=r) for r in ("graph", "eager"))
    assert eager.seconds > graph.seconds


def without(device: str) -> Calibration:
    """The calibration as if a device had never been measured."""
    known = calibration()
    return replace(
        known,
        fits={
            kind: {name: fit for name, fit in fits.items() if name != device}
            for kind, fits in known.fits.items()
        },
    )


@every_size
def test_a_device_never_measured_has_a_wider_band(size: KernelShape) -> None:
    seen = estimate(size, H100, calibration())
    unseen = estimate(size, H100, without(H100.name))
    assert unseen.high / unseen.low > seen.high / seen.low


def test_relatives_are_told_by_the_catalogue_s_fields_not_by_names() -> None:
    stranger = replace(H100, name="Unheard-of 9000")
    measured = list(calibration().fits["matmul 16-bit"])
    assert nearest_devices(stranger, measured) == ["H100-SXM5-80GB", "H200-SXM-141GB"]
    assert set(nearest_devices(accelerators.find("L4"), measured)) == {"L40S"}
    amd = nearest_devices(accelerators.find("MI300X"), measured)
    assert set(amd) == set(measured)  # another vendor's GPUs are all as near


def test_a_kind_that_nobody_measured_is_taken_as_its_family_with_a_wide_band() -> None:
    found = estimate(Matmul(m=64, n=4096, k=4096, dtype="fp32"), H100, calibration())
    assert found.seconds > Matmul(m=64, n=4096, k=4096, dtype="fp32").flops / H100.peak("fp32")
    assert found.high / found.low > 1.3


@pytest.mark.parametrize(
    ("size", "device", "says"),
    [
        (Matmul(m=1, n=8, k=8, dtype="fp8"), "A100-SXM4-80GB", "fp8"),
        (Stream("elementwise", 8.0), "RTX 3090", "bandwidth_bytes_per_s"),
        (Collective("all_reduce", 8.0, 2), "RTX 3090", "interconnect_bytes_per_s"),
    ],
)
def test_a_figure_that_is_not_known_is_one_line(size: KernelShape, device: str, says: str) -> None:
    known: Accelerator = accelerators.find(device)
    if "bytes_per_s" in says:
        known = replace(known, **{says: None})
    with pytest.raises(LlmsimError, match=says) as caught:
        estimate(size, known, calibration())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["qwen3", "llama", "gpt2", "bert", "vit", "opt"])
@pytest.mark.parametrize("regime", ["graph", "eager"])
def test_sized_kernels_do_the_work_that_torch_counts(name: str, regime: Any) -> None:
    """Beside the half of causal attention that a kernel may skip."""
    trace = traced(name, "prefill")
    for cost, each in zip(recorded_costs(trace), kernel_shapes(trace, H100, regime), strict=True):
        skipped = cost.causal_skippable_flops
        assert sum(size.flops for size in each) == (cost.flops or 0) - skipped


@pytest.mark.parametrize("regime", ["graph", "eager"])
def test_a_pass_is_the_sum_of_its_operators(regime: Any) -> None:
    found = timed(regime)
    assert len(found.operators) == len(traced().steps)
    assert found.seconds == pytest.approx(sum(o.seconds for o in found.operators))
    assert found.of(range(len(found.operators))).seconds == pytest.approx(found.seconds)
    assert found.low < found.seconds < found.high
    assert sum(found.bound.values()) == pytest.approx(1)
    assert all(0 <= o.of_bandwidth <= 1 and o.low <= o.seconds <= o.high for o in found.operators)


def test_a_small_model_started_by_the_host_waits_for_it() -> None:
    assert timed("eager").seconds > 2 * timed("graph").seconds
    assert next(iter(timed("eager").bound)) == "launch"


def test_layers_that_read_the_same_tensor_are_one_product() -> None:
    """Queries, keys and values: three launches would take longer than what they share."""
    trace, found = traced(), timed()
    paths = [f"model.layers.0.self_attn.{name}_proj" for name in "qkv"]
    together = found.of([trace.paths.index(path) for path in paths]).seconds
    alone = estimate(Matmul(m=2, n=128, k=64), H100, calibration(), cold=True).seconds
    assert together < 1.5 * alone


def test_weights_stored_in_fewer_bits_are_read_sooner() -> None:
    wide = llmsim.trace("Qwen/Qwen3-0.6B", phase="decode").trace
    times = [
        latency(wide, H100, stored=stored).seconds
        for stored in (
            None,
            StoredDtypes(weights="int8"),
            StoredDtypes(weights="int4", group=128),
            StoredDtypes(weights="int4"),
        )
    ]
    assert times == sorted(times, reverse=True)


def test_products_in_a_dtype_that_the_device_lacks_are_one_line() -> None:
    with pytest.raises(LlmsimError, match="fp8"):
        latency(
            traced(),
            accelerators.find("A100"),
            stored=StoredDtypes(weights="fp8", activations="fp8"),
        )
    with pytest.raises(LlmsimError, match="fp7"):
        StoredDtypes(weights="fp7")


@pytest.mark.parametrize("name", list(CONFIGS))
def test_every_architecture_is_timed(name: str) -> None:
    for regime in ("graph", "eager"):
        found = latency(traced(name, "prefill"), H100, regime=regime)  # type: ignore[arg-type]
        assert math.isfinite(found.seconds)
        assert found.seconds > 0


@pytest.mark.parametrize("name", list(accelerators.entries()))
def test_every_accelerator_times_a_pass_or_says_in_a_line_why_not(name: str) -> None:
    device = accelerators.find(name)
    if "fp32" in device.peak_flops and device.bandwidth_bytes_per_s:  # as the small model computes
        found = latency(traced(), device)
        assert 0 < found.low < found.seconds < found.high
        return
    with pytest.raises(LlmsimError, match=r"^[^\n]*$"):
        latency(traced(), device)


def test_the_timeline_is_the_pass_without_gaps() -> None:
    drawn = chrome_trace(traced(), timed())
    json.dumps(drawn)
    spans = [event for event in drawn["traceEvents"] if event["ph"] == "X"]
    tracks = {event["tid"] for event in spans}
    assert len(tracks) == 2
    operators = [event for event in spans if event["tid"] == min(tracks)]
    for one, following in pairwise(operators):
        assert one["ts"] + one["dur"] == pytest.approx(following["ts"])
    last = operators[-1]
    assert last["ts"] + last["dur"] == pytest.approx(timed().seconds * 1e6)
    stacked = [event["name"] for event in spans if event["tid"] == max(tracks)]
    assert stacked == ["model.layers.0", "model.layers.1"]


def test_points_lie_under_the_roof() -> None:
    roof = {roof.dtype: roof for roof in roofs(H100)}["bf16"]
    trace = llmsim.trace("Qwen/Qwen3-0.6B", phase="prefill", context=2048).trace
    found = points(latency(trace, H100))
    assert found
    for point in found:
        allowed = min(roof.peak_flops, point.intensity * roof.bandwidth_bytes_per_s)
        assert point.low <= point.flops_per_s <= point.high
        assert point.low < 1.1 * allowed


def shipped(check: Callable[[str, str, Any], bool]) -> list[tuple[str, str]]:
    fits = calibration().fits
    return [(k, d) for k in fits for d in fits[k] if not check(k, d, fits[k][d])]


def test_the_calibration_is_small_and_says_where_each_fit_is_from() -> None:
    data = resources.files("llmsim_magic.catalog").joinpath("calibration.json").read_bytes()
    assert len(data) < 500_000
    assert shipped(lambda kind, device, fit: device in accelerators.entries()) == []
    assert shipped(lambda kind, device, fit: bool(fit.sources) and fit.samples > 0) == []
    assert shipped(lambda kind, device, fit: fit.near.low <= 1 <= fit.near.high) == []
    assert calibration().unseen.keys() == calibration().fits.keys()
    assert calibration().passes.keys() == {"prefill", "decode"}
