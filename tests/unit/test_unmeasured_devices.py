"""A device that was never measured: what scales with units and clock, peak, bandwidth and links."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from llmsim_magic.analyses.time.roofline import estimate
from llmsim_magic.analyses.time.roofline_terms import roofline_terms
from llmsim_magic.catalog import accelerators
from llmsim_magic.catalog.calibration import calibration
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.calibration import Band, Calibration, Constants, Fitted, Surface
from llmsim_magic.records.hardware.kernel_shapes import (
    Attention,
    Collective,
    KernelShape,
    Matmul,
    Stream,
)

H100 = accelerators.find("H100")
H20 = accelerators.find("H20")
LONG_PREFILL = Attention(batch=2, heads=16, kv_heads=16, head_dim=128, queries=8192, keys=8192)
NORM = Stream("normalisation", 2.0**28, 2**14)


def decode(kv_heads: int = 8, kv_dtype: str = "bf16") -> Attention:
    return Attention(
        batch=64,
        heads=64,
        kv_heads=kv_heads,
        head_dim=128,
        queries=1,
        keys=16384,
        causal=False,
        kv_dtype=kv_dtype,
    )


def variant(**figures: object) -> Accelerator:
    """A Hopper that nobody measured."""
    return replace(H100, name="Unheard-of 9000", **figures)  # type: ignore[arg-type]


def seconds(size: KernelShape, device: Accelerator) -> float:
    return estimate(size, device, calibration()).seconds


@pytest.mark.parametrize(
    ("device", "clock"),
    [
        ("V100", 1.53e9),
        ("A100", 1.41e9),
        ("A40", 1.74e9),
        ("H100", 1.98e9),
        ("RTX 4090", 2.52e9),
        ("MI210", 1.7e9),
        ("MI300X", 2.1e9),
    ],
)
def test_clocks_are_the_boost_clocks_of_the_datasheets(device: str, clock: float) -> None:
    known = accelerators.find(device)
    assert known.compute_units is not None
    assert known.unit_cycles_per_s == pytest.approx(known.compute_units * clock, rel=0.02)


def test_a_cpu_has_no_cycles_of_a_gpu() -> None:
    assert accelerators.find("EPYC 9654").unit_cycles_per_s is None


@pytest.mark.parametrize("kv_heads", [4, 8])
def test_decode_attention_reads_the_cache_at_near_full_bandwidth(kv_heads: int) -> None:
    """Also with a sixth of an H100's tensor cores, for it multiplies few rows."""
    size = decode(kv_heads)
    assert H20.bandwidth_bytes_per_s is not None
    at_full = size.bytes / H20.bandwidth_bytes_per_s
    assert 1.0 < seconds(size, H20) / at_full < 1.35


def test_fewer_tensor_cores_slow_products_more_than_attention_more_than_decode() -> None:
    fewer = variant(peak_flops=dict(H100.peak_flops) | {"bf16": H100.peak("bf16") / 4})
    same = variant()
    product = Matmul(m=8192, n=8192, k=8192)
    slower = [
        seconds(size, fewer) / seconds(size, same) for size in (product, LONG_PREFILL, decode())
    ]
    assert slower[0] == pytest.approx(4, rel=0.1)
    assert 2.5 < slower[1] < 3.5  # the exponentials take as long as before
    assert slower[2] < 1.05


def test_a_long_prefill_gets_more_of_fewer_tensor_cores() -> None:
    """FlashAttention 3, head size 128, 16,384 tokens: 660 of 990 TFLOP/s, 130 of 148.

    https://arxiv.org/abs/2407.08608, https://github.com/Dao-AILab/flash-attention/issues/1310
    """
    size = Attention(
        batch=1, heads=16, kv_heads=16, head_dim=128, queries=16384, keys=16384, causal=False
    )
    assert size.flops / seconds(size, H20) == pytest.approx(130e12, rel=0.1)
    assert size.flops / seconds(size, variant()) == pytest.approx(650e12, rel=0.1)


