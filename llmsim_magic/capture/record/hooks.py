"""Hooks, names and storages of a model, prepared once and used by every pass."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from threading import get_ident
from typing import Any, Protocol

import torch

from llmsim_magic.capture.kernels.rng import preserved_rng
from llmsim_magic.capture.kernels.tensors import dtype_name, held_tensors, unrecorded
from llmsim_magic.capture.meta.snapshot import Snapshot
from llmsim_magic.capture.record.lazy_outputs import computed
from llmsim_magic.capture.replay.layer_matching import Layer, matched_layers
from llmsim_magic.records.errors import CannotTrace
from llmsim_magic.records.printable import is_printable
from llmsim_magic.records.trace.recorded import Role
from llmsim_magic.records.trace.trace import Module, Parameter, Scalar

PACKED = "weights_per_item"  # attribute of a parameter whose items hold several weights each


class HookListener(Protocol):
    """Receives module calls; runs or replays repeated layers."""

    def enter(self, path: str, module: torch.nn.Module, inputs: Any) -> None: ...

    def leave(self, module: torch.nn.Module, output: Any) -> None: ...

    def layer(self, layer: Layer, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any: ...


class ModelHooks:
    """Hooks on all modules of a model, which report to the listener of the current pass.

    The model is our own copy, so its hooks stay registered.

    Args:
        model: A model on `meta`.
        add_collectives: Registers the collectives of a rank on the model, after our hooks.

    Attributes:
        modules: All modules of the model.
        parameters: All parameters and buffers of the model, under each of their names.
        roles: Role and name of each storage of the model, by storage address.
        has_changed: Whether the last pass changed the state of the model.
        prefill_cache: The cache that the last prefill left for a decode step, if any.
        states: Those of `kept_tensors` that a decode step reads; None if not known yet.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        add_collectives: Callable[[torch.nn.Module], None] | None = None,
    ) -> None:
        self._model = model
        self.modules = tuple(_modules(model))
        self.parameters = tuple(_parameters(model))
        self.roles = _roles(model)
        self.has_changed = False
        self.prefill_cache: Any = None
        self.states: frozenset[str] | None = None
        self._listener: HookListener | None = None
        self._thread = 0  # the thread of the current pass
        self._other_thread: str | None = None  # path of a module that ran in another thread
        self._ran: set[torch.nn.Module] = set()
        layers = matched_layers(model)
        model.register_forward_hook(_compute_output)  # before the hook that sees the output
        for path, module in model.named_modules():
            if path in layers:
                self._replace_forward(layers[path])
            else:
                self._hook(path, module)
        if add_collectives is not None:
            add_collectives(model)
        self._paths = {module: path for path, module in model.named_modules()}
        self._places = {module: place for place, module in enumerate(self._paths)}
        self._snapshot = Snapshot(self._paths)

    @cached_property
    def are_names_printable(self) -> bool:
        """Whether every string in `modules` and `parameters` is printable."""
        return is_printable((self.modules, self.parameters))

    @contextmanager
    def reporting_to(self, listener: HookListener) -> Iterator[None]:
        """Report every module call in this context to a listener.

        Args:
            listener: Receives the calls made in the current thread.

        Raises:
            CannotTrace: Modules ran in another thread.
        """
        self._listener, self._thread, self._other_thread = listener, get_ident(), None
        try:
            yield
        finally:
            self._listener = None
        if self._other_thread is not None:
            raise CannotTrace(
                f"{self._other_thread or 'the module'} runs in a thread that its model starts; "
                "only modules that run in the calling thread can be traced"
            )

    def _listener_for(self, path: str) -> HookListener | None:
        """The listener for a module that is called now; None outside its thread."""
        if self._listener is None or self._thread == get_ident():
            return self._listener
        self._other_thread = path
        return None

    @contextmanager
    def restored(self, *, only_after_errors: bool = False) -> Iterator[None]:
        """Restore the state of modules that ran, and the random generators, on exit.

        Args:
            only_after_errors: Keep the changed state if the pass succeeds.
        """
        keep = False
        try:
            with preserved_rng():
                yield
            keep = only_after_errors
        finally:
            if not keep:
                self.restore()

    def restore(self) -> None:
        """Restore the state of the modules that ran since the last call."""
        self.has_changed = self._snapshot.restore(self._ran)
        self._ran.clear()

    def kept_tensors(self) -> dict[str, torch.Tensor]:
        """Data that the pass left in attributes of modules, by path; not what it only counts.

        A tensor whose values are known, such as a table of angles, depends on no data.
        """
        paths = self._paths
        ran = sorted(self._ran & paths.keys(), key=self._places.__getitem__)
        found: dict[str, torch.Tensor] = {}
        for module, name, value, saved in self._snapshot.changed(ran):
            before = {id(tensor) for _, tensor in held_tensors(name, saved)}
            path = paths[module] if name == "_buffers" else f"{paths[module]}.{name}"
            found |= {
                key.removeprefix("."): tensor
                for key, tensor in held_tensors(path.removeprefix("."), value)
                if id(tensor) not in before and tensor.is_meta and tensor.is_floating_point()
            }
        return found

    def _hook(self, path: str, module: torch.nn.Module) -> None:
        def enter(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            self._ran.add(module)
            if (listener := self._listener_for(path)) is not None:
                with unrecorded():
                    listener.enter(path, module, (args, kwargs))

        def leave(module: torch.nn.Module, args: Any, output: Any) -> None:
            if (listener := self._listener_for(path)) is not None:
                with unrecorded():
                    listener.leave(module, output)

        module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True)
        module.register_forward_hook(leave, always_call=True)

    def _replace_forward(self, layer: Layer) -> None:
        forward = layer.module.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            self._ran.add(layer.module)
            return forward(*args, **kwargs)

        def run_or_replay(*args: Any, **kwargs: Any) -> Any:
            if (listener := self._listener_for(layer.path)) is None:
                return run(*args, **kwargs)
            return listener.layer(layer, run, args, kwargs)

        run_or_replay.__wrapped__ = forward  # type: ignore[attr-defined]
        layer.module.forward = run_or_replay


