"""Optimizers that are not torch's, with the states and kernels of their published code.

Sources: `bitsandbytes/optim/optimizer.py` (`Optimizer1State`, `Optimizer2State`),
`lion/lion_pytorch.py` of google/automl, and `transformers.optimization`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers.optimization import Adafactor

from llmsim_magic.capture.kernels.optimizer_kernels import update_8bit_blockwise, update_32bit

BLOCK = 256  # elements of a state that are quantized together
MIN_8BIT = 4_096  # states of smaller parameters stay in float32
MIN_PAGED = 100_000  # states of smaller parameters stay in the device's memory


def is_paged(state: torch.Tensor) -> bool:
    """Whether a state lies in managed memory; an attribute says so, as in bitsandbytes."""
    return getattr(state, "is_paged", False)


class BitsAndBytes(torch.optim.Optimizer):
    """An optimizer of bitsandbytes: one fused kernel for each parameter, and no temporaries.

    Args:
        parameters: What it updates.
        states: States of each parameter: 2 for AdamW, 1 for Lion.
        bits: 8, or 32 for states in float32.
        paged: Whether large states lie in managed memory.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        *,
        states: int,
        bits: int = 8,
        paged: bool = False,
    ) -> None:
        super().__init__(parameters, {})
        self._numbers = range(1, states + 1)
        self._bits = bits
        self._is_paged = paged
        self._codebooks: list[torch.Tensor] = []

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update each parameter that has a gradient, creating its states at the first step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                if not gradient.is_contiguous():
                    gradient = parameter.grad = gradient.contiguous()
                self._update(parameter, gradient)

    def _update(self, parameter: torch.nn.Parameter, gradient: torch.Tensor) -> None:
        state = self.state[parameter]
        if not state:
            state |= self._new_state(parameter)
        states = [state[f"state{number}"] for number in self._numbers]
        if "absmax1" not in state:
            update_32bit((parameter, *states), (gradient,))
            return
        magnitudes = [state[f"absmax{number}"] for number in self._numbers]
        update_8bit_blockwise((parameter, *states, *magnitudes), (gradient, *self._codebooks))

    def _new_state(self, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
        if self._bits == 32 or parameter.numel() < MIN_8BIT:
            return {f"state{n}": self._zeros(parameter, torch.float32) for n in self._numbers}
        if not self._codebooks:  # which all parameters share
            self._codebooks += [
                parameter.new_empty(256, dtype=torch.float32).zero_() for _ in self._numbers
            ]
        state = {f"state{n}": self._zeros(parameter, torch.uint8) for n in self._numbers}
        blocks = -(-parameter.numel() // BLOCK)
        for n, codebook in zip(self._numbers, self._codebooks, strict=True):
            state[f"qmap{n}"] = codebook
            state[f"absmax{n}"] = parameter.new_zeros(blocks, dtype=torch.float32)
        return state

    def _zeros(self, parameter: torch.nn.Parameter, dtype: torch.dtype) -> torch.Tensor:
        if not self._is_paged or parameter.numel() < MIN_PAGED:
            return torch.zeros_like(parameter, dtype=dtype)
        with torch._C._DisableTorchDispatch():  # torch's allocator does not see managed memory
            state = torch.empty(parameter.shape, dtype=dtype, device=parameter.device)
        state.is_paged = True  # type: ignore[attr-defined]
        return state


class Lion(torch.optim.Optimizer):
    """Lion with ordinary kernels, one parameter after the other, as its authors published it.

    Args:
        parameters: What it updates.
        lr: Learning rate.
        betas: Weights of the momentum in the update, and in the new momentum.
        weight_decay: Decoupled weight decay.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update each parameter that has a gradient, creating its momentum at the first step.

        As in the published code, a parameter's update is freed when the next one is computed.
        """
        for group in self.param_groups:
            lr, decay, (beta, momentum_beta) = group["lr"], group["weight_decay"], group["betas"]
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                parameter.mul_(1 - lr * decay)
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                momentum = state["exp_avg"]
                update = momentum * beta + gradient * (1 - beta)
                parameter.add_(update.sign_(), alpha=-lr)
                momentum.mul_(momentum_beta).add_(gradient, alpha=1 - momentum_beta)


class TransformersAdafactor(Adafactor):
    """Adafactor of transformers with the settings of its Trainer.

    transformers creates states on the host and copies them to the device. Here they are created
    on the device at once: the values of a tensor on the host count as known.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        super().__init__(parameters, lr=1e-3, scale_parameter=False, relative_step=False)

    def step(self, closure: None = None) -> None:
        """Update each parameter that has a gradient, creating its states at the first step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and not self.state[parameter]:
                    self.state[parameter] |= _adafactor_state(parameter.grad)
        super().step()


def _adafactor_state(gradient: torch.Tensor) -> dict[str, Any]:
    half = gradient.dtype in (torch.float16, torch.bfloat16)
    dtype, shape = torch.float32 if half else gradient.dtype, gradient.shape
    state: dict[str, Any] = {"step": 0, "RMS": 0}
    if len(shape) < 2:
        return state | {"exp_avg_sq": gradient.new_zeros(shape, dtype=dtype)}
    return state | {
        "exp_avg_sq_row": gradient.new_zeros(shape[:-1], dtype=dtype),
        "exp_avg_sq_col": gradient.new_zeros(shape[:-2] + shape[-1:], dtype=dtype),
    }
