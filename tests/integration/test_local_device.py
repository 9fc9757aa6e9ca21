"""The local machine is measured, fitted and predicted like any other device."""

import pytest

import llmsim_magic as llmsim
from llmsim_magic.analyses.time.latency import latency
from llmsim_magic.capture.measure import cpu as measuring
from llmsim_magic.records.hardware.kernel_shapes import Attention, Matmul
from llmsim_magic.simulate.hardware.local_device import _measured_cpu, local
from tests.helpers.small_models import CONFIGS


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small kernels, each timed twice: enough for all but the figures themselves."""
    products = [(m, n, k) for m in (1, 32) for n, k in ((256, 64), (64, 256), (256, 256))]
    attentions = [(1, 4, 2, 16, 1, keys) for keys in (8, 32, 64)]
    attentions += [(1, 4, 2, 16, tokens, tokens) for tokens in (8, 16, 32)]
    monkeypatch.setattr(measuring, "_MATMULS", tuple(products))
    monkeypatch.setattr(measuring, "_ATTENTIONS", tuple(attentions))
    monkeypatch.setattr(measuring, "POOL_BYTES", 2**20)
    monkeypatch.setattr(measuring, "_BUDGET_S", 0.0)


def test_kernels_that_are_timed_have_the_sizes_they_say(quickly: None) -> None:
    pools = {dtype: measuring._pool(dtype) for dtype in measuring.DTYPES}
    for job in (*measuring._matmuls(pools), *measuring._attentions()):
        result = job.run()
        if isinstance(job.size, Matmul):
            assert tuple(result.shape) == (job.size.m, job.size.n)
        elif isinstance(job.size, Attention):
            size = job.size
            assert tuple(result.shape) == (size.batch, size.heads, size.queries, size.head_dim)


@pytest.mark.slow
def test_this_machine_predicts_a_pass_with_a_band(quickly: None) -> None:
    _measured_cpu.cache_clear()
    try:
        accelerator, calibration = local("local-cpu")
    finally:
        _measured_cpu.cache_clear()
    assert accelerator.kind == "cpu"
    assert accelerator.bandwidth_bytes_per_s
    assert {"bf16", "fp32"} <= accelerator.peak_flops.keys()
    for phase in ("prefill", "decode"):
        trace = llmsim.trace(CONFIGS["qwen3"](), phase=phase, context=8).trace
        found = latency(trace, accelerator, calibration, regime="eager")
        assert found.seen
        assert 0 < found.low <= found.seconds <= found.high
