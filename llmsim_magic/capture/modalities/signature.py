"""What a forward takes, and the sizes of its inputs, read from its signature and the config."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import FunctionType, MethodType
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch

META = torch.device("meta")
HuggingFaceModel: TypeAlias = Any  # an nn.Module with a config, as transformers builds it
Keywords: TypeAlias = dict[str, Any]
MAX_INPUT_VALUES = 2**26  # inputs with known values take up host memory


class InputTooLarge(Exception):
    """An input with more values than fit in host memory."""


def check_input_size(*shape: int) -> None:
    """Raise `InputTooLarge` for a shape of more than `MAX_INPUT_VALUES` values."""
    if math.prod(shape) > MAX_INPUT_VALUES:
        text = " × ".join(f"{size:,}" for size in shape)
        raise InputTooLarge(
            f"an input of {text} values is too large; at most {MAX_INPUT_VALUES:,} are supported"
        )


@dataclass(frozen=True)
class InputSpec:
    """The batch size and context length of a model's inputs; its config supplies other sizes."""

    model: HuggingFaceModel
    batch: int
    context: int

    def __post_init__(self) -> None:
        check_input_size(self.batch, self.context)

    @cached_property
    def accepted(self) -> Mapping[str, inspect.Parameter]:
        """The keywords that the model's forward accepts."""
        return parameters(self.model.forward)

    @cached_property
    def required(self) -> tuple[str, ...]:
        """The keywords of the forward that have no default."""
        return tuple(
            name
            for name, parameter in self.accepted.items()
            if parameter.default is parameter.empty
        )

    @cached_property
    def main_inputs(self) -> tuple[str, ...]:
        """The model's `main_input_name`; some models have several."""
        name = getattr(self.model, "main_input_name", "input_ids")
        return (name,) if isinstance(name, str) else tuple(name)

    def first_accepted(self, names: tuple[str, ...]) -> str | None:
        """The first of these keywords that the forward accepts, its main inputs first."""
        candidates = (*self.main_inputs, *names)
        return next((each for each in candidates if each in names and each in self.accepted), None)

    def config_value(self, *names: str, prefer: tuple[str, ...] = ()) -> Any:
        """Look up a value in the config and its nested configs.

        Args:
            names: Alternative keys of the value.
            prefer: Words such as `vision`: nested configs whose path contains one are searched
                first, then the text config and the whole config, then all others.

        Returns:
            The first value that is not None, or None.
        """
        nested = list(nested_configs(self.model.config))
        preferred = [config for path, config in nested if any(word in path for word in prefer)]
        others = (config for _, config in nested)
        for config in (*preferred, *text_configs(self.model.config), *others):
            for name in names:
                value = getattr(config, name, None)
                if value is not None:
                    return value
        return None

    def config_int(self, *names: str, prefer: tuple[str, ...] = (), default: int) -> int:
        """A positive integer of the config, the last one of a list, or the default."""
        value = self.config_value(*names, prefer=prefer)
        if isinstance(value, (list, tuple)) and value:
            value = value[-1]
        return value if isinstance(value, int) and value > 0 else default

    def meta_tensor(self, *shape: int) -> torch.Tensor:
        """A tensor without values, of the model's dtype."""
        return torch.empty(shape, dtype=self.model.dtype, device=META)


# By the functions of methods: each pass asks for those of its model's forward several times.
_of_methods: WeakKeyDictionary[Any, Mapping[str, inspect.Parameter]] = WeakKeyDictionary()


def parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The named parameters of a function, without `*args` and `**kwargs`."""
    method = function.__func__ if isinstance(function, MethodType) else None
    found = None if method is None else _of_methods.get(method)
    if found is None:
        found = {
            name: parameter
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        }
        if isinstance(method, FunctionType):
            _of_methods[method] = found
    return found


def is_encoder_decoder(model: HuggingFaceModel) -> bool:
    """Whether the forward takes tokens for a decoder beside an encoder's input."""
    return "decoder_input_ids" in parameters(model.forward)


def nested_configs(config: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield a config and all configs inside it, each with its path."""
    yield path, config
    if depth < 4:
        for name, value in vars(config).items():
            if hasattr(value, "model_type") and hasattr(value, "to_dict"):
                yield from nested_configs(value, f"{path}.{name}", depth + 1)


def text_configs(config: Any) -> list[Any]:
    """The nested configs that describe a text model, followed by the config itself."""
    try:
        text = config.get_text_config()
    except ValueError:  # an encoder and a decoder have one each
        return [config.get_text_config(decoder=True), config.get_text_config(encoder=True), config]
    return [text] if text is config else [text, config]
