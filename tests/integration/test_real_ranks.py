"""What we say of a rank, against two processes that hold the model as transformers spreads it."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.distributed import DistributedConfig

from llmsim_magic.records.trace.parallel import Parallel
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import Workload
from llmsim_magic.simulate.models.recipes import model_recipe
from llmsim_magic.simulate.models.workloads import trace_workload
from llmsim_magic.simulate.request import Build
from tests.helpers import small_models

pytest.importorskip("accelerate")
pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def really_held(folder: Path, **sizes: int) -> list[dict[str, Any]]:
    """What each of so many processes holds, and what came of a forward pass."""
    ranks = max(sizes.values())
    shared = {
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.rank_process", str(folder), json.dumps(sizes)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        said = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [_found(*each) for each in said]


def _found(out: str, err: str) -> dict[str, Any]:
    lines = [line for line in out.splitlines() if line.startswith("FOUND")]
    assert lines, err[-3000:]
    found: dict[str, Any] = json.loads(lines[0].removeprefix("FOUND"))
    return found


def our_rank(folder: Path, **sizes: int) -> Trace:
    build = Build(parallel=Parallel(**sizes), dtype="float32")
    return trace_workload(model_recipe(str(folder), build), Workload("prefill", 2, 7), replay=True)


def held(rank: Trace) -> dict[str, list[int]]:
    return {p.name: list(p.shape) for p in rank.parameters if not p.is_buffer and not p.tied_to}


def summed(rank: Trace) -> list[list[Any]]:
    """The sums of hidden states: those of the table's rows go through another door there."""
    found = [
        ["all_reduce", list(rank.tensors[kernel.inputs[0]].shape)]
        for kernel in rank.kernels
        if "allreduce" in kernel.name
    ]
    return found["model.embed_tokens" in rank.model.plan :]


@pytest.fixture
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    small_models.build(request.param).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("saved", ["llama", "qwen3", "mixtral", "gemma2"], indirect=True)
def test_a_rank_holds_and_sums_what_transformers_does(saved: Path) -> None:
    real, _ = really_held(saved, tp_size=2)
    rank = our_rank(saved, tp=2)
    assert held(rank) == real["held"]
    assert list(rank.unrolled.shapes(rank.unrolled.results)[0]) == real["logits"]
    assert [list(slot.shape) for slot in rank.cache[::2]] == real["keys"]
    assert summed(rank) == real["summed"]


@pytest.mark.parametrize("saved", ["mixtral"], indirect=True)
def test_experts_lie_where_transformers_puts_them(saved: Path) -> None:
    if "ep_size" not in {field.name for field in dataclasses.fields(DistributedConfig)}:
        pytest.skip("this transformers has no size for experts of its own")
    real, _ = really_held(saved, tp_size=2, ep_size=2)
    rank = our_rank(saved, tp=2, ep=2)
    assert held(rank) == real["held"]
    assert summed(rank) == real["summed"]


@pytest.mark.parametrize("saved", ["llama", "qwen3"], indirect=True)
def test_stages_hold_what_transformers_gives_them(saved: Path) -> None:
    """A head that is tied goes by the name of its table there."""
    for stage, real in enumerate(really_held(saved, pp_size=2)):
        ours = our_rank(saved, pp=2, stage=stage)
        assert sorted(held(ours).values()) == sorted(real["held"].values())
        assert [list(slot.shape) for slot in ours.cache[::2]] == real["keys"]
