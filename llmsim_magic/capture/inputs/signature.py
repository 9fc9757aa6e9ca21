"""What a pass is asked for, and where the sizes of its inputs are looked up."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch

META = torch.device("meta")
HuggingFaceModel: TypeAlias = Any  # an nn.Module with a config, as transformers builds it
Keywords: TypeAlias = dict[str, Any]
MOST = 2**26  # values of an input that are known, and so take up memory


class TooLarge(Exception):
    """An input that cannot be made here."""


def held(*sizes: int) -> None:
    """Raises `TooLarge` for the shape of an input that memory should not hold."""
    if math.prod(sizes) > MOST:
        shape = " × ".join(f"{size:,}" for size in sizes)
        raise TooLarge(f"an input of {shape} values, where {MOST:,} can be held")


@dataclass(frozen=True)
class InputSpec:
    """A batch and a context for one model, whose config names the sizes."""

    model: HuggingFaceModel
    batch: int
    context: int

    def __post_init__(self) -> None:
        held(self.batch, self.context)

    @cached_property
    def taken(self) -> Mapping[str, inspect.Parameter]:
        """The keywords that the model's forward takes."""
        return parameters(self.model.forward)

    @cached_property
    def required(self) -> tuple[str, ...]:
        """Those that it cannot do without."""
        return tuple(
            name for name, parameter in self.taken.items() if parameter.default is parameter.empty
        )

    @cached_property
    def main(self) -> tuple[str, ...]:
        """What the model itself calls its main input; several for some."""
        name = getattr(self.model, "main_input_name", "input_ids")
        return (name,) if isinstance(name, str) else tuple(name)

    def keyword(self, names: tuple[str, ...]) -> str | None:
        """Which of these keywords the forward takes, the model's own main input first."""
        taken = [name for name in (*self.main, *names) if name in names and name in self.taken]
        return taken[0] if taken else None

    def fact(self, *names: str, near: tuple[str, ...] = ()) -> Any:
        """The first of these keys that a config holds, or None.

        Parts of the config whose name holds one of the words `near` are asked first, then the
        whole config and its text part, then every other part.
        """
        parts = list(config_parts(self.model.config))
        closest = [part for path, part in parts if any(word in path for word in near)]
        for config in (*closest, *text_configs(self.model.config), *(part for _, part in parts)):
            for name in names:
                value = getattr(config, name, None)
                if value is not None:
                    return value
        return None

    def number(self, *names: str, near: tuple[str, ...] = (), default: int) -> int:
        """A fact that is one number; the last of several, where there are several."""
        value = self.fact(*names, near=near)
        if isinstance(value, (list, tuple)) and value:
            value = value[-1]
        return value if isinstance(value, int) and value > 0 else default

    def unknown(self, *shape: int) -> torch.Tensor:
        """A tensor of data: its values are not known, its dtype is the model's."""
        return torch.empty(shape, dtype=self.model.dtype, device=META)


def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The named parameters of a function, those after `*args` and `**kwargs` left out."""
    return {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def config_parts(config: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """A config and all configs inside it, each with its path."""
    yield path, config
    if depth < 4:
        for name, value in vars(config).items():
            if hasattr(value, "model_type") and hasattr(value, "to_dict"):
                yield from config_parts(value, f"{path}.{name}", depth + 1)


def text_configs(config: Any) -> list[Any]:
    """The parts of a config that describe a text model, then the whole."""
    try:
        text = config.get_text_config()
    except ValueError:  # one for an encoder, one for a decoder
        return [config.get_text_config(decoder=True), config.get_text_config(encoder=True), config]
    return [text] if text is config else [text, config]
