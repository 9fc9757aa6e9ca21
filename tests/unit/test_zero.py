"""The step of one of several ranks: its shards, collectives and what it allocates when."""

import json
import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import transformers

import llmsim_magic as llmsim
from llmsim_magic.analyses.allocations.step_allocations import step_allocations
from llmsim_magic.analyses.cost.operator_costs import totals
from llmsim_magic.analyses.cost.tokens_read import tokens_read
from llmsim_magic.analyses.data_parallel.zero import rank_of_step
from llmsim_magic.analyses.parallel.collectives import Collective, collectives
from llmsim_magic.analyses.torch_time.exchange_time import exchange_seconds, waited_seconds
from llmsim_magic.analyses.torch_time.transformers_time import transformers_time
from llmsim_magic.catalog import accelerators
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.hardware.kernel_shapes import Collective as KernelShape
from llmsim_magic.records.trace.recorded import Record
from llmsim_magic.records.trace.trace import Parameter, Trace
from llmsim_magic.simulate.hardware.link_notes import link_notes

LAYERS, VOCABULARY, WIDTH, RANKS = 6, 1000, 64, 4
BYTES = 2  # of bfloat16
STAGES = (0, 1, 2, 3)
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "checkpointing": {"checkpointing": True},
    "accumulated": {"accumulate": 2},
    "amp": {"precision": "amp", "checkpointing": True},
    "sgd": {"optimizer": "sgd"},
    "adafactor": {"optimizer": "adafactor"},
    "adamw_8bit": {"optimizer": "adamw_8bit"},
    "muon": {"optimizer": "muon"},
    "lora": {"lora": "r=2", "checkpointing": True},
}
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}


def _config(**changed: Any) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(**SIZES | changed)


@cache
def _on_one_device(changed: tuple[tuple[str, Any], ...], options: str) -> Trace:
    config = _config(**dict(changed))
    given = json.loads(options)
    return llmsim.trace(config, phase="train", batch=2, context=16, **given).trace


def _trace(zero: int, dp: int = RANKS, config: Any = None, **options: Any) -> Trace:
    """The step of a rank whose model is `SIZES` with the changes of `config`."""
    one = _on_one_device(tuple((config or {}).items()), json.dumps(options, sort_keys=True))
    assert one.training is not None
    return rank_of_step(replace(one, training=replace(one.training, zero=zero, dp=dp)))


def _weights(trace: Trace) -> list[Parameter]:
    return [each for each in trace.parameters if not each.is_buffer and each.tied_to is None]


def _of(trace: Trace, kind: str) -> list[Collective]:
    return [each for each in collectives(trace) if each.kind == kind]


