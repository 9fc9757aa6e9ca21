"""The panel's dropdowns and sliders: set from a request, and read as one."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import ipywidgets as widgets

from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.hardware.dtypes import DTYPES
from llmsim_magic.records.hardware.execution import RUNTIMES
from llmsim_magic.records.trace.workload import DEFAULT_CONTEXT, PHASES, TRAIN
from llmsim_magic.simulate.option_effect import (
    effective_values,
    options_without_effect,
    require_panel_options,
)
from llmsim_magic.simulate.options import BY_NAME, OPTIONS, request_of
from llmsim_magic.simulate.request import ALL, Request

# A dropdown treats the value None as "nothing selected", so "not set" is "", 0 or an empty set.
_BATCHES = tuple(2**power for power in range(11))
_CONTEXTS = (1, 16, DEFAULT_CONTEXT, *(2**power for power in range(9, 21)))
_TPS = (1, 2, 4, 8, 16)
_DEPTHS = [(BY_NAME["depth"].unset, 0), *((str(depth), depth) for depth in range(1, 9))]
_ALL_WORKLOADS = "multi-config"  # the view without one phase, batch and context
_OF_INFERENCE = ("runtime", "weight_dtype", "kv_dtype")
_WITHOUT_TRAINING = {each.name: each.default for each in OPTIONS if each.group == "training"}
_LAYERS = [("fold identical", frozenset()), ("every layer", "all")]


class Controls:
    """The widgets of the panel that select a model, a workload and a device.

    Which options have an effect depends on the view, which the panel's tabs select.
    """

    def __init__(self, request: Request, models: Iterable[str]) -> None:
        build, selection = request.build, request.selection
        self._given = request
        self.model = widgets.Combobox(
            value=str(request.model or ""),
            options=tuple(models),
            description="Model",
            placeholder="a hub id, a folder, a variable",
            continuous_update=False,
        )
        self.phase = _dropdown("phase", (*PHASES, TRAIN))
        self.batch = NumberSlider("batch", _BATCHES, _first(request.batches, 1))
        self.context = NumberSlider("context", _CONTEXTS, _first(request.contexts, DEFAULT_CONTEXT))
        self.dtype = _dropdown("dtype", DTYPES)
        self.attn = _dropdown("attn")
        self.base = _dropdown("base", [("as declared", False), ("none (base model)", True)])
        self.hardware = _dropdown(
            "hardware", [name for name in BY_NAME["hardware"].choices if name != ALL]
        )
        self.runtime = _dropdown("runtime", list(RUNTIMES))
        self.weights = _dropdown("weight_dtype")
        self.cache = _dropdown("kv_dtype")
        self.tp = _dropdown("tp", list(map(str, _TPS)))
        self.optimizer = _dropdown("optimizer")
        self.precision = _dropdown("precision")
        self.checkpointing = _dropdown("checkpointing", [("off", False), ("on", True)])
        self.depth = _dropdown("depth", _DEPTHS)
        self.level = _dropdown("level")
        self.layers = _dropdown("layers", _LAYERS)
        self.phase.value = _first(request.phases, PHASES[0])
        self.dtype.value, self.attn.value = build.dtype or "", build.attn or ""
        self.base.value = build.base
        deployed, tp = request.deployment, request.build.parallel.tp
        _select(self.hardware, _first(deployed.hardware, ""))
        _select(self.runtime, deployed.runtime or "")
        self.weights.value = deployed.weight_dtype or ""
        self.cache.value = deployed.kv_dtype or ""
        _select(self.tp, str(tp))
        self.optimizer.value = request.training.optimizer
        self.precision.value = request.training.precision or ""
        self.checkpointing.value = request.training.checkpointing
        self.level.value = selection.level
        _select(self.depth, selection.depth or 0)
        _select(self.layers, selection.layers)

    def request(self, view: str) -> Request:
        """The request of a view with the values that have an effect on it.

        Its model is the text of the field.

        Raises:
            InvalidValue: a field has an illegal value.
        """
        chosen = self._chosen(view, *self._workload(view))
        require_panel_options(chosen)
        return request_of(chosen.model, chosen.views, effective_values(chosen))

    def disable_unused(self, view: str) -> None:
        """Disable the controls without effect on a view; those of training show in it alone."""
        sizes = (self.batch, self.context)
        for control in (self.phase, *(part for size in sizes for part in size.widget.children)):
            control.disabled = view == _ALL_WORKLOADS
        unused = options_without_effect(self._chosen(view))
        controls = {"weight_dtype": self.weights, "kv_dtype": self.cache, "runtime": self.runtime}
        for name, control in controls.items():
            control.disabled = name in unused or self._is_step
        self.dtype.disabled = self._is_step and bool(self.precision.value)
        for control in self._of_training:
            control.layout.display = None if self._is_step else "none"

    @property
    def _is_step(self) -> bool:
        """Whether the phase is a training step."""
        return bool(self.phase.value == TRAIN)

    @property
    def _of_training(self) -> tuple[widgets.Widget, ...]:
        return self.optimizer, self.precision, self.checkpointing

    @property
    def drawing(self) -> tuple[widgets.Widget, ...]:
        """The controls that only graphs use."""
        return self.depth, self.level, self.layers

    @property
    def options(self) -> tuple[widgets.Widget, ...]:
        """The controls besides the model that every view uses, in display order."""
        return (
            *(self.phase, self.batch.widget, self.context.widget, *self._of_training),
            *(self.dtype, self.attn, self.base),
            *(self.hardware, self.runtime, self.weights, self.cache, self.tp),
        )

    @property
    def observed(self) -> Iterator[widgets.Widget]:
        """The controls whose change requests a report; a slider changes its number field."""
        sizes = {self.batch.widget: self.batch.number, self.context.widget: self.context.number}
        for control in (self.model, *self.options, *self.drawing):
            yield sizes.get(control, control)

    def _chosen(
        self,
        view: str,
        phases: tuple[str, ...] = (),
        batches: tuple[int, ...] = (),
        contexts: tuple[int, ...] = (),
    ) -> Request:
        """The request of a view and a workload with all other values."""
        kept = {option.name: option.value(self._given) for option in OPTIONS}
        chosen = {
            "phase": phases,
            "batch": batches,
            "context": contexts,
            "dtype": self.dtype.value or None,
            "attn": self.attn.value or None,
            "base": self.base.value,
            "hardware": (self.hardware.value,) if self.hardware.value else (),
            "runtime": self.runtime.value or None,
            "weight_dtype": self.weights.value or None,
            "kv_dtype": self.cache.value or None,
            "tp": int(self.tp.value),
            "ep": self._ep(),
            "depth": self.depth.value or None,
            "layers": self.layers.value,
            "level": self.level.value,
        }
        of_phase = self._for_training() if TRAIN in phases else _WITHOUT_TRAINING
        return request_of(self.model.value.strip(), (view,), kept | chosen | of_phase)

    def _for_training(self) -> dict[str, Any]:
        """The values of a training step, without those that it does not have."""
        chosen = {
            "optimizer": self.optimizer.value,
            "precision": self.precision.value or None,
            "checkpointing": self.checkpointing.value,
        }
        if self.precision.value:
            chosen["dtype"] = None
        return chosen | {name: BY_NAME[name].default for name in _OF_INFERENCE}

    def _ep(self) -> int:
        """The first request's expert-parallel size while `tp` is unchanged; otherwise 1."""
        given = self._given.build.parallel
        return given.ep if int(self.tp.value) == given.tp else 1

    def _workload(self, view: str) -> tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]:
        """Phases, batches and contexts: one each, or empty (the default) for many workloads."""
        if view == _ALL_WORKLOADS:
            return (TRAIN,) if self._is_step else (), (), ()
        return (self.phase.value,), self.batch.sizes(), self.context.sizes()