def test_kernels_that_wait_on_their_own_instructions_go_with_the_units() -> None:
    """Half the units and half the vector peak, so that the clock stays."""
    assert H100.compute_units is not None
    peaks = dict(H100.peak_flops) | {"fp32": H100.peak("fp32") / 2}
    half = variant(compute_units=H100.compute_units // 2, peak_flops=peaks)
    quick = variant(bandwidth_bytes_per_s=2 * (H100.bandwidth_bytes_per_s or 0))
    assert seconds(NORM, half) > 1.4 * seconds(NORM, variant())
    assert seconds(NORM, quick) > 0.75 * seconds(NORM, variant())
    bound_by_memory = Stream("elementwise", 2.0**30, 2**14)
    assert seconds(bound_by_memory, half) < 1.4 * seconds(bound_by_memory, variant())
    assert seconds(bound_by_memory, quick) < 0.75 * seconds(bound_by_memory, variant())


@pytest.mark.parametrize(
    "size", [decode(), LONG_PREFILL, NORM, Matmul(m=64, n=4096, k=4096)], ids=lambda size: size.kind
)
def test_a_band_is_no_narrower_than_those_of_the_relatives(size: KernelShape) -> None:
    found = estimate(size, H20, calibration())
    relative = estimate(size, H100, calibration())
    assert found.high / found.low > relative.high / relative.low


def test_nvlink_is_predicted_from_nvlink() -> None:
    """Over PCIe a collective depends on the machine, so that it tells nothing of NVLink."""
    known = calibration()
    kind = "collective all_reduce nccl"
    over_pcie = {"L40S", "RTX PRO 6000 Blackwell"}
    without = {name: fit for name, fit in known.fits[kind].items() if name not in over_pcie}
    size = Collective("all_reduce", 2.0**24, 4)
    v100 = accelerators.find("V100")
    expected = estimate(size, v100, replace(known, fits={**known.fits, kind: without}))
    assert estimate(size, v100, known).seconds == expected.seconds


def test_a_reduction_among_many_ranks_goes_up_and_down_a_tree() -> None:
    hops = [
        roofline_terms(Collective("all_reduce", 1024.0, ranks), H100, 0.0, 0.0).hops
        for ranks in (2, 8, 16, 64)
    ]
    assert hops == [1, 7, 9, 13]


def fitted(regimes_s: Mapping[str, float]) -> Fitted:
    constants = Constants(
        launch_s=2e-6,
        compute=1.3,
        memory=1.2,
        unit=4.0,
        sharpness=2.0,
        item_s=1e-6,
        hot=1.0,
        cached=1.0,
        tile=0.0,
        regimes_s=dict(regimes_s),
    )
    unit = Band(1.0, 1.0)
    surface = Surface((), (), ())
    return Fitted(
        constants=constants, surface=surface, near=unit, far=unit, samples=1, sources=("s",)
    )


def test_what_a_host_adds_to_a_kernel_is_the_host_s_and_not_the_kernel_s() -> None:
    a100, h200 = "A100-SXM4-80GB", "H200-SXM-141GB"
    norm, gelu = "stream normalisation", "stream elementwise"
    fits = {
        norm: {a100: fitted({"eager": 40e-6})},
        gelu: {a100: fitted({"eager": 20e-6}), h200: fitted({"eager": 9e-6})},
    }
    known = Calibration(fits, dict.fromkeys(fits, Band(0.5, 2.0)))
    small = Stream("normalisation", 64.0)

    def eager(device: str) -> float:
        return estimate(small, accelerators.find(device), known, regime="eager").seconds

    assert eager("A100") == pytest.approx(2e-6 + 40e-6, rel=0.01)  # as measured
    assert eager("H200") == pytest.approx(2e-6 + 9e-6, rel=0.01)  # by another class there
    assert eager("MI210") == pytest.approx(2e-6 + 23e-6, rel=0.01)  # by all hosts
