"""What does not fit is said first, with every remedy; each remedy was computed to fit."""

from collections.abc import Callable
from dataclasses import replace

import pytest

import llmsim_magic as llmsim
from llmsim_magic.analyses.memory.capacity import Fit, Setup
from llmsim_magic.analyses.memory.memory import Memory
from llmsim_magic.analyses.memory.remedies import changed, with_remedies
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.trace.parallel import Parallel
from llmsim_magic.views.notes import fit_note

GB = 10**9
_BITS = {None: 16, "fp8": 8, "int4": 4}


def needed_by(
    weights: int, cache_per_token: int, *, widest: int = 8, most_stages: int = 64
) -> Callable[[Setup], Memory]:
    """A model whose parts divide evenly: weights in bf16, and a cache of each token."""

    def needed(setup: Setup) -> Memory:
        parallel = setup.parallel
        if parallel.width > widest or parallel.pp > most_stages:
            raise InvalidValue("the model does not divide so")
        ranks = parallel.ranks
        return Memory(
            weights=weights * _BITS[setup.weight_dtype] // 16 // ranks,
            buffers=0,
            cache=setup.batch * setup.context * cache_per_token // ranks,
            activations=0,
            context=0,
            assumptions=(),
        )

    return needed


def found_on(usable: int, setup: Setup, needed: Callable[[Setup], Memory], **options: int) -> Fit:
    memory = needed(setup)
    binds = None if memory.required <= usable else "cache" if memory.weights < usable else "weights"
    plain = Fit(setup=setup, device="L4", runtime="vllm", memory=memory, usable=usable, binds=binds)
    return with_remedies(plain, needed, None, lambda what: 1, **options)


SETUP = Setup(batch=4, context=1000)
BIG = needed_by(800 * GB, 10**6)  # and 4 GB of cache


def ways(fit: Fit) -> list[str]:
    return [str(remedy) for remedy in fit.remedies]


@pytest.mark.parametrize(
    ("usable", "needed", "expected"),
    [
        (900 * GB, BIG, []),
        (210 * GB, BIG, ["tp 4", "weight_dtype int4"]),
        (410 * GB, BIG, ["tp 2", "weight_dtype fp8"]),
        # stages where no tp suffices, and fewer devices with fewer bits
        (24 * GB, BIG, ["tp 8 and pp 5", "tp 8 and pp 2 and weight_dtype int4"]),
        (24 * GB, needed_by(80 * GB, 1, widest=1), ["pp 4", "weight_dtype int4"]),
        (24 * GB, needed_by(8000 * GB, 1, most_stages=2), []),
        (51 * GB, needed_by(800 * GB, 1, most_stages=1), ["tp 4 and weight_dtype int4"]),
        # the cache alone is too large
        (
            13 * GB,
            needed_by(10 * GB, 10**6),
            ["tp 2", "weight_dtype fp8", "batch 3", "context 750"],
        ),
        (11 * GB, needed_by(10 * GB, 2 * 10**6, widest=1, most_stages=1), ["context 125"]),
    ],
)
def test_every_kind_of_remedy_that_helps_is_found(
    usable: int, needed: Callable[[Setup], Memory], expected: list[str]
) -> None:
    fit = found_on(usable, SETUP, needed)
    assert set(expected) <= set(ways(fit))
    assert bool(expected) or not fit.remedies
    for remedy in fit.remedies:
        then = changed(SETUP, remedy.changes)
        assert then == remedy.setup
        assert needed(then).required == remedy.total <= usable


def test_one_sequence_of_a_shorter_context_where_neither_suffices_alone() -> None:
    setup = Setup(batch=100, context=1000)
    needed = needed_by(10 * GB, 10**9, widest=1, most_stages=1)
    fit = found_on(15 * GB, setup, lambda each: needed(replace(each, weight_dtype=None)))
    assert ways(fit) == ["batch 1 and context 5"]


def test_a_layout_that_is_given_grows() -> None:
    given = replace(SETUP, parallel=Parallel(tp=2, pp=2))
    (devices, *_) = found_on(60 * GB, given, BIG).remedies
    assert devices.setup.parallel.ranks > 4
    assert BIG(devices.setup).required <= 60 * GB


def test_stages_are_not_tried_where_they_are_not_asked_for() -> None:
    assert not any("pp" in way for way in ways(found_on(24 * GB, SETUP, BIG, max_stages=1)))


def test_the_sentence_says_how_much_and_every_way() -> None:
    fit = found_on(24 * GB, SETUP, BIG)
    assert fit_note(fit, "H900") == (
        "does not fit: 804 GB of 24 GB on L4 under vLLM; fits on 40 × L4 (tp 8 pp 5), on one H900 "
        "or with int4 weights on 16 × L4 (tp 8 pp 2)"
    )
    assert (fit.needed, fit.available, fit.fits) == (804 * GB, 24 * GB, False)
    helpless = replace(fit, remedies=())
    assert fit_note(helpless, None).endswith("; no change that was tried makes it fit")


def test_a_report_says_first_what_does_not_fit_and_marks_its_times() -> None:
    report = llmsim.trace("Qwen/Qwen3-32B", hardware=["RTX 4090", "H200"], runtime="vllm")
    assert report.remarks()[0].startswith("does not fit: 67")
    assert "RTX 4090 under vLLM; fits on 4 × RTX 4090 (tp 4), on one " in report.notes[0]
    assert sum("does not fit" in note for note in report.notes) == 1
    fits = report.latency.groupby("device")["fits"].agg(["min", "max"])
    assert fits.loc["RTX 4090"].tolist() == [False, False]
    assert fits.loc["H200-SXM-141GB"].tolist() == [True, True]
    assert [*report.latency][-1] == "fits"
    (small, large) = report.costing.capacities
    assert (small.fits, large.fits) == (False, True)
    larger = report.costing.larger_devices["RTX 4090", "vllm"]
    assert llmsim.trace("Qwen/Qwen3-32B", hardware=larger, runtime="vllm").latency["fits"].all()


def test_a_module_on_given_inputs_has_marks_and_no_remedies() -> None:
    import torch

    wide = torch.nn.Linear(200_000, 200_000, device="meta")  # 160 GB in float32
    report = llmsim.trace(wide, inputs=torch.ones(1, 200_000), hardware=["T4", "B300"])
    assert report.latency.groupby("device")["fits"].first()["T4"] == False  # noqa: E712
    assert report.costing.capacities == ()
