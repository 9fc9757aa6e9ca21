"""Records a forward pass with real weights by hooks, and compares a trace with it."""

import copy
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from llmsim_magic.capture.configs.resolve import ConfigSource
from llmsim_magic.capture.inputs import decode_inputs, forward_inputs
from llmsim_magic.capture.inputs.cache_in_output import cache_in_output, saving_encoder_outputs
from llmsim_magic.capture.modalities.model_inputs import ModelInputs
from llmsim_magic.capture.models.meta_model import from_config
from llmsim_magic.records.trace.workload import Workload

Shapes = list[tuple[int, ...]]


def shapes_in(value: Any) -> Iterator[tuple[int, ...]]:
    """The shape of every tensor in nested tuples, lists and mappings, in order."""
    if isinstance(value, torch.Tensor):
        yield tuple(value.shape)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from shapes_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from shapes_in(item)


@dataclass
class Seen:
    """What hooks saw of a real forward: shapes of each module's first call, and all calls."""

    inputs: dict[str, Shapes] = field(default_factory=dict)
    outputs: dict[str, Shapes] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    flops: int = 0
    output: Any = None

    def before(self, path: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            self.calls[path] += 1
            self.inputs.setdefault(path, list(shapes_in((args, kwargs))))

        return hook

    def after(self, path: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
            self.outputs.setdefault(path, list(shapes_in(output)))

        return hook


def _attention_flops(
    query: torch.Size, key: torch.Size, value: torch.Size, *rest: Any, **options: Any
) -> int:
    # Heads that share keys and values each meet them: an older torch's formula refuses them.
    batch_and_heads = query[:2]
    return sdpa_flop_count(query, (*batch_and_heads, *key[2:]), (*batch_and_heads, *value[2:]))


def _dot_flops(one: torch.Size, other: torch.Size, **options: Any) -> int:
    return 2 * one.numel()


# What torch's counter has no formula for: attention as a CPU runs it, products with a vector.
OF_OUR_OWN = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten.mv: _dot_flops,
    torch.ops.aten.dot: _dot_flops,
    torch.ops.aten.vdot: _dot_flops,
}


def really_run(model: torch.nn.Module, *args: Any, **kwargs: Any) -> Seen:
    """What hooks see of one forward of the model on the CPU, with real weights."""
    seen = Seen()
    hooks = []
    for path, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(seen.before(path), with_kwargs=True))
        hooks.append(module.register_forward_hook(seen.after(path)))
    counter = FlopCounterMode(display=False, custom_mapping=OF_OUR_OWN)
    try:
        with torch.no_grad(), counter:
            seen.output = model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    seen.flops = counter.get_total_flops()
    return seen


def differences(model: torch.nn.Module, seen: Seen, modules: pd.DataFrame) -> dict[str, Any]:
    """The modules whose row disagrees with what hooks saw: shapes in, shapes out, calls."""
    found = {}
    for path, _ in model.named_modules():
        real = (seen.inputs.get(path, []), seen.outputs.get(path, []), seen.calls[path])
        ours = tuple(modules.loc[path, ["input_shapes", "output_shapes", "calls"]])
        if ours != real:
            found[path] = {"real": real, "ours": ours}
    return found


# What torch's counter has no formula for, or what a CPU runs as a kernel that it does not know.
NOT_COUNTED = ("_grouped_mm", "lstm", "gru", "rnn")


def comparable_flops(kernels: pd.DataFrame) -> int:
    """Our FLOPs of the kernels that torch's counter can count as well."""
    counted = ~kernels["kernel"].astype(str).str.contains("|".join(map(re.escape, NOT_COUNTED)))
    return int(kernels["flops"][counted].sum())


def cache_bytes(model: Any, output: Any) -> int:
    """Bytes of every tensor in the cache or state that the model itself built, each once."""
    sizes: dict[tuple[int, int], int] = {}
    seen: set[int] = set()

    def walk(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            if value.dim():
                place = (value.data_ptr(), value.numel())
                sizes[place] = value.numel() * value.element_size()
        elif id(value) not in seen and not isinstance(value, (str, int, float, type)):
            seen.add(id(value))
            children = value.values() if isinstance(value, Mapping) else value
            if not isinstance(children, (list, tuple)) and not isinstance(value, Mapping):
                children = getattr(value, "__dict__", {}).values()
            for child in list(children):
                walk(child)

    for part in cache_in_output(model, output).values():
        walk(part)
    return sum(sizes.values())


def with_data(keywords: dict[str, Any]) -> dict[str, Any]:
    """Keywords for a real forward: what is unknown, on `meta`, becomes random numbers."""

    def real(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return torch.rand(value.shape).to(value.dtype) if value.is_meta else value.clone()

    return tree_map(real, keywords)


@dataclass
class Real:
    """A model with random weights on the CPU beside its like on `meta`, and what both are given."""

    model: Any
    unreal: Any

    def prefill(self, workload: Workload) -> Seen:
        """Hooks' view of a prefill, handed over in the first way that the forward can read.

        A copy of the model runs, for a pass may leave something in the model itself.
        """
        model = copy.deepcopy(self.model)
        return self._first(
            forward_inputs.prefill_inputs(self.unreal, workload),
            lambda given: really_run(model, **given),
        )

    def prefill_in_place(self, workload: Workload) -> None:
        """Run a prefill of the model itself, so that it installs what it does at its first one.

        It is asked for all hidden states, if it has any, because that installs hooks.
        """

        def run(given: dict[str, Any]) -> None:
            with torch.no_grad():
                try:
                    self.model(**given, output_hidden_states=True)
                except TypeError:
                    self.model(**given)

        self._first(forward_inputs.prefill_inputs(self.unreal, workload), run)

    def decode(self, workload: Workload) -> Seen | None:
        """Hooks' view of a decode step after a real pass; None where there is no state."""

        def step(way: decode_inputs.MakeDecodeInputs) -> Seen | None:
            read, state = self._first(
                decode_inputs.priming_inputs(self.unreal, workload), self._state
            )
            if not state:
                return None
            given = way(self.unreal, workload, state, read)
            return really_run(self.model, **with_data(given.keywords))

        errors = []
        for way in decode_inputs.DECODE_INPUT_MAKERS:
            try:
                return step(way)
            except Exception as error:
                errors.append(error)
        raise errors[0]

    def _state(self, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        with torch.no_grad(), saving_encoder_outputs(self.model) as kept:
            state = cache_in_output(self.model, self.model(**given))
        return given, state and state | kept

    def _first(self, ways: Iterable[ModelInputs], run: Callable[..., Any]) -> Any:
        errors = []
        for inputs in ways:
            try:
                return run(with_data(inputs.keywords))
            except Exception as error:
                errors.append(error)
        raise errors[0]


def real_and_meta_models(config: Any, limit: int | None = None) -> Real:
    """Both models of a config; raises ValueError where it has more parameters than the limit."""
    unreal = from_config(
        ConfigSource(type(config).__name__, config, "config object"), dtype="float32"
    )
    count = sum(parameter.numel() for parameter in unreal.module.parameters())
    if limit is not None and count > limit:
        raise ValueError(f"{count} parameters")
    torch.manual_seed(0)
    model = type(unreal.module)._from_config(copy.deepcopy(config), dtype=torch.float32)
    return Real(model.eval().requires_grad_(False), unreal.module)
