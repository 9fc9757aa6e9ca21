"""What is made ready once for a model and serves every pass: hooks, names, kinds of layers."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any, Protocol

import torch

from llmsim_magic.capture.kernels.rng import preserved_rng
from llmsim_magic.capture.kernels.tensors import dtype_name, unrecorded
from llmsim_magic.capture.meta.snapshot import Snapshot
from llmsim_magic.capture.replay.layer_matching import Layer, matched_layers
from llmsim_magic.records.errors import CannotTrace
from llmsim_magic.records.trace.recorded import Role
from llmsim_magic.records.trace.trace import Module, Parameter, Scalar


class HookListener(Protocol):
    """Who is told of module calls, and answers those of repeated layers."""

    def enter(self, path: str, module: torch.nn.Module, inputs: Any) -> None: ...

    def leave(self, module: torch.nn.Module, output: Any) -> None: ...

    def layer(self, layer: Layer, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any: ...


class ModelHooks:
    """A weightless model of our own, with hooks that tell whoever listens to a pass.

    The model is nobody else's, so its hooks stay on it, and what it is made of is read once.
    """

    def __init__(
        self, model: torch.nn.Module, spread: Callable[[torch.nn.Module], None] | None = None
    ) -> None:
        self.modules = tuple(_modules(model))
        self.parameters = tuple(_parameters(model))
        self.roles = _roles(model)
        self.has_changed = False  # whether the last pass left something in the model
        self.left: Any = None  # what the last pass left for the next one
        self._listener: HookListener | None = None
        self._thread = 0  # the one that is listened to
        self._strayed: str | None = None  # a module that ran in another
        self._ran: set[torch.nn.Module] = set()
        layers = matched_layers(model)
        for path, module in model.named_modules():
            if path in layers:
                self._answer(layers[path])
            else:
                self._hook(path, module)
        if spread is not None:
            spread(model)
        self._snapshot = Snapshot(model.modules())

    @contextmanager
    def told(self, listener: HookListener) -> Iterator[None]:
        """While open, the listener is told of every module call.

        Raises `CannotTrace` at the end where modules ran in another thread, unheard.
        """
        self._listener, self._thread, self._strayed = listener, get_ident(), None
        try:
            with torch.no_grad():
                yield
        finally:
            self._listener = None
        if self._strayed is not None:
            raise CannotTrace(
                f"{self._strayed or 'the module'} runs in a thread that its model starts: "
                "what it does there cannot be heard"
            )

    def _told(self, path: str) -> HookListener | None:
        """Who listens to a module that is called now."""
        if self._listener is None or self._thread == get_ident():
            return self._listener
        self._strayed = path
        return None

    @contextmanager
    def as_it_was(self, *, only_after_errors: bool = False) -> Iterator[None]:
        """Put back what the modules that run change, and the random generators.

        With `only_after_errors` a pass that succeeds keeps what it left in the model.
        """
        keep = False
        try:
            with preserved_rng():
                yield
            keep = only_after_errors
        finally:
            if not keep:
                self.put_back()

    def put_back(self) -> None:
        """Put back what the modules that ran have changed."""
        self.has_changed = self._snapshot.restore(self._ran)
        self._ran.clear()

    def _hook(self, path: str, module: torch.nn.Module) -> None:
        def enter(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            self._ran.add(module)
            if (listener := self._told(path)) is not None:
                with unrecorded():
                    listener.enter(path, module, (args, kwargs))

        def leave(module: torch.nn.Module, args: Any, output: Any) -> None:
            if (listener := self._told(path)) is not None:
                with unrecorded():
                    listener.leave(module, output)

        module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True)
        module.register_forward_hook(leave, always_call=True)

    def _answer(self, layer: Layer) -> None:
        forward = layer.module.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            self._ran.add(layer.module)
            return forward(*args, **kwargs)

        def answered(*args: Any, **kwargs: Any) -> Any:
            if (listener := self._told(layer.path)) is None:
                return run(*args, **kwargs)
            return listener.layer(layer, run, args, kwargs)

        answered.__wrapped__ = forward  # type: ignore[attr-defined]
        layer.module.forward = answered


def _modules(model: torch.nn.Module) -> Iterator[Module]:
    for path, module in model.named_modules():
        is_list = isinstance(module, torch.nn.ModuleList)
        yield Module(path, type(module).__name__, is_list, _attributes(module))


def _attributes(module: torch.nn.Module) -> dict[str, Scalar]:
    """The module's own numbers, flags and words: `in_features`, `eps`, `layer_idx`."""
    return {
        key: _scalar(value)
        for key, value in vars(module).items()
        if not key.startswith("_") and key != "training" and isinstance(value, (int, float, str))
    }


def _scalar(value: float | str) -> Scalar:
    """The value as a plain type that JSON has; an infinite one in words."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    return str(value).encode(errors="replace").decode()


def _parameters(model: torch.nn.Module) -> Iterator[Parameter]:
    """Every name of every parameter and buffer, shared ones under each of theirs."""
    first: dict[int, str] = {}
    for is_buffer, named in (
        (False, model.named_parameters(remove_duplicate=False)),
        (True, model.named_buffers(remove_duplicate=False)),
    ):
        for name, tensor in named:
            known = first.setdefault(id(tensor), name)
            yield Parameter(
                name,
                name.rpartition(".")[0],
                tuple(tensor.shape),
                dtype_name(tensor.dtype),
                tensor.element_size(),
                tensor.requires_grad,
                is_buffer,
                None if known == name else known,
            )


def _roles(model: torch.nn.Module) -> dict[int, tuple[Role, str]]:
    """Whose each storage of the model is, by the storage's address."""
    found: dict[int, tuple[Role, str]] = {}
    for name, parameter in model.named_parameters():
        found.setdefault(parameter.untyped_storage()._cdata, ("parameter", name))
    for name, buffer in model.named_buffers():
        found.setdefault(buffer.untyped_storage()._cdata, ("buffer", name))
    return found
