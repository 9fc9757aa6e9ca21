"""Wrappers and patches of a module that do not change its output."""

import copy
import tempfile
from collections.abc import Callable

import accelerate
import torch
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module
from torch import nn

from tests.helpers.modules.valid_modules import BATCH, TOKENS, WIDTH

CPU = torch.device("cpu")
Wrap = Callable[[nn.Module], nn.Module]


class Within(nn.Module):
    """Holds a module, and compiles it in its place."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = torch.compile(inner, backend="eager")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def _compiled_in_place(module: nn.Module) -> nn.Module:
    module.compile(backend="eager")
    return module


def _offloaded_to_disk(module: nn.Module) -> nn.Module:
    folder = tempfile.mkdtemp(prefix="offloaded-")
    return accelerate.disk_offload(module, folder, execution_device=CPU)


def _with_hooks(module: nn.Module) -> nn.Module:
    for part in module.modules():
        add_hook_to_module(part, ModelHook())
    return module


def _moved_together(module: nn.Module) -> nn.Module:
    add_hook_to_module(module, AlignDevicesHook(CPU, io_same_device=True))
    return module


def _heard(module: nn.Module) -> nn.Module:
    for part in module.modules():
        part.register_forward_hook(lambda *given, **named: None)
        part.register_forward_pre_hook(lambda *given: None)
    return module


def _ran(module: nn.Module) -> nn.Module:
    module(torch.rand(BATCH, TOKENS, WIDTH))
    return module


def _learnt(module: nn.Module) -> nn.Module:
    module(torch.rand(BATCH, TOKENS, WIDTH)).sum().backward()
    return module


def _exported(module: nn.Module) -> nn.Module:
    return torch.export.export(module.eval(), (torch.rand(BATCH, TOKENS, WIDTH),)).module()


def _in_inference(module: nn.Module) -> nn.Module:
    with torch.inference_mode():
        return copy.deepcopy(module)


SAME: dict[str, Wrap] = {
    "as it is": lambda module: module,
    "eval": nn.Module.eval,
    "frozen": lambda module: module.requires_grad_(requires_grad=False),
    "double": nn.Module.double,
    "copied": copy.deepcopy,
    "ran": _ran,
    "learnt": _learnt,
    "heard": _heard,
    "in inference": _in_inference,
    "shared": nn.Module.share_memory,
    "compiled": lambda module: torch.compile(module, backend="eager"),
    "compiled within": Within,
    "compiled in place": _compiled_in_place,
    "data parallel": nn.DataParallel,
    "dispatched": lambda module: accelerate.dispatch_model(module, {"": "cpu"}, force_hooks=True),
    "offloaded": lambda module: accelerate.cpu_offload(module, execution_device=CPU),
    "offloaded to disk": _offloaded_to_disk,
    "hooks of accelerate": _with_hooks,
    "moved together": _moved_together,
}
ODD_WRAPS: dict[str, Wrap] = {
    # torch itself crashes where a tensor behind another face is to be shared
    **{name: wrap for name, wrap in SAME.items() if name != "shared"},
    "half": nn.Module.half,
    "on meta": lambda module: module.to("meta"),
    "emptied": lambda module: module.to_empty(device="meta"),
    "exported": _exported,
    "scripted": torch.jit.script,
    "traced": lambda module: torch.jit.trace(module, torch.rand(BATCH, TOKENS, WIDTH)),
    "symbolic": torch.fx.symbolic_trace,
    "quantised": lambda module: torch.ao.quantization.quantize_dynamic(module, {nn.Linear}),
    "no module": lambda module: module.forward,  # type: ignore[return-value]
    "class": type,  # type: ignore[dict-item]
}
