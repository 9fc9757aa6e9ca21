"""LoRA on a weight in NF4: the layer that peft has for bitsandbytes, without bitsandbytes."""

from typing import Any

import torch
from peft.tuners.lora import layer


class Linear4bit(layer.Linear):
    """As `peft.tuners.lora.bnb.Linear4bit`, which exists only where bitsandbytes is installed.

    Unlike peft's other layers it copies the base layer's output, and adds that of the adapter in
    the base layer's dtype.
    """

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = self.base_layer(x, *args, **kwargs).clone()
        for name in self.active_adapters:
            lora_a: Any = self.lora_A[name]
            lora_b: Any = self.lora_B[name]
            is_cast = torch.is_autocast_enabled()
            if not is_cast:
                x = self._cast_input_dtype(x, lora_a.weight.dtype)
            output = lora_b(lora_a(self.lora_dropout[name](x))) * self.scaling[name]
            result = result + (output if is_cast else output.to(result.dtype))
        return result
