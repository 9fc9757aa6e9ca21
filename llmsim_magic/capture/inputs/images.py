"""Images and films, in the layouts that vision models read them in."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from llmsim_magic.capture.inputs.modality import Layout
from llmsim_magic.capture.inputs.signature import InputSpec, held

VISION = ("vision", "visual", "image", "backbone", "encoder")
_KEYWORDS = (
    "pixel_values",
    "pixel_values_videos",
    "flattened_patches",
    "image",
    "image_pixel_values",
)
USUAL_SIZE = 224  # pixels, where the config fixes no size
LARGE_SIZE = 1536
USUAL_FRAMES = 8


def keyword(ask: InputSpec) -> str | None:
    """The keyword that takes pixels, or None for a model that sees nothing."""
    is_tower = {"grid_thw", "image_grid_thw"} & set(ask.taken) or set(_KEYWORDS) & set(ask.main)
    if is_tower and "input_ids" not in ask.taken:
        return ask.keyword(_KEYWORDS) or next(iter(ask.taken))
    return ask.keyword(_KEYWORDS)


def size(ask: InputSpec) -> tuple[int, int]:
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


def size_is_free(ask: InputSpec) -> bool:
    """Whether the config leaves the size of an image open."""
    return ask.fact("image_size", "img_size", "input_size", near=VISION) is None


@dataclass(frozen=True)
class Image:
    """The image of each sample: the keyword that takes it, its size, the patches it is cut into."""

    ask: InputSpec
    main: str
    height: int
    width: int

    @cached_property
    def said(self) -> str:
        if size_is_free(self.ask):
            return f"the config fixes no image size: {self.height} × {self.width} is taken"
        return f"the model fixes its image at {self.height} × {self.width}"

    @cached_property
    def channels(self) -> int:
        names = ("num_channels", "in_channels", "in_chans", "image_channels")
        return self.ask.number(*names, near=VISION, default=3)

    @cached_property
    def patch(self) -> int:
        return self.ask.number("patch_size", near=VISION, default=16)

    @cached_property
    def merge(self) -> int:
        """Patches a side that become one: the grid holds whole ones of them."""
        names = (
            "spatial_merge_size",
            "pooling_kernel_size",
            "downsample_factor",
            "merge_kernel_size",
            "scale_factor",
        )
        return math.lcm(*(self.ask.number(name, near=VISION, default=1) for name in names))

    @cached_property
    def rows(self) -> int:
        return max(self.height // (self.patch * self.merge), 1) * self.merge

    @cached_property
    def columns(self) -> int:
        return max(self.width // (self.patch * self.merge), 1) * self.merge

    @cached_property
    def patches(self) -> int:
        return self.rows * self.columns

    @cached_property
    def values(self) -> int:
        """Values in a patch."""
        return self.channels * self.patch * self.patch

    @cached_property
    def grid(self) -> torch.Tensor:
        """Films' frames, rows and columns of every sample."""
        return torch.tensor([1, self.rows, self.columns]).repeat(self.ask.batch, 1)

    def pixels(self, *many: int) -> torch.Tensor:
        """`[batch, *many, channels, height, width]`."""
        return self.ask.unknown(self.ask.batch, *many, self.channels, self.height, self.width)

    def cut(self, **keywords: torch.Tensor) -> Layout:
        return Layout(keywords, f"{self.said}, {self.rows} × {self.columns} patches")


Family = Callable[[Image], Iterator[Layout]]


def layouts(ask: InputSpec) -> Iterator[Layout]:
    """Ways to hand over one image, or one film, of each sample, the likeliest first."""
    main = keyword(ask)
    if main is None:
        return
    picture = Image(ask, main, *size(ask))
    held(ask.batch, picture.rows, picture.columns)
    is_film = main == "pixel_values_videos" or ask.fact("num_frames", "frames_per_clip") is not None
    wholes = (_films, _wholes, _pieces) if is_film else (_wholes, _pieces, _films)
    families: tuple[Family, ...] = (
        _with_grids,
        _with_places,
        _in_a_row,
        *wholes,
        _bare_patches,
        _large,
    )
    for family in families:
        yield from family(picture)


