"""Image and video inputs, in the layouts that vision models use."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from llmsim_magic.capture.modalities.modality import Layout
from llmsim_magic.capture.modalities.signature import InputSpec, check_input_size

VISION = ("vision", "visual", "image", "backbone", "encoder")
_KEYWORDS = (
    "pixel_values",
    "pixel_values_videos",
    "flattened_patches",
    "image",
    "image_pixel_values",
)
_SIZE_KEYS = ("image_size", "img_size", "input_size", "max_img_size")
_PROMPT = "prompt_pixel_values"
_HIGH_RESOLUTION = "high_res_pixel_values"
_FRAME_KEYS = ("num_frames", "frames_per_clip")
_TEMPORAL_PATCH_KEYS = ("temporal_patch_size", "patch_temporal")
_WINDOW_KEYS = ("num_windows_side", "num_windows")  # windows per side
DEFAULT_SIZE = 224  # pixels, where the config sets no size
LARGE_SIZE = 1536
DEFAULT_FRAMES = 8


def keyword(spec: InputSpec) -> str | None:
    """The forward's keyword for pixels; None for a model without image input."""
    has_grid = {"grid_thw", "image_grid_thw"} & set(spec.accepted)
    if "inference_session" in spec.accepted:  # which holds the frames of a video
        return None
    is_tower = has_grid or set(_KEYWORDS) & set(spec.main_inputs)
    if is_tower and "input_ids" not in spec.accepted:
        return spec.first_accepted(_KEYWORDS) or next(iter(spec.accepted))
    return spec.first_accepted(_KEYWORDS)


