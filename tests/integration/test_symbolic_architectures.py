"""Formulas of whole records, over many architectures and random workloads.

Wherever the formulas of an architecture answer, they give the record that tracing gives.
"""

import random
from dataclasses import replace
from typing import Any

import pytest
import transformers

from llmsim_magic.capture.run import run
from llmsim_magic.records.trace.workload import Workload
from llmsim_magic.simulate.models.building import build_workload_model
from llmsim_magic.simulate.models.recipes import model_recipe
from llmsim_magic.simulate.request import Build
from llmsim_magic.simulate.sweeps.derivation import derive, limits_of
from tests.helpers.architectures import CAUSES
from tests.helpers.reduced_configs import candidates

TYPES = [model_type for types in CAUSES.values() for model_type in types.split()]
WORKLOADS = 6  # of each phase
LONGEST = 600  # tokens
LEAST_COVERED = 0.75  # of the architectures have formulas for one random workload or more


def small_meta_model(model_type: str) -> Any:
    """The first small configuration of a type that runs."""
    for config, _ in candidates(model_type):
        try:
            model = build_workload_model(model_recipe(config, Build()))
            run(model, Workload("prefill", 2, 9))
        except Exception:  # this cut leaves no model that runs
            continue
        return model
    return pytest.fail(f"no small {model_type} runs")


def random_workloads(phase: str, longest: int, seed: str) -> list[Workload]:
    chosen = random.Random(f"{seed} {phase}")
    return [
        Workload(
            phase,
            chosen.choice([1, 2, chosen.randint(1, 64)]),
            chosen.choice(
                [
                    chosen.randint(1, min(longest, 300)),
                    chosen.randint(1, longest),
                    2 ** chosen.randint(0, longest.bit_length() - 1),
                ]
            ),
        )
        for _ in range(WORKLOADS)
    ]


def answered(model_type: str) -> int:
    """The number of random workloads that formulas give; each equals its trace."""
    model = small_meta_model(model_type)
    limits = limits_of(model)
    limits = replace(limits, longest=min(limits.longest, LONGEST))
    found = derive(("prefill", "decode"), limits, lambda workload: run(model, workload))
    count = 0
    for phase, symbolic in found.items():
        longest = max(limits.longest - (phase == "decode"), 1)
        for workload in random_workloads(phase, longest, model_type):
            evaluated = symbolic.evaluate(workload)
            if evaluated is not None:
                assert evaluated == run(model, workload), (model_type, workload)
                count += 1
    return count


@pytest.mark.slow
def test_formulas_of_many_architectures_give_what_traces_give() -> None:
    known = [name for name in TYPES if name in transformers.CONFIG_MAPPING]
    counts = {model_type: answered(model_type) for model_type in known}
    covered = [model_type for model_type, count in counts.items() if count]
    assert len(covered) >= LEAST_COVERED * len(counts), sorted(set(counts) - set(covered))
