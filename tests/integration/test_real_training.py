"""A traced training step against a real one: FLOPs, gradients, what autograd keeps."""

from collections.abc import Iterator

import pytest
import transformers

from llmsim_magic.capture.train.step import run_step
from llmsim_magic.records.trace.training import Training
from llmsim_magic.records.trace.workload import Workload
from tests.helpers import small_models
from tests.helpers.architectures import TYPES
from tests.helpers.real_training import (
    SmallStep,
    differences,
    first_real_step,
    mean_of_output,
    meta_model_of,
    real_model_of,
    traced_step,
    with_own_loss,
    without_randomness,
)
from tests.helpers.reduced_configs import candidates

SIZE = Workload("train", 2, 16)
QUICK = ("llama", "t5", "vit", "mixtral")
SMALL = [
    pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
    for name in small_models.CONFIGS
]
MOST = 60_000_000  # parameters of a model that is really trained
# A CPU computes these otherwise than a GPU does, as which the trace counts.
OTHERWISE = {
    # Its recurrent layers step by step; only cuDNN derives by the first state as well.
    "encodec": {"train_flops", "train_saved"},
    "patchtst": {"train_saved"},  # a batch norm whose output has another layout
}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("name", SMALL)
def test_a_small_model_trains_on_meta_as_on_a_cpu(name: str, checkpointing: bool) -> None:
    """FLOPs of both passes, which parameters get a gradient, and bytes that autograd keeps."""
    config = without_randomness(small_models.CONFIGS[name]())
    meta_model = meta_model_of(config, attention="eager", checkpointing=checkpointing)
    trace = run_step(meta_model, SIZE, Training(checkpointing=checkpointing))
    model = real_model_of(meta_model, config, attention="eager")
    real = first_real_step(meta_model, model, SIZE, None)
    assert real.flops
    assert real.gradients
    assert real.saved_bytes
    assert dict(differences(real, traced_step(trace))) == {}


def _first_that_trains(model_type: str) -> SmallStep:
    """A step of a small configuration by its own loss, or by the mean of its output."""
    failed = []
    for small in candidates(model_type):
        config = without_randomness(small.config)
        for loss in (None, mean_of_output):
            for made in with_own_loss(config) if loss is None else [config]:
                step = SmallStep(made, SIZE.batch, SIZE.context, loss=loss)
                try:
                    step.trace()
                except Exception as error:
                    failed.append(str(error))
                else:
                    return step
    raise AssertionError(failed[:3])


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [each.values[0] for each in TYPES[::3]])
def test_an_architecture_trains_on_meta_as_on_a_cpu(model_type: str) -> None:
    """Of every third one; `python -m benchmarks.coverage step` tries all types."""
    transformers.logging.set_verbosity_error()
    unlike = dict(_unlike(_first_that_trains(model_type)))
    assert unlike.keys() <= OTHERWISE.get(model_type, set()), unlike


def _unlike(step: SmallStep) -> Iterator[tuple[str, str]]:
    for name, found in step.held(MOST).items():
        if found.startswith("no real step"):
            pytest.skip(found)
        if found != "equal":
            yield name, found