def _compute_output(module: torch.nn.Module, args: Any, output: Any) -> Any:
    return computed(output)


def _modules(model: torch.nn.Module) -> Iterator[Module]:
    for path, module in model.named_modules():
        is_list = isinstance(module, torch.nn.ModuleList)
        yield Module(path, type(module).__name__, is_list, _attributes(module))


def _attributes(module: torch.nn.Module) -> dict[str, Scalar]:
    """The numbers, flags and strings among a module's attributes, such as `in_features`."""
    return {
        key: _scalar(value)
        for key, value in vars(module).items()
        if not key.startswith("_") and key != "training" and isinstance(value, (int, float, str))
    }


def _scalar(value: float | str) -> Scalar:
    """The value as a plain type of JSON; infinity and NaN as strings."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    return str(value).encode(errors="replace").decode()


def _parameters(model: torch.nn.Module) -> Iterator[Parameter]:
    """All parameters and buffers; a shared one under each of its names."""
    first: dict[int, str] = {}
    for is_buffer, named in (
        (False, model.named_parameters(remove_duplicate=False)),
        (True, model.named_buffers(remove_duplicate=False)),
    ):
        for name, tensor in named:
            first_name = first.setdefault(id(tensor), name)
            yield Parameter(
                name=name,
                owner=name.rpartition(".")[0],
                shape=tuple(tensor.shape),
                dtype=dtype_name(tensor.dtype),
                itemsize=tensor.element_size(),
                trainable=tensor.requires_grad,
                is_buffer=is_buffer,
                tied_to=None if first_name == name else first_name,
                packed=getattr(tensor, PACKED, 1),
            )


def _roles(model: torch.nn.Module) -> dict[int, tuple[Role, str]]:
    """Role and name of each storage of the model, by storage address."""
    found: dict[int, tuple[Role, str]] = {}
    for name, parameter in model.named_parameters():
        found.setdefault(parameter.untyped_storage()._cdata, ("parameter", name))
    for name, buffer in model.named_buffers():
        found.setdefault(buffer.untyped_storage()._cdata, ("buffer", name))
    return found