def _padded(shape: tuple[int, ...], ranks: int = RANKS) -> int:
    """Elements of a parameter whose rows are padded to equal shards."""
    return -(-shape[0] // ranks) * ranks * math.prod(shape[1:])


def _peak(trace: Trace) -> int:
    return step_allocations(trace).steady.peak.alive.total


def test_a_step_reads_the_tokens_of_every_rank() -> None:
    assert tokens_read(_trace(0, dp=4)) == 4 * tokens_read(_trace(0, dp=1))


def test_one_device_has_its_step_unchanged() -> None:
    trace = _trace(0, dp=1)
    assert rank_of_step(trace) is trace
    assert not collectives(trace)


@pytest.mark.parametrize("dp", [3, 4])
def test_a_rank_holds_the_first_rows_of_each_parameter(dp: int) -> None:
    whole = {each.name: each for each in _weights(_trace(0, dp=1))}
    for each in _weights(_trace(3, dp=dp)):
        rows, *rest = whole[each.name].shape
        assert each.shape == (-(-rows // dp), *rest)
        of_ranks = [min(each.shape[0], max(rows - rank * each.shape[0], 0)) for rank in range(dp)]
        assert sum(of_ranks) == rows


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_below_stage_3_a_rank_holds_whole_parameters(stage: int) -> None:
    assert _weights(_trace(stage)) == _weights(_trace(0, dp=1))


@pytest.mark.parametrize("stage", STAGES)
def test_states_are_sharded_from_stage_1_on(stage: int) -> None:
    whole = _trace(0, dp=1)
    states = sum(_bytes(_trace(stage).recorded, "optimizer"))
    count = sum(_padded(each.shape) for each in _weights(whole)) // (RANKS if stage else 1)
    assert states == 2 * BYTES * count


def _bytes(record: Record, role: str) -> list[int]:
    return [each.nbytes for each in record.storages if each.role == role]


@pytest.mark.parametrize("way", ["plain", "checkpointing"])
def test_units_are_gathered_twice_and_the_root_once(way: str) -> None:
    trace, whole = _trace(3, **WAYS[way]), _weights(_trace(0, dp=1))
    of_root = [each for each in whole if ".layers." not in each.name]
    of_layer = [each for each in whole if ".layers.0." in each.name]
    root = BYTES * sum(_padded(each.shape) for each in of_root)
    layer = BYTES * sum(_padded(each.shape) for each in of_layer)
    gathered = Counter(each.nbytes for each in _of(trace, "all_gather"))
    assert gathered == {layer: 2 * LAYERS, root: 1}
    reduced = Counter(each.nbytes for each in _of(trace, "reduce_scatter"))
    assert reduced == {layer: LAYERS, root: 1}
    sent = {each.nbytes: each.wire_bytes for each in collectives(trace)}
    assert sent == {size: size * (RANKS - 1) // RANKS for size in (layer, root)}


def test_buckets_have_25_megabytes_of_the_gradients_that_are_ready_first() -> None:
    config = {"hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 8000}
    trace = _trace(0, config=config)
    buckets = [each.nbytes for each in _of(trace, "all_reduce")]
    assert sum(buckets) == BYTES * sum(each.numel for each in _weights(trace))
    assert buckets[0] == BYTES * 8000 * 1024  # the head alone has more than the first may have
    limit, largest = 25 * 2**20, BYTES * 4096 * 1024
    assert all(limit <= each < limit + largest for each in buckets[1:-1])
    held = [each.nbytes for each in trace.parameters if each.name.startswith("bucket.")]
    assert held == buckets


@pytest.mark.parametrize("stage", [1, 2])
def test_updated_parameters_are_gathered_once(stage: int) -> None:
    (gathered,) = _of(_trace(stage), "all_gather")
    assert gathered.nbytes == BYTES * sum(each.numel for each in _weights(_trace(0, dp=1)))


def test_stage_2_scatters_what_stage_1_sums() -> None:
    summed = [each.nbytes for each in _of(_trace(1), "all_reduce")]
    assert summed == [each.nbytes for each in _of(_trace(2), "reduce_scatter")]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_each_stage_needs_no_more_than_the_one_before(way: dict[str, Any]) -> None:
    peaks = [_peak(_trace(stage, config={"num_hidden_layers": 12}, **way)) for stage in STAGES]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] < peaks[0]


@pytest.mark.parametrize("stage", STAGES)
def test_a_rank_computes_what_one_device_does(stage: int) -> None:
    assert totals(_trace(stage)).flops == totals(_trace(0, dp=1)).flops


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_kernels_use_what_is_alive_and_all_but_the_state_ends(
    way: dict[str, Any], stage: int
) -> None:
    trace = _trace(stage, config={"tie_word_embeddings": True}, **way)
    record = trace.unrolled
    kept = ("parameter", "buffer", "optimizer", "input", "constant", "host")
    if "accumulate" in way:
        kept = (*kept, "gradient")
    alive = {number for number, each in enumerate(record.storages) if each.role in kept}
    for kernel in record.kernels:
        made = {record.tensors[each].storage for each in (*kernel.outputs, *kernel.writes)}
        read = {record.tensors[each].storage for each in kernel.inputs}
        assert read - made <= alive
        alive |= made
        assert len(set(kernel.frees)) == len(kernel.frees)
        assert set(kernel.frees) <= alive
        alive -= set(kernel.frees)
    left = {record.storages[number].role for number in alive}
    assert left <= {*kept, "gradient"}
    used = {each for kernel in record.kernels for each in (*kernel.inputs, *kernel.outputs)}
    for tensor in map(record.tensors.__getitem__, used):
        end = tensor.offset + 1
        end += sum(
            (size - 1) * step for size, step in zip(tensor.shape, tensor.strides, strict=True)
        )
        assert end * tensor.itemsize <= record.storages[tensor.storage].nbytes or not tensor.nbytes


def test_at_most_one_layer_is_whole_while_it_runs() -> None:
    record = _trace(3).recorded
    alive: set[int] = set()
    for kernel in record.kernels:
        alive |= {record.tensors[each].storage for each in kernel.outputs}
        named = (record.storages[each] for each in alive)
        gathered = [each.name or "" for each in named if each.role == "gathered"]
        assert len({each.split(".")[2] for each in gathered if ".layers." in each}) <= 1
        alive -= set(kernel.frees)


def test_autograd_keeps_nothing_of_gathered_parameters() -> None:
    def saved(trace: Trace) -> list[int]:
        record = trace.recorded
        return [
            record.tensors[each].nbytes
            for operator in record.operators
            for each in operator.saved
            if record.storages[record.tensors[each].storage].role != "parameter"
        ]

    assert saved(_trace(3)) == saved(_trace(0, dp=1))


def test_backward_still_names_the_operator_it_is_of() -> None:
    one, rank = _trace(0, dp=1), _trace(3)

    def pairs(trace: Trace) -> list[tuple[str, str]]:
        operators = trace.recorded.operators
        found = ((each, each.backward_of) for each in operators)
        return [(each.path, operators[of].path) for each, of in found if of is not None]

    assert pairs(one) == pairs(rank)


@pytest.mark.parametrize("stage", STAGES)
def test_views_show_a_rank(stage: int) -> None:
    report = llmsim.trace(_config(), phase="train", batch=2, context=16, zero=stage, dp=RANKS)
    assert "all_gather" in set(report.ops["op"]) or stage == 0
    assert len(report.kernels) == len(report.trace.recorded.kernels)
    assert f"one of {RANKS} ranks" in " ".join(report.trace.notes)
    assert len(report.modules)
    assert report.memory is not None


def test_exchanges_hide_behind_the_kernels_of_other_units() -> None:
    """The root's gather alone, at the start of the step, has nothing to hide behind."""
    trace = _trace(3)
    exchanges = {each.order: 0.25 for each in collectives(trace)}
    found = waited_seconds(trace, [1.0] * len(trace.operators), exchanges)
    assert found == {order: 0.25 * (order == min(exchanges)) for order in exchanges}


def test_where_exchanges_take_longer_the_step_takes_theirs() -> None:
    trace = _trace(3)
    exchanges = {each.order: 10.0 for each in collectives(trace)}
    found = waited_seconds(trace, [0.001] * len(trace.operators), exchanges)
    assert sum(found.values()) == pytest.approx(sum(exchanges.values()), rel=0.02)
    assert max(found.values()) <= 10.0


def test_updated_parameters_are_waited_for() -> None:
    trace = _trace(1)
    (gather,) = [each.order for each in collectives(trace) if each.kind == "all_gather"]
    assert waited_seconds(trace, [1.0] * len(trace.operators), {gather: 5.0}) == {gather: 5.0}


LINKED = [name for name, each in accelerators.entries().items() if each.interconnect_bytes_per_s]


@pytest.mark.parametrize("name", LINKED)
def test_the_same_bytes_over_a_link_take_the_same_time_however_exchanged(name: str) -> None:
    device = accelerators.find(name)
    for ranks in (2, 8, 64):
        seconds = {
            of: exchange_seconds(KernelShape(of, 25 * 2**20, ranks), device)
            for of in ("all_reduce", "reduce_scatter", "all_gather")
        }
        assert seconds["reduce_scatter"] == seconds["all_gather"]
        assert seconds["all_reduce"] == pytest.approx(
            seconds["reduce_scatter"] + seconds["all_gather"]
        )


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["H100-SXM5-80GB", "A40", "MI300X"])
def test_an_exchange_has_the_time_that_is_waited_for_it_and_the_link_binds_it(
    name: str, stage: int
) -> None:
    trace, device = _trace(stage), accelerators.find(name)
    time, alone = transformers_time(trace, device, "graph"), _trace(0, dp=1)
    exchanges = {each.order: each.kind for each in collectives(trace)}
    assert {trace.operators[order].op for order in exchanges} == {*exchanges.values()}
    for order, kind in exchanges.items():
        operator = time.operators[order]
        assert operator.binds == "interconnect"
        assert operator.kind == f"collective {kind} nccl"
        assert operator.bytes == pytest.approx(
            sum(each.wire_bytes for each in collectives(trace) if each.order == order), abs=2
        )
        assert 0 < operator.of_bandwidth <= 1
    assert time.seconds > transformers_time(alone, device, "graph").seconds


def test_ddp_exchanges_once_in_a_step_and_fsdp_in_each_micro_batch() -> None:
    device = accelerators.find("H100-SXM5-80GB")

    def ratio(stage: int) -> float:
        """Seconds of exchanges in a step of two micro-batches over those in one of them."""
        found = []
        for accumulate in (1, 2):
            trace = _trace(stage, accumulate=2)
            assert trace.training is not None
            trace = replace(trace, training=replace(trace.training, accumulate=accumulate))
            orders = {each.order for each in collectives(trace)}
            time = transformers_time(trace, device, "graph")
            found.append(sum(time.operators[order].seconds for order in orders))
        return found[1] / found[0]

    assert ratio(0) == pytest.approx(1)
    assert ratio(3) == pytest.approx(2)


def test_a_bridge_of_two_is_no_link_of_eight_and_a_note_says_so() -> None:
    boards = [accelerators.find(name) for name in ("A40", "RTX A6000", "H100-SXM5-80GB")]
    assert link_notes(_trace(3, dp=8), boards) == (
        "A40, RTX A6000: exchanges among 8 devices are priced over PCIe 4: NVLink bridge joins 2",
    )
    (near,) = link_notes(_trace(0, dp=2), boards)
    assert near.startswith("A40, RTX A6000: exchanges among 2 devices are priced over NVLink")
    assert link_notes(_trace(0, dp=1), boards) == ()


def test_a_step_on_several_devices_has_a_wider_band_as_none_was_measured() -> None:
    device = accelerators.find("H100-SXM5-80GB")
    alone, ranks = (transformers_time(_trace(0, dp=dp), device, "eager") for dp in (1, RANKS))
    assert alone.seen
    assert not ranks.seen
    assert ranks.band.low < alone.band.low < 1 < alone.band.high < ranks.band.high


def test_a_step_says_what_overlaps() -> None:
    for stage in STAGES:
        assert sum("what the step waits for" in note for note in _trace(stage).notes) == 1


@pytest.mark.parametrize("launch", ["eager", "graph"])
def test_a_step_of_a_rank_has_a_time_on_a_device(launch: str) -> None:
    device = accelerators.find("H100-SXM5-80GB")
    alone = transformers_time(_trace(0, dp=1), device, launch).seconds
    rank = transformers_time(_trace(3), device, launch)
    assert rank.seconds > alone
    assert len(rank.operators) == len(_trace(3).operators)


def test_stages_without_ranks_and_pipelines_are_refused() -> None:
    with pytest.raises(InvalidValue, match="give dp=N"):
        llmsim.trace(_config(), phase="train", zero=3)
    with pytest.raises(InvalidValue, match="pp=2 cannot be combined with phase 'train'"):
        llmsim.trace(_config(), phase="train", pp=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "checkpointing", "is_mixed", "changed"),
    [
        (4, False, False, {}),
        (4, True, False, {"tie_word_embeddings": True}),
        (3, True, True, {}),
        (3, False, False, {}),
    ],
)
def test_a_step_allocates_what_fsdp2_does(
    ranks: int, checkpointing: bool, is_mixed: bool, changed: dict[str, Any]
) -> None:
    """In blocks of 512 bytes: the most of each pass, and what is left after it."""
    options = {"ranks": ranks, "is_mixed": is_mixed, "checkpointing": checkpointing}
    given = options | {"batch": 2, "context": 16, "config": SIZES | changed}
    command = [sys.executable, "-m", "tests.helpers.sharded_step", json.dumps(given)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    real = json.loads(ran.stdout.partition("FOUND")[2])
    report = llmsim.trace(
        _config(**changed),
        phase="train",
        batch=2,
        context=16,
        zero=3,
        dp=ranks,
        checkpointing=checkpointing,
        precision="amp" if is_mixed else "bf16",
    )
    trace = report.trace
    found = step_allocations(trace).steady.stages
    for part, (peak, after) in real["passes"].items():
        assert found[part].after == after
        # the loss and its gradient, a block each, end with backward
        assert peak - (1024 if part == "backward" else 0) <= found[part].peak <= peak
    count = Counter(each.kind for each in collectives(trace))
    assert count == {
        "all_gather": real["called"]["c10d::_allgather_base_"],
        "reduce_scatter": real["called"]["c10d::_reduce_scatter_base_"],
    }
