"""Snapshots the global state of Python and torch that a trace could change."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch._dynamo.eval_frame
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import UninitializedTensorMixin
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


def plain(value: Any, within: tuple[int, ...] = ()) -> Any:
    """A value of its own that later changes of the original cannot reach."""
    if isinstance(value, torch.Tensor):
        return _tensor_facts(value)
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if id(value) in within or len(within) > 50:
        return id(value)
    within = (*within, id(value))
    if isinstance(value, dict):
        return {str(key): plain(item, within) for key, item in dict.items(value)}
    if isinstance(value, (list, tuple, set)):
        return [plain(item, within) for item in value]
    return id(value)


def _version(tensor: torch.Tensor) -> int | None:
    """How often it was written to; of one that holds an inference tensor's data nobody knows."""
    try:
        return tensor._version
    except RuntimeError:
        return None


def _tensor_facts(tensor: torch.Tensor) -> tuple[Any, ...]:
    if isinstance(tensor, UninitializedTensorMixin) or tensor.is_nested:
        return (id(tensor), type(tensor))
    is_strided = tensor.layout is torch.strided
    grad = tensor.grad if tensor.is_leaf else None
    return (
        id(tensor),
        type(tensor),
        _version(tensor),
        str(tensor.device),
        str(tensor.dtype),
        tuple(tensor.shape),
        tensor.stride() if is_strided else None,
        tensor.requires_grad,
        None if grad is None else _content(grad),
        _content(tensor),
    )


def _content(tensor: torch.Tensor) -> Any:
    if tensor.device.type != "cpu" or type(tensor) not in (torch.Tensor, nn.Parameter):
        return None
    tensor = tensor.detach()
    if tensor.layout is torch.strided:
        stored = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
        return (tensor.data_ptr(), bytes(stored.numpy()))
    return str(tensor)


def _parts(path: str, module: nn.Module, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    """A module and those below, whatever methods of its own it has."""
    if module is not None and id(module) not in seen:
        seen.add(id(module))
        yield path, module
        for name, part in vars(module).get("_modules", {}).items():
            yield from _parts(f"{path}.{name}", part, seen)


def module_facts(module: nn.Module) -> dict[str, Any]:
    """Everything that stands in a module and below: tensors, hooks, flags, plain attributes."""
    facts: dict[str, Any] = {}
    for path, part in _parts("", module, set()):
        facts[f"{path}:"] = (id(part), type(part))
        for key, value in vars(part).items():
            facts[f"{path}:{key}"] = (id(value), plain(value))
    for name in ("config", "generation_config"):
        facts[name] = plain(getattr(vars(module).get(name), "__dict__", None))
    return facts


def world_facts() -> dict[str, Any]:
    """Everything of torch and Python that a careless tracer would change."""
    return {
        "torch RNG": torch.get_rng_state().tolist(),
        "python RNG": random.getstate(),
        "function modes": list(map(id, _get_current_function_mode_stack())),
        "dispatch modes": list(map(id, _get_current_dispatch_mode_stack())),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "global hooks": {
            name: list(value)
            for name, value in vars(torch_module).items()
            if name.startswith("_global_") and hasattr(value, "keys")
        },
        "Module": (nn.Module.__call__, nn.Module._call_impl, nn.Module.__setattr__),
        "Tensor": (torch.Tensor.__torch_function__, torch.Tensor.__deepcopy__),
        "attention's fast path": torch.backends.mha.get_fastpath_enabled(),
        "compiler": torch._dynamo.eval_frame._stance,
        "sdpa": torch.nn.functional.scaled_dot_product_attention,
    }


@contextmanager
def assert_state_unchanged(*modules: nn.Module) -> Iterator[None]:
    """Whatever happens inside, the modules and the world are afterwards as they were before."""
    before = [world_facts(), *map(module_facts, modules)]
    try:
        yield
    finally:
        after = [world_facts(), *map(module_facts, modules)]
        changed = [
            name for pair in zip(before, after, strict=True) for name in changed_names(*pair)
        ]
        assert not changed, changed


def changed_names(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names of what changed."""
    return [
        name
        for name in [*before, *(name for name in after if name not in before)]
        if name not in before or name not in after or before[name] != after[name]
    ]
