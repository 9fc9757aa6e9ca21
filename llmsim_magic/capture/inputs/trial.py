"""Try whether a model's forward runs on the inputs that can be made for it."""

from itertools import islice

from llmsim_magic.capture.inputs.context_length import is_huggingface
from llmsim_magic.capture.inputs.forward_inputs import prefill_inputs
from llmsim_magic.capture.meta.evaluation_modes import evaluating_partially
from llmsim_magic.capture.meta.snapshot import restored
from llmsim_magic.capture.modalities.signature import HuggingFaceModel
from llmsim_magic.records.trace.workload import Workload

_SMALL = Workload("prefill", 1, 8)


def can_run(model: HuggingFaceModel, most: int | None = None) -> bool:
    """Whether a small prefill of a model on the meta device runs; leaves the model as it was.

    Args:
        model: The model.
        most: How many ways of giving inputs are tried; None for all.
    """
    if not is_huggingface(model):
        return False
    try:
        candidates = list(islice(prefill_inputs(model, _SMALL), most))
    except Exception:  # no inputs can be made
        return False
    return any(_runs(model, inputs.keywords) for inputs in candidates)


def _runs(model: HuggingFaceModel, keywords: dict[str, object]) -> bool:
    try:
        with restored(model), evaluating_partially():
            model(**keywords)
    except Exception:  # a wrong layout may raise anything
        return False
    return True
