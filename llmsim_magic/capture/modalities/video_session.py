"""The session object of models that track objects through a video, frame by frame."""

import inspect
from typing import Any

import torch

from llmsim_magic.capture.modalities import images
from llmsim_magic.capture.modalities.signature import InputSpec
from llmsim_magic.capture.modalities.text import token_ids

KEYWORD = "inference_session"
FRAME = 0


def video_session(spec: InputSpec) -> Any:
    """A session of one video frame, in which each of `batch` objects has one point.

    The class of the session is the annotation of the forward's keyword. A session that takes a
    text prompt gets one of up to `context` tokens instead of points.
    """
    session_class = spec.accepted[KEYWORD].annotation
    height, width = images.image_size(spec)
    channels = spec.config_int("num_channels", prefer=images.VISION, default=3)
    given = {
        "video": spec.meta_tensor(1, channels, height, width),
        "video_height": height,
        "video_width": width,
        "dtype": spec.model.dtype,
    }
    accepted = inspect.signature(session_class).parameters
    given |= {name: spec.model.device for name in accepted if name.endswith("_device")}
    session = session_class(**{name: given[name] for name in accepted if name in given})
    if hasattr(session, "add_prompt"):
        _add_text_prompt(spec, session)
    elif hasattr(session, "add_point_inputs"):
        for object_id in range(1, spec.batch + 1):
            _add_point(session, object_id, height, width)
    return session


def note(session: Any) -> str:
    """The note on what a session holds."""
    size = f"one video frame of {session.video_height} × {session.video_width} pixels"
    if hasattr(session, "add_prompt"):
        return f"the input is {size} and a text prompt"
    return f"the input is {size}; batch counts the objects in it, each with one point"


def _add_text_prompt(spec: InputSpec, session: Any) -> None:
    number = session.add_prompt("object")
    longest = spec.config_int("max_position_embeddings", prefer=("text",), default=spec.context)
    ids = token_ids(spec.model, 1, min(spec.context, longest))
    session.prompt_input_ids[number] = ids
    session.prompt_attention_masks[number] = torch.ones_like(ids)


def _add_point(session: Any, object_id: int, height: int, width: int) -> None:
    """A click in the middle of the frame: coordinates `[1, 1, 1, 2]` and their label 1."""
    session.add_point_inputs(
        session.obj_id_to_idx(object_id),
        FRAME,
        {
            "point_coords": torch.tensor([width / 2, height / 2]).view(1, 1, 1, 2),
            "point_labels": torch.ones(1, 1, 1, dtype=torch.int32),
        },
    )
    session.obj_with_new_inputs.append(object_id)