def image_size(spec: InputSpec) -> tuple[int, int]:
    """The height and width of an image in pixels, from the config or by default.

    A model that stacks an image under its prompt image has half the config's height for each.
    """
    height, width = _config_size(spec)
    return (height // 2, width) if _PROMPT in spec.accepted else (height, width)


def _config_size(spec: InputSpec, prefer: tuple[str, ...] = VISION) -> tuple[int, int]:
    value = spec.config_value(*_SIZE_KEYS, prefer=prefer)
    if isinstance(value, dict):
        value = [value.get("height", DEFAULT_SIZE), value.get("width", DEFAULT_SIZE)]
    if isinstance(value, (list, tuple)) and len(value) >= 2:
        return int(value[-2]), int(value[-1])
    if isinstance(value, (list, tuple)) and value:
        value = value[0]
    side = value if isinstance(value, int) and value > 0 else DEFAULT_SIZE
    return side, side


@dataclass(frozen=True)
class Image:
    """The image of each sample: the keyword that takes it, its size in pixels and its patches."""

    spec: InputSpec
    main: str
    height: int
    width: int

    @cached_property
    def note(self) -> str:
        size = f"{self.height} × {self.width}"
        if self.spec.config_value(*_SIZE_KEYS, prefer=VISION) is None:
            return f"the config sets no image size; {size} pixels are assumed"
        if _PROMPT in self.spec.accepted:
            size = f"{2 * self.height} × {self.width}"
            return f"the config sets an image size of {size} pixels, half of them for the prompt"
        return f"the config sets an image size of {size} pixels"

    @cached_property
    def channels(self) -> int:
        names = ("num_channels", "in_channels", "in_chans", "image_channels")
        return self.spec.config_int(*names, prefer=VISION, default=3)

    @cached_property
    def patch_size(self) -> int:
        return self.spec.config_int("patch_size", prefer=VISION, default=16)

    @cached_property
    def merge_size(self) -> int:
        """Patches per side that the model merges into one; rows and columns are multiples of it."""
        names = (
            "spatial_merge_size",
            "pooling_kernel_size",
            "downsample_factor",
            "merge_kernel_size",
            "merge_size",
            "scale_factor",
        )
        return math.lcm(*(self.spec.config_int(name, prefer=VISION, default=1) for name in names))

    @cached_property
    def rows(self) -> int:
        return max(self.height // (self.patch_size * self.merge_size), 1) * self.merge_size

    @cached_property
    def columns(self) -> int:
        return max(self.width // (self.patch_size * self.merge_size), 1) * self.merge_size

    @cached_property
    def patches(self) -> int:
        return self.rows * self.columns

    @cached_property
    def patch_values(self) -> int:
        """The number of values in a patch."""
        return self.channels * self.patch_size * self.patch_size

    @cached_property
    def grid(self) -> torch.Tensor:
        """Frames, rows and columns of each sample, `[batch, 3]`."""
        return torch.tensor([1, self.rows, self.columns]).repeat(self.spec.batch, 1)

    def pixels(self, *dimensions: int) -> torch.Tensor:
        """Pixels `[batch, *dimensions, channels, height, width]`."""
        shape = (self.spec.batch, *dimensions, self.channels, self.height, self.width)
        return self.spec.meta_tensor(*shape)

    def patch_layout(self, **keywords: torch.Tensor) -> Layout:
        """A layout whose note states the grid of patches."""
        return Layout(keywords, f"{self.note}, cut into {self.rows} × {self.columns} patches")


LayoutFamily = Callable[[Image], Iterator[Layout]]


def layouts(spec: InputSpec) -> Iterator[Layout]:
    """Yield layouts of one image or video per sample, the most likely first."""
    main = keyword(spec)
    if main is None:
        return
    image = Image(spec, main, *image_size(spec))
    check_input_size(spec.batch, image.rows, image.columns)
    is_video = main == "pixel_values_videos" or spec.config_value(*_FRAME_KEYS) is not None
    wholes = (_videos, _whole_images, _tiles) if is_video else (_whole_images, _tiles, _videos)
    families: tuple[LayoutFamily, ...] = (
        _patches_with_grid,
        _patches_with_positions,
        _flattened_patches,
        *wholes,
        _whole_windows,
        _patches_alone,
        _large_images,
    )
    for family in families:
        yield from family(image)


def _patches_with_grid(image: Image) -> Iterator[Layout]:
    """Patches of all samples, and the grid of each sample.

    `[batch · patches, values]`, `[batch · patches, channels, side, side]`, either in a batch of
    one, or `[batch · merged patches, larger side, larger side, channels]` with a grid of those.
    """
    grids = ("image_grid_thw", "grid_thw", "image_grid_hw", "video_grid_thw")
    if not set(grids) & set(image.spec.accepted):
        return
    count, side = image.spec.batch * image.patches, image.patch_size
    temporal = image.spec.config_int(*_TEMPORAL_PATCH_KEYS, prefer=VISION, default=1)
    merge_sizes = torch.full((image.spec.batch,), image.merge_size)
    companions = dict.fromkeys(grids, image.grid) | {
        "image_grid_hw": image.grid[:, 1:],
        "merge_sizes": merge_sizes,
        "image_merge_sizes": merge_sizes,
    }
    flat = (image.patch_values * temporal,)
    square = (image.channels, side, side)
    for shape in ((count, *flat), (count, *square), (1, count, *square)):
        yield image.patch_layout(**{image.main: image.spec.meta_tensor(*shape)}, **companions)
    if image.merge_size > 1:
        larger = side * image.merge_size
        shape = (count // image.merge_size**2, larger, larger, image.channels)
        scale = torch.tensor([1, image.merge_size, image.merge_size])
        companions |= dict.fromkeys(grids[:2], image.grid // scale)
        yield image.patch_layout(**{image.main: image.spec.meta_tensor(*shape)}, **companions)


def _patches_with_positions(image: Image) -> Iterator[Layout]:
    """Patches `[batch, patches, values]`, and the shape of their grid or each patch's position."""
    batch, patches, columns = image.spec.batch, image.patches, image.columns
    pixels = {image.main: image.spec.meta_tensor(batch, patches, image.patch_values)}
    if "spatial_shapes" in image.spec.accepted:
        mask = torch.ones(batch, patches, dtype=torch.long)
        shapes = image.grid[:, 1:]
        yield image.patch_layout(**pixels, pixel_attention_mask=mask, spatial_shapes=shapes)
    if names := {"image_position_ids", "pixel_position_ids"} & set(image.spec.accepted):
        index = torch.arange(patches)
        positions = torch.stack((index % columns, index // columns), -1)
        positions = positions.expand(batch, patches, 2)
        yield image.patch_layout(**pixels, **dict.fromkeys(names, positions))


def _flattened_patches(image: Image) -> Iterator[Layout]:
    """Patches that include their row and column, or all patches of a batch in one strip."""
    spec, batch, patches = image.spec, image.spec.batch, image.patches
    if image.main == "flattened_patches":
        flattened = spec.meta_tensor(batch, patches, image.patch_values + 2)
        yield image.patch_layout(flattened_patches=flattened)
    if "target_sizes" in spec.accepted:
        side = image.patch_size
        strip = spec.meta_tensor(1, image.channels, side, batch * patches * side)
        yield image.patch_layout(**{image.main: strip}, target_sizes=image.grid[:, 1:])


def _whole_images(image: Image) -> Iterator[Layout]:
    """Whole images `[batch, channels, height, width]`."""
    pixels = {image.main: image.pixels()} | _high_resolution(image)
    yield Layout(pixels | _size_keywords(image), image.note)
    yield Layout(pixels, image.note)


def _high_resolution(image: Image) -> dict[str, torch.Tensor]:
    """The same images in the size of a second tower, for a model that has one."""
    if _HIGH_RESOLUTION not in image.spec.accepted:
        return {}
    height, width = _config_size(image.spec, ("high_res",))
    return {_HIGH_RESOLUTION: replace(image, height=height, width=width).pixels()}


def _whole_windows(image: Image) -> Iterator[Layout]:
    """Images whose sides are enlarged to a multiple of the windows that the patches form."""
    side = image.patch_size * image.spec.config_int(*_WINDOW_KEYS, prefer=VISION, default=1)
    height, width = (-(-size // side) * side for size in (image.height, image.width))
    if (height, width) == (image.height, image.width):
        return
    larger = replace(image, height=height, width=width)
    note = f"{image.note}, enlarged to {height} × {width}, a multiple of its windows of {side}"
    yield Layout({image.main: larger.pixels()}, note)


def _tiles(image: Image) -> Iterator[Layout]:
    """Images with a dimension of tiles, `[batch, tiles, channels, height, width]` or one more."""
    batch = image.spec.batch
    tiles = image.spec.config_int("max_num_tiles", prefer=VISION, default=1)
    tiled = {
        image.main: image.pixels(1, tiles),
        "aspect_ratio_ids": torch.ones(batch, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(batch, 1, tiles, dtype=torch.long),
    }
    yield Layout(tiled, f"{image.note}, in {tiles} tiles")
    for count in (1, 2, 3, 4, 5):
        pixels = image.pixels(count)
        check_input_size(batch, count, image.height, image.width)
        mask = torch.ones(batch, count, image.height, image.width, dtype=torch.bool)
        keywords = {image.main: pixels, "pixel_attention_mask": mask} | _size_keywords(image)
        yield Layout(keywords, f"{image.note}, in {count} tiles" if count > 1 else image.note)


def _size_keywords(image: Image) -> dict[str, torch.Tensor]:
    size = torch.tensor([image.height, image.width])
    return {"image_sizes": size.repeat(image.spec.batch, 1)}


def _videos(image: Image) -> Iterator[Layout]:
    """Videos `[batch, frames, channels, height, width]` or `[batch · frames, channels, …]`."""
    frames = image.spec.config_int(*_FRAME_KEYS, prefer=VISION, default=DEFAULT_FRAMES)
    note = f"{image.note}, for a video of {frames} frames"
    yield Layout({image.main: image.pixels(frames)}, note)
    if image.spec.config_value(*_FRAME_KEYS) is not None:
        yield Layout({image.main: image.pixels(frames).flatten(0, 1)}, note)


def _patches_alone(image: Image) -> Iterator[Layout]:
    """Patches without their grid.

    `[batch, patches, values]`, or `[batch · patches, frames, side, side, channels]` of a tower
    whose patches span a few frames.
    """
    spec, side = image.spec, image.patch_size
    patches = spec.meta_tensor(spec.batch, image.patches, image.patch_values)
    yield image.patch_layout(**{image.main: patches})
    frames = spec.config_int(*_TEMPORAL_PATCH_KEYS, prefer=VISION, default=1)
    if frames > 1:
        shape = (spec.batch * image.patches, frames, side, side, image.channels)
        yield image.patch_layout(**{image.main: spec.meta_tensor(*shape)})


def _large_images(image: Image) -> Iterator[Layout]:
    """Large whole images, for models that cut an image into tiles of several scales."""
    large = replace(image, height=LARGE_SIZE, width=LARGE_SIZE)
    size = f"{LARGE_SIZE} × {LARGE_SIZE}"
    note = f"the model cannot read an image of its config's size; {size} pixels are assumed"
    yield Layout({large.main: large.pixels()}, note)
