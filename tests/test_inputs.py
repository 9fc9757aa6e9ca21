"""What a forward is given has the layout that the model reads, and the report describes it."""

import pytest

import llmsim_magic as llmsim
from llmsim_magic.capture.inputs import passes
from llmsim_magic.records.workload import Workload
from tests.real import beside, differences
from tests.reduced import candidates


@pytest.mark.parametrize("context", [4, 128])
def test_a_mask_tells_which_tokens_an_image_takes(context: int) -> None:
    real = beside(next(candidates("kosmos-2")).config)
    workload = Workload("prefill", 2, context)
    seen = real.prefill(workload)
    keywords = next(passes.prefill_inputs(real.unreal, workload)).keywords
    latents = real.model.config.latent_query_num
    mask = keywords["image_embeds_position_mask"]
    assert mask.shape == keywords["input_ids"].shape == (2, max(context, latents + 2))
    assert mask.sum(1).tolist() == [latents] * 2
    report = llmsim.trace(real.model.config, batch=2, context=context, dtype="float32")
    assert not differences(real.model, seen, report.modules)
    assert any(f"{latents} of the" in note for note in report.trace.notes)


@pytest.mark.parametrize(
    ("model_type", "shape", "said"),
    [
        ("resnet", (1, 3, 224, 224), "the config fixes no image size: 224 × 224 is taken"),
        (
            "depth_pro",
            (1, 3, 1536, 1536),
            "no image of its config's size can be read: 1536 × 1536 is taken",
        ),
        (
            "videomae",
            (1, 16, 3, 224, 224),
            "the model fixes its image at 224 × 224, a film of 16 frames",
        ),
        (
            "lfm2_vl",
            (1, 196, 768),
            "the config fixes no image size: 224 × 224 is taken, 14 × 14 patches",
        ),
        (
            "speech_to_text",
            (1, 1500, 80),
            "the model fixes its sound at 1500 frames; context is the text's",
        ),
        ("encodec", (1, 1, 61440), "a sound of 61440 samples"),
    ],
)
def test_the_report_describes_the_image_or_sound_that_ran(
    model_type: str, shape: tuple[int, ...], said: str
) -> None:
    report = llmsim.trace(next(candidates(model_type)).config)
    assert shape in report.modules.loc["", "input_shapes"]
    assert said in report.trace.notes