def _dropdown(name: str, values: Sequence[Any] = ()) -> widgets.Dropdown:
    """A dropdown of an option, with its choices or the given ones, and an entry for "not set"."""
    option = BY_NAME[name]
    options = [
        each if isinstance(each, tuple) else (each, each) for each in values or option.choices
    ]
    if option.unset and option.unset not in dict(options):
        options.insert(0, (option.unset, ""))
    return widgets.Dropdown(options=options, description=option.label)


class NumberSlider:
    """A number field, and a slider over common values.

    The number field keeps whatever is typed: a legal value moves the slider, an illegal one is an
    error of `sizes`.
    """

    def __init__(self, name: str, common: Sequence[int], value: int) -> None:
        option = BY_NAME[name]
        self._option = option
        self._common = common
        self.number = widgets.Text(str(value), description=option.label, continuous_update=False)
        self.slider = widgets.SelectionSlider(
            options=[(f"{size:,}", size) for size in common],
            value=self._nearest(value),
            description=f"{option.label} slider",
            readout=False,
            continuous_update=False,
        )
        self.widget = widgets.HBox([self.number, self.slider])
        self.widget.add_class("llmsim-size")
        self.number.observe(self._move_slider, "value")
        self.slider.observe(self._set_number, "value")

    def sizes(self) -> tuple[int, ...]:
        """The sizes that are typed, as the option of the magic reads them.

        Raises:
            InvalidValue: the text is no list of whole numbers of at least 1.
        """
        parse: Any = self._option.parse
        return tuple(parse(self.number.value))

    def _nearest(self, value: int) -> int:
        """The largest common value that is not larger."""
        return max(size for size in self._common if size <= value)

    def _move_slider(self, _: Any) -> None:
        with suppress(InvalidValue):
            self.slider.value = self._nearest(self.sizes()[0])

    def _set_number(self, change: Any) -> None:
        with suppress(InvalidValue):
            if self._nearest(self.sizes()[0]) == change["new"]:
                return
        self.number.value = str(change["new"])


def _select(dropdown: widgets.Dropdown, value: Any) -> None:
    """Select a value; one that the dropdown does not have yet is added."""
    if value not in [option for _, option in dropdown.options]:
        is_one = isinstance(value, int | str)
        label = str(value) if is_one else ", ".join(map(str, sorted(value)))
        dropdown.options = (*dropdown.options, (label, value))
    dropdown.value = value


def _first(values: Sequence[Any], default: Any) -> Any:
    return values[0] if values else default