def _with_grids(picture: Image) -> Iterator[Layout]:
    """Patches of all samples in a row `[batch · patches, values]`, and the grid of each sample."""
    grids = ("image_grid_thw", "grid_thw", "image_grid_hw", "video_grid_thw")
    if not set(grids) & set(picture.ask.taken):
        return
    count = picture.ask.batch * picture.patches
    temporal = picture.ask.number("temporal_patch_size", near=VISION, default=1)
    merges = torch.full((picture.ask.batch,), picture.merge)
    told = dict.fromkeys(grids, picture.grid) | {
        "image_grid_hw": picture.grid[:, 1:],
        "merge_sizes": merges,
        "image_merge_sizes": merges,
    }
    for shape in ((picture.values * temporal,), (picture.channels, picture.patch, picture.patch)):
        yield picture.cut(**{picture.main: picture.ask.unknown(count, *shape)}, **told)


def _with_places(picture: Image) -> Iterator[Layout]:
    """Patches `[batch, patches, values]`, and the shape of their grid or the place of each."""
    batch, patches, columns = picture.ask.batch, picture.patches, picture.columns
    pixels = {picture.main: picture.ask.unknown(batch, patches, picture.values)}
    if "spatial_shapes" in picture.ask.taken:
        whole = torch.ones(batch, patches, dtype=torch.long)
        yield picture.cut(**pixels, pixel_attention_mask=whole, spatial_shapes=picture.grid[:, 1:])
    if names := {"image_position_ids", "pixel_position_ids"} & set(picture.ask.taken):
        numbers = torch.arange(patches)
        places = torch.stack((numbers % columns, numbers // columns), -1)
        yield picture.cut(**pixels, **dict.fromkeys(names, places.expand(batch, patches, 2)))


def _in_a_row(picture: Image) -> Iterator[Layout]:
    """Patches that hold their own place, or those of all samples beside each other as one strip."""
    ask, batch, patches = picture.ask, picture.ask.batch, picture.patches
    if picture.main == "flattened_patches":
        yield picture.cut(flattened_patches=ask.unknown(batch, patches, picture.values + 2))
    if "target_sizes" in ask.taken:
        side = picture.patch
        strip = ask.unknown(1, picture.channels, side, batch * patches * side)
        yield picture.cut(**{picture.main: strip}, target_sizes=picture.grid[:, 1:])


def _wholes(picture: Image) -> Iterator[Layout]:
    """Whole images `[batch, channels, height, width]`."""
    pixels = {picture.main: picture.pixels()}
    yield Layout(pixels | _sizes(picture), picture.said)
    yield Layout(pixels, picture.said)


def _pieces(picture: Image) -> Iterator[Layout]:
    """Pieces of an image in a dimension of their own."""
    batch = picture.ask.batch
    tiles = picture.ask.number("max_num_tiles", near=VISION, default=1)
    tiled = {
        picture.main: picture.pixels(1, tiles),
        "aspect_ratio_ids": torch.ones(batch, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(batch, 1, tiles, dtype=torch.long),
    }
    yield Layout(tiled, f"{picture.said}, in {tiles} tiles")
    for count in (1, 2, 3, 4, 5):
        pixels = picture.pixels(count)
        held(batch, count, picture.height, picture.width)
        mask = torch.ones(batch, count, picture.height, picture.width, dtype=torch.bool)
        pieces = {picture.main: pixels, "pixel_attention_mask": mask} | _sizes(picture)
        yield Layout(pieces, f"{picture.said}, in {count} pieces" if count > 1 else picture.said)


def _sizes(picture: Image) -> dict[str, torch.Tensor]:
    size = torch.tensor([picture.height, picture.width])
    return {"image_sizes": size.repeat(picture.ask.batch, 1)}


def _films(picture: Image) -> Iterator[Layout]:
    """Films `[batch, frames, channels, height, width]`."""
    names = ("num_frames", "frames_per_clip")
    frames = picture.ask.number(*names, near=VISION, default=USUAL_FRAMES)
    said = f"{picture.said}, a film of {frames} frames"
    yield Layout({picture.main: picture.pixels(frames)}, said)


def _bare_patches(picture: Image) -> Iterator[Layout]:
    """Patches `[batch, patches, values]` and nothing that tells their grid."""
    batch, patches = picture.ask.batch, picture.patches
    yield picture.cut(**{picture.main: picture.ask.unknown(batch, patches, picture.values)})


def _large(picture: Image) -> Iterator[Layout]:
    """Whole images, large ones: what cuts them into pieces of several sizes reads no small one."""
    large = replace(picture, height=LARGE_SIZE, width=LARGE_SIZE)
    said = f"no image of its config's size can be read: {LARGE_SIZE} × {LARGE_SIZE} is taken"
    yield Layout({large.main: large.pixels()}, said)
