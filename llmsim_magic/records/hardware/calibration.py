"""What was learnt from measurements: how much of a datasheet's figures a class of kernels gets."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from llmsim_magic.records.hardware.kernel_shapes import Coordinates, KernelShape

# How a kernel was started: replayed in a graph, between events of a stream, or by the host.
Regime = Literal["graph", "events", "eager"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured kernel."""

    size: KernelShape
    seconds: float
    regime: Regime = "graph"


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """How a device runs one class of kernels.

    `launch_s`: the least time of a kernel replayed in a graph; `regimes_s`: what other ways to
    start it add. How many times longer than at peak (`compute`), than at full bandwidth (`memory`),
    and than compute units take to load the bytes (`unit`); `sharpness`: how well those overlap (1
    not at all). `item_s`: for each sequence that a compute unit of 2 GHz is given, or each other
    rank. `hot`: what share of the time data takes that the last-level cache still holds, of which
    `cached` is there for it. `tile`: how many rows and columns of a tile the fixed work of a tile
    is worth.
    """

    launch_s: float
    compute: float
    memory: float
    unit: float
    sharpness: float
    item_s: float
    hot: float
    cached: float
    tile: float
    regimes_s: dict[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """What the constants leave over: log(measured ÷ predicted) as a sum over measured places.

    `scales` are the distances, in powers of two, over which two places have much in common.
    Surfaces are compared by identity: they are large, and results are cached by them.
    """

    scales: Coordinates
    places: tuple[Coordinates, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Band:
    """Between which factors of a prediction nine of ten measurements lie."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A device's constants for a class, with the bands earned near to what was measured and far.

    `near`: of cross-validation; `far`: of the constants alone.
    """

    constants: Constants
    surface: Surface
    near: Band
    far: Band
    samples: int
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Host:
    """What the host takes to start a kernel, to make a view, and to call an operator."""

    kernel_s: float
    view_s: float
    operator_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Fits by class of kernels and device, compared by identity as `Surface` is.

    `unseen` are the bands of devices that were never measured, by class, as earned by leaving one
    device out at a time. `hosts` are what starting eagerly costs, by device; `passes` the bands
    that whole passes earned end to end, by phase.
    """

    fits: Mapping[str, Mapping[str, Fitted]] = field(hash=False)
    unseen: Mapping[str, Band] = field(hash=False)
    hosts: Mapping[str, Host] = field(default_factory=dict, hash=False)
    passes: Mapping[str, Band] = field(default_factory=dict, hash=False)
