"""Images and films, in the layouts that vision models read them in."""

import math
from collections.abc import Iterator

import torch

from llmsim_magic.capture.inputs.ask import Ask, Keywords

VISION = ("vision", "visual", "image", "backbone", "encoder")
_KEYWORDS = (
    "pixel_values",
    "pixel_values_videos",
    "flattened_patches",
    "image",
    "image_pixel_values",
)
USUAL_SIZE = 224  # pixels, where the config fixes no size
LARGE_SIZE = 1536  # for what cuts an image into pieces of several sizes
USUAL_FRAMES = 8


def keyword(ask: Ask) -> str | None:
    """The keyword that takes pixels, or None for a model that sees nothing."""
    is_tower = {"grid_thw", "image_grid_thw"} & set(ask.taken) or set(_KEYWORDS) & set(ask.main)
    if is_tower and "input_ids" not in ask.taken:
        return ask.keyword(_KEYWORDS) or next(iter(ask.taken))
    return ask.keyword(_KEYWORDS)


def size(ask: Ask) -> tuple[int, int]:
    """Height and width of an image in pixels: the config's, or a usual one."""
    value = ask.fact("image_size", "img_size", "input_size", near=VISION)
    if isinstance(value, dict):
        value = [value.get("height", USUAL_SIZE), value.get("width", USUAL_SIZE)]
    if isinstance(value, (list, tuple)) and len(value) >= 2:
        return int(value[-2]), int(value[-1])
    if isinstance(value, (list, tuple)) and value:
        value = value[0]
    side = value if isinstance(value, int) and value > 0 else USUAL_SIZE
    return side, side


def size_is_free(ask: Ask) -> bool:
    """Whether the config leaves the size of an image open."""
    return ask.fact("image_size", "img_size", "input_size", near=VISION) is None


def note(ask: Ask) -> str:
    """What the report says of the image."""
    height, width = size(ask)
    if size_is_free(ask):
        return f"the config fixes no image size: {height} × {width} is taken"
    return f"the model fixes its image at {height} × {width}"


def layouts(ask: Ask) -> Iterator[Keywords]:
    """Ways to hand over one image of each sample, the likeliest first.

    Shapes: patches in a row `[batch · patches, values]` with their grid, `[batch, patches,
    values]`, whole images `[batch, channels, height, width]`, or images or frames in an extra
    dimension. Which of them a model reads only its code says.
    """
    main = keyword(ask)
    if main is None:
        return
    height, width = size(ask)
    channels = ask.number(
        "num_channels", "in_channels", "in_chans", "image_channels", near=VISION, default=3
    )
    patch = ask.number("patch_size", near=VISION, default=16)
    temporal = ask.number("temporal_patch_size", near=VISION, default=1)
    merge = _merge(ask)
    rows = max(height // (patch * merge), 1) * merge
    columns = max(width // (patch * merge), 1) * merge
    batch, patches = ask.batch, rows * columns
    values = channels * patch * patch
    grid = torch.tensor([[1, rows, columns]] * batch)
    taken = set(ask.taken)

    if {"image_grid_thw", "grid_thw", "image_grid_hw", "video_grid_thw"} & taken:
        flat = ask.unknown(batch * patches, values * temporal)
        names = {
            "grid_thw": grid,
            "image_grid_thw": grid,
            "video_grid_thw": grid,
            "image_grid_hw": grid[:, 1:],
        }
        sizes = {
            "merge_sizes": torch.full((batch,), merge),
            "image_merge_sizes": torch.full((batch,), merge),
        }
        yield {main: flat, **names, **sizes}
        yield {main: ask.unknown(batch * patches, channels, patch, patch), **names, **sizes}
    if "spatial_shapes" in taken:
        yield {
            main: ask.unknown(batch, patches, values),
            "pixel_attention_mask": torch.ones(batch, patches, dtype=torch.long),
            "spatial_shapes": grid[:, 1:],
        }
    if positions := {"image_position_ids", "pixel_position_ids"} & taken:
        across = torch.arange(patches) % columns
        down = torch.arange(patches) // columns
        places = torch.stack((across, down), -1).expand(batch, patches, 2)
        yield {main: ask.unknown(batch, patches, values), **dict.fromkeys(positions, places)}
    if main == "flattened_patches":
        yield {main: ask.unknown(batch, patches, values + 2)}
    if "target_sizes" in taken:
        yield {
            main: ask.unknown(1, channels, patch, batch * patches * patch),
            "target_sizes": grid[:, 1:],
        }

    sizes_ = {"image_sizes": torch.tensor([[height, width]] * batch)}
    frames = ask.number("num_frames", "frames_per_clip", near=VISION, default=USUAL_FRAMES)
    film = ask.unknown(batch, frames, channels, height, width)
    if main == "pixel_values_videos" or ask.fact("num_frames", "frames_per_clip") is not None:
        yield {main: film}
    plain = ask.unknown(batch, channels, height, width)
    yield {main: plain, **sizes_}
    yield {main: plain}
    if size_is_free(ask):
        yield {main: ask.unknown(batch, channels, LARGE_SIZE, LARGE_SIZE)}
    tiles = ask.number("max_num_tiles", near=VISION, default=1)
    yield {
        main: ask.unknown(batch, 1, tiles, channels, height, width),
        "aspect_ratio_ids": torch.ones(batch, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(batch, 1, tiles, dtype=torch.long),
    }
    for number in (1, 2, 3, 4, 5):
        mask = {"pixel_attention_mask": torch.ones(batch, number, height, width, dtype=torch.bool)}
        yield {main: ask.unknown(batch, number, channels, height, width), **sizes_, **mask}
    yield {main: film}
    yield {main: ask.unknown(batch, patches, values)}


def _merge(ask: Ask) -> int:
    """Patches a side that become one: the grid must hold whole ones of them."""
    names = (
        "spatial_merge_size",
        "pooling_kernel_size",
        "downsample_factor",
        "merge_kernel_size",
        "scale_factor",
    )
    return math.lcm(*(ask.number(name, near=VISION, default=1) for name in names))
