"""What is asked for, as dropdowns and sliders: read as a request, set from one."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import ipywidgets as widgets

from llmsim_magic.records.hardware.dtypes import DTYPES
from llmsim_magic.records.trace.workload import DEFAULT_CONTEXT, PHASES
from llmsim_magic.simulate.options import BY_NAME, OPTIONS, request_of
from llmsim_magic.simulate.request import ALL, Request
from llmsim_magic.simulate.views import VIEWS

# No option's value is None: a dropdown takes that for no option.
_BATCHES = tuple(2**power for power in range(11))
_CONTEXTS = (1, 16, DEFAULT_CONTEXT, *(2**power for power in range(9, 21)))
_TPS = (1, 2, 4, 8, 16)
_DEPTHS = [(BY_NAME["depth"].unset, 0), *((str(depth), depth) for depth in range(1, 9))]
_LAYERS = [("repeated layers once", frozenset()), ("every layer", "all")]


class Controls:
    """One widget for each thing that can be chosen."""

    def __init__(self, request: Request, models: Iterable[str]) -> None:
        build, drawn = request.build, request.selection
        self._given = request
        self.model = widgets.Combobox(
            value=str(request.model or ""),
            options=tuple(models),
            description="Model",
            placeholder="a hub id, a folder, a variable",
            continuous_update=False,
        )
        self.view = widgets.Dropdown(
            description="View", options=[(view.title, name) for name, view in VIEWS.items()]
        )
        self.phase = _dropdown("phase", PHASES)
        self.batch = Size("batch", _BATCHES, _first(request.batches, 1))
        self.context = Size("context", _CONTEXTS, _first(request.contexts, DEFAULT_CONTEXT))
        self.dtype = _dropdown("dtype", DTYPES)
        self.attn = _dropdown("attn")
        self.base = _dropdown("base", [("as declared", False), ("none (base model)", True)])
        self.hardware = _dropdown(
            "hardware", [name for name in BY_NAME["hardware"].choices if name != ALL]
        )
        self.weights = _dropdown("weight_dtype")
        self.cache = _dropdown("kv_dtype")
        self.tp = _dropdown("tp", list(map(str, _TPS)))
        self.depth = _dropdown("depth", _DEPTHS)
        self.level = _dropdown("level")
        self.layers = _dropdown("layers", _LAYERS)
        self.view.value = _first(request.views, "summary")
        self.phase.value = _first(request.phases, PHASES[0])
        self.dtype.value, self.attn.value = build.dtype or "", build.attn or ""
        self.base.value = build.base
        deployed, tp = request.deployment, request.build.parallel.tp
        _choose(self.hardware, _first(deployed.hardware, ""))
        self.weights.value = deployed.weight_dtype or ""
        self.cache.value = deployed.kv_dtype or ""
        _choose(self.tp, str(tp))
        self.level.value = drawn.level
        _choose(self.depth, drawn.depth or 0)
        _choose(self.layers, drawn.layers)
        self.view.observe(self._allow, "value")
        self._allow()

    def _allow(self, _: Any = None) -> None:
        """The view of many workloads takes the usual ones."""
        sizes = (self.batch, self.context)
        for control in (self.phase, *(part for size in sizes for part in size.widget.children)):
            control.disabled = self.view.value == "multi-config"

    @property
    def drawing(self) -> tuple[widgets.Widget, ...]:
        """What only graphs are drawn by."""
        return self.depth, self.level, self.layers

    @property
    def of_model(self) -> tuple[widgets.Widget, ...]:
        """What any view is made by, in the order that they stand in."""
        return (
            *(self.model, self.view, self.phase, self.batch.widget, self.context.widget),
            *(self.dtype, self.attn, self.base),
            *(self.hardware, self.weights, self.cache, self.tp),
        )

    @property
    def asking(self) -> Iterator[widgets.Widget]:
        """Those whose change is a new question; a slider moves its number."""
        sizes = {self.batch.widget: self.batch.number, self.context.widget: self.context.number}
        for control in (*self.of_model, *self.drawing):
            yield sizes.get(control, control)

    def request(self) -> Request:
        """The request that the controls make; the model is the text written there."""
        kept = {option.name: option.value(self._given) for option in OPTIONS}
        phases, batches, contexts = self._workload()
        chosen = {
            "phase": phases,
            "batch": batches,
            "context": contexts,
            "dtype": self.dtype.value or None,
            "attn": self.attn.value or None,
            "base": self.base.value,
            "hardware": (self.hardware.value,) if self.hardware.value else (),
            "weight_dtype": self.weights.value or None,
            "kv_dtype": self.cache.value or None,
            "tp": int(self.tp.value),
            "ep": 1,
            "depth": self.depth.value or None,
            "layers": self.layers.value,
            "level": self.level.value,
        }
        unused = {"explain": None, "compare": None, "csv": None, "overwrite": False, "sure": False}
        return request_of(self.model.value.strip(), (self.view.value,), kept | unused | chosen)

    def _workload(self) -> tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]:
        """One workload; for the view of many the eight usual ones."""
        if self.view.value == "multi-config":
            return (), (), ()
        return (self.phase.value,), (self.batch.number.value,), (self.context.number.value,)


def _dropdown(name: str, values: Sequence[Any] = ()) -> widgets.Dropdown:
    """The dropdown of an option: its own choices, or those given, after "not set" if it may be."""
    option = BY_NAME[name]
    options = [
        each if isinstance(each, tuple) else (each, each) for each in values or option.choices
    ]
    if option.unset and option.unset not in dict(options):
        options.insert(0, (option.unset, ""))
    return widgets.Dropdown(options=options, description=option.label)


class Size:
    """A number, and a slider over the usual ones; the number is what counts."""

    def __init__(self, name: str, usual: Sequence[int], value: int) -> None:
        label = BY_NAME[name].label
        self._usual = usual
        self.number = widgets.BoundedIntText(value, 1, 2**31 - 1, description=label)
        self.slider = widgets.SelectionSlider(
            options=[(f"{size:,}", size) for size in usual],
            value=self._nearest(value),
            description=f"{label} slider",
            readout=False,
            continuous_update=False,
        )
        self.widget = widgets.HBox([self.number, self.slider])
        self.widget.add_class("llmsim-size")
        self.number.observe(self._typed, "value")
        self.slider.observe(self._slid, "value")

    def _nearest(self, value: int) -> int:
        """The largest usual size that is not larger."""
        return max(size for size in self._usual if size <= value)

    def _typed(self, change: Any) -> None:
        self.slider.value = self._nearest(change["new"])

    def _slid(self, change: Any) -> None:
        if self._nearest(self.number.value) != change["new"]:
            self.number.value = change["new"]


def _choose(dropdown: widgets.Dropdown, value: Any) -> None:
    """Choose a value, also one that is not among the usual ones."""
    if value not in [option for _, option in dropdown.options]:
        words = str(value) if isinstance(value, int) else ", ".join(map(str, sorted(value)))
        dropdown.options = (*dropdown.options, (words, value))
    dropdown.value = value


def _first(values: Sequence[Any], otherwise: Any) -> Any:
    return values[0] if values else otherwise
