"""Traces that formulas give: each equals the trace of the pass, or is refused."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

import llmsim_magic as llmsim
from llmsim_magic.analyses.formulas.fit_region import Reading, fit_region
from llmsim_magic.analyses.formulas.interpolation import interpolations
from llmsim_magic.analyses.formulas.symbolic_trace import SymbolicTrace
from llmsim_magic.capture import run as passes
from llmsim_magic.records.trace.recorded import Kernel, Record, Storage, Tensor
from llmsim_magic.records.trace.trace import ModelInfo, Trace
from llmsim_magic.records.trace.workload import Workload
from llmsim_magic.simulate.models.building import build_workload_model
from llmsim_magic.simulate.models.recipes import model_recipe
from llmsim_magic.simulate.request import Build
from llmsim_magic.simulate.sweeps.derivation import (
    FEWEST_POINTS,
    Limits,
    derive,
    first_points,
    limits_of,
)
from tests.helpers import small_models

QUICK = ("qwen3", "gpt2")
SLOW = sorted(set(small_models.CONFIGS) - {*QUICK, "mamba"})


def with_positions(config: Any, positions: int = 5_000) -> Any:
    config.max_position_embeddings = positions
    return config


def meta_model(config: Any) -> Any:
    return build_workload_model(model_recipe(config, Build()))


def derived(config: Any) -> tuple[Any, dict[str, SymbolicTrace]]:
    model = meta_model(config)
    return model, derive(
        ("prefill", "decode"), limits_of(model), lambda workload: passes.run(model, workload)
    )


@pytest.fixture(scope="module")
def qwen3() -> tuple[Any, dict[str, SymbolicTrace]]:
    return derived(small_models.qwen3())


def check(model: Any, symbolic: SymbolicTrace, workloads: list[Workload]) -> int:
    """The number of workloads that the formulas answer; each answer equals the pass."""
    answered = 0
    for workload in workloads:
        found = symbolic.evaluate(workload)
        if found is not None:
            answered += 1
            assert found == passes.run(model, workload), workload
    return answered


def random_workloads(phase: str, longest: int, count: int, seed: int) -> list[Workload]:
    chosen = random.Random(seed)
    return [
        Workload(phase, chosen.choice([1, 2, chosen.randint(1, 40)]), chosen.randint(6, longest))
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_what_formulas_give_equals_the_pass(name: str) -> None:
    model, found = derived(small_models.CONFIGS[name]())
    for phase, symbolic in found.items():
        longest = limits_of(model).longest - (phase == "decode")
        workloads = random_workloads(phase, min(longest, 300), 8, seed=1)
        answered = check(model, symbolic, workloads)
        assert answered >= 4 or (name in small_models.ENCODERS and phase == "decode")


def test_a_region_ends_where_it_was_checked(qwen3: tuple[Any, dict[str, SymbolicTrace]]) -> None:
    model, found = qwen3
    symbolic = found["prefill"]
    assert symbolic.evaluate(Workload("prefill", 2, 32)) is not None
    for batch, context in ((2, 33), (100_000, 8), (2, 3)):
        assert symbolic.evaluate(Workload("prefill", batch, context)) is None
    assert symbolic.evaluate(Workload("decode", 2, 32)) is None
    assert passes.run(model, Workload("prefill", 2, 3)).recorded.tensors


def test_formulas_survive_encoding(qwen3: tuple[Any, dict[str, SymbolicTrace]]) -> None:
    model, found = qwen3
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(found["decode"]), type=SymbolicTrace)
    assert decoded == found["decode"]
    assert check(model, decoded, [Workload("decode", 3, 20), Workload("decode", 1, 11)]) == 2


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
@pytest.mark.slow
def test_both_sides_of_a_window_are_proven_up_to_it(name: str) -> None:
    config = with_positions(small_models.CONFIGS[name](), 2_000)
    config.sliding_window = 300
    model, found = derived(config)
    for phase, symbolic in found.items():
        near = [
            Workload(phase, batch, context) for batch in (1, 2, 7) for context in range(296, 304)
        ]
        assert check(model, symbolic, near) >= len(near) // 2
        far = random_workloads(phase, 1_990, 12, seed=2)
        assert check(model, symbolic, far) >= 9


Numbers = Callable[[int, int], tuple[int, int]]  # batch, context: the sizes of a tensor


def made_trace(workload: Workload, sizes: Numbers, other: Numbers | None = None) -> Trace:
    """A pass of one kernel whose output has these sizes, and is viewed with the other ones."""
    each = [sizes(workload.batch, workload.context)]
    if other is not None:
        each.append(other(workload.batch, workload.context))
    tensors = tuple(Tensor(shape, "float32", 4, 0, 0, (shape[1], 1)) for shape in each)
    outputs = tuple(range(len(tensors)))
    kernel = Kernel("aten.mm.default", 0, (), outputs, outputs, False, False, False, 8 * each[0][0])
    record = Record(
        storages=(Storage(4 * each[0][0] * each[0][1], "activation", None),),
        tensors=tensors,
        kernels=(kernel,),
        operators=(),
        calls=(),
        results=(),
    )
    return Trace(
        model=ModelInfo(
            name="made",
            class_name="Made",
            model_type=None,
            head="",
            attention=None,
            dtype="float32",
            origin="made",
        ),
        workload=workload,
        modules=(),
        parameters=(),
        recorded=record,
        replays=(),
        cache=(),
        notes=(),
        versions={},
    )


def made(sizes: Numbers, other: Numbers | None = None, **limits: Any) -> SymbolicTrace:
    known = Limits(**{"longest": 5_000, **limits})
    found = derive(("prefill",), known, lambda workload: made_trace(workload, sizes, other))
    return found["prefill"]


def answers(symbolic: SymbolicTrace, batch: int, context: int) -> bool:
    return symbolic.evaluate(Workload("prefill", batch, context)) is not None


def test_two_tensors_that_coincide_at_a_workload_are_not_evaluated() -> None:
    readings = {
        (batch, context): Reading(
            made_trace(
                Workload("prefill", batch, context), lambda b, x: (b, x), lambda b, x: (x, b)
            )
        )
        for batch in (2, 3, 5)
        for context in (7, 11, 13, 64)
    }
    region = fit_region(readings)
    assert region is not None
    assert region.contains(4, 12)
    assert region.evaluate(4, 12) is not None
    assert region.evaluate(4, 4) is None


@pytest.mark.parametrize("multiple", [3, 64, 100, 256])
def test_padding_to_a_multiple_has_no_formula(multiple: int) -> None:
    padded = made(lambda b, x: (b, -(-x // multiple) * multiple))
    assert not any(answers(padded, 2, context) for context in (20, 70, 130, 777, 2_000, 4_095))


def test_a_length_from_the_config_is_not_evaluated_where_it_was_not_checked() -> None:
    def special(batch: int, context: int) -> tuple[int, int]:
        return (batch, 1 if context == 777 else context)

    guarded = made(special, integers=frozenset({777}))
    assert answers(guarded, 2, 775)
    assert answers(guarded, 2, 779)
    assert not any(answers(guarded, 2, context) for context in (776, 777, 778))


@pytest.mark.parametrize("end", [9, 300, 4_000])
def test_a_threshold_separates_regions(end: int) -> None:
    def windowed(batch: int, context: int) -> tuple[int, int]:
        return (batch, min(context, end))

    symbolic = made(windowed, boundaries=(end,), integers=frozenset({end}))
    for batch in (1, 2, 16):
        for context in (6, end - 1, end, end + 1, end + 50, 4_990):
            found = symbolic.evaluate(Workload("prefill", batch, context))
            assert found is None or found == made_trace(found.workload, windowed)
    assert answers(symbolic, 2, 4_990)


def test_a_threshold_in_the_number_of_tokens_separates_regions() -> None:
    def of_tokens(batch: int, context: int) -> tuple[int, int]:
        return (min(batch * context, 9_000), context)

    symbolic = made(of_tokens)
    for batch, context in ((2, 100), (16, 500), (18, 500), (19, 500), (64, 300), (900, 3_000)):
        found = symbolic.evaluate(Workload("prefill", batch, context))
        assert found is None or found == made_trace(found.workload, of_tokens)


def test_a_batch_in_the_second_power_has_a_formula() -> None:
    symbolic = made(lambda b, x: (b * b, x))
    assert answers(symbolic, 7, 99)


def test_every_fit_leaves_workloads_that_check_it() -> None:
    grid = [(batch, context) for batch in (2, 3) for context in (6, 9, 13)]
    assert not interpolations(grid)
    (way,) = interpolations([*grid, (4, 6), (2, 20)])
    points = [*grid, (4, 6), (2, 20)]
    assert way.fit([batch * context * context for batch, context in points]) is not None
    assert way.fit([min(batch, 3) * context for batch, context in points]) is None
    assert way.fit([batch * min(context, 13) for batch, context in points]) is None


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Workload]]:
    """The workloads of the passes that run."""
    llmsim.forget()
    ran: list[Workload] = []
    real = passes.run

    def run(model: Any, workload: Workload, **options: Any) -> Trace:
        ran.append(workload)
        return real(model, workload, **options)

    monkeypatch.setattr(passes, "run", run)
    yield ran
    llmsim.forget()


CONTEXTS = list(range(6, 15))  # 15 to 17 are next to a size in the config


def test_a_sweep_runs_fewer_passes_than_it_has_workloads(counted: list[Workload]) -> None:
    config = small_models.llama()
    asked = {"batch": [1, 2, 3, 4, 5, 6, 7, 8], "context": CONTEXTS, "phase": "prefill"}
    sweep = llmsim.sweep(config, **asked)
    assert len(sweep.traces) == 72
    assert len(counted) < 48
    before = len(counted)
    llmsim.sweep(config, **asked | {"batch": [9, 10, 11]})
    once = llmsim.trace(config, batch=13, context=13)
    assert len(counted) == before
    model = meta_model(config)
    assert once.trace == passes.run(model, once.trace.workload)
    assert all(trace == passes.run(model, trace.workload) for trace in sweep.traces[::7])


def test_formulas_are_not_those_of_unrolled_passes(counted: list[Workload]) -> None:
    config = small_models.llama()
    llmsim.sweep(config, batch=[1, 2, 3, 4, 5, 6], context=CONTEXTS, phase="prefill")
    unrolled = llmsim.trace(config, batch=11, context=11, replay=False).trace
    assert counted[-1] == unrolled.workload
    assert not unrolled.replays


def test_forget_forgets_the_formulas(counted: list[Workload]) -> None:
    config = small_models.llama()
    llmsim.sweep(config, batch=[1, 2, 3, 4, 5, 6], context=CONTEXTS, phase="prefill")
    llmsim.forget()
    llmsim.trace(config, batch=11, context=11)
    assert counted[-1] == Workload("prefill", 11, 11)


@pytest.mark.slow
def test_a_model_without_formulas_is_tried_once(counted: list[Workload]) -> None:
    config = small_models.mamba()
    asked = {"batch": list(range(1, 7)), "context": CONTEXTS, "phase": "prefill"}
    llmsim.sweep(config, **asked)
    assert len(counted) <= len(set(counted)) + 1
    before = len(counted)
    llmsim.sweep(config, **asked | {"context": [context + 6 for context in CONTEXTS]})
    assert set(counted[before:]) <= {
        Workload("prefill", batch, context + 6) for batch in asked["batch"] for context in CONTEXTS
    }


def test_a_small_sweep_derives_nothing(counted: list[Workload]) -> None:
    llmsim.sweep(small_models.llama(), batch=[1, 4], context=[7, 9], phase="prefill")
    assert len(counted) == 4


@pytest.mark.slow
def test_many_single_traces_have_their_formulas_derived(counted: list[Workload]) -> None:
    config = small_models.llama()
    needed = len(first_points("prefill", limits_of(meta_model(config))))
    asked = [(batch, context) for batch in range(1, 12) for context in CONTEXTS]
    for batch, context in asked:
        llmsim.trace(config, batch=batch, context=context)
    most = max(needed, FEWEST_POINTS) + needed + 4
    assert needed <= len(counted) <= most < len(asked)
    before = len(counted)
    last = llmsim.trace(config, batch=31, context=14).trace
    assert len(counted) == before
    assert last == passes.run(meta_model(config), last.workload)


@pytest.mark.slow
def test_a_search_for_the_largest_batch_uses_formulas(counted: list[Workload]) -> None:
    config = small_models.llama()
    asked: dict[str, Any] = {"hardware": "H100", "context": 14}
    alone = llmsim.trace(config, **asked).costing.fits
    llmsim.forget()
    llmsim.sweep(config, batch=[1, 2, 3, 4, 5, 6], context=CONTEXTS)
    before = len(counted)
    with_formulas = llmsim.trace(config, **asked).costing.fits
    assert with_formulas.equals(alone)
    assert len(counted) < 2 * before
