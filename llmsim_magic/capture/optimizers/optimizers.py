"""The optimizers of a training step, built over parameters on `meta`."""

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from llmsim_magic.capture.kernels.tensors import tensors_in
from llmsim_magic.capture.optimizers.host_values import HostValues
from llmsim_magic.capture.optimizers.published_optimizers import (
    BitsAndBytes,
    Lion,
    TransformersAdafactor,
    is_paged,
)
from llmsim_magic.records.errors import CannotTrace
from llmsim_magic.records.trace.optimizers import optimizer_name

_NATIVE = (torch.Tensor, Parameter)  # whose subclasses torch updates one by one


class FusedAdamW(torch.optim.AdamW):
    """AdamW as `fused=True` runs it on a GPU, which torch refuses on `meta`."""

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        super().__init__(parameters)
        for group in self.param_groups:
            group["fused"] = True

    def _init_group(self, group: dict[str, Any], *lists: Any) -> Any:
        """Creates the states as torch does, whose own code would check the device first."""
        for parameter in group["params"]:
            if parameter.grad is not None and not self.state[parameter]:
                self.state[parameter] |= {
                    "step": parameter.new_zeros((), dtype=torch.float32),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        return super()._init_group(group, *lists)


class Chained(Optimizer):
    """Optimizers that step one after the other, each with parameters of its own.

    Args:
        parts: The optimizers; their states become those of this one.
    """

    def __init__(self, parts: Collection[Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = parts
        for part in parts:
            part.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Step each optimizer."""
        for part in self._parts:
            part.step()


def embedding_parameters(module: torch.nn.Module) -> set[Parameter]:
    """Return the weights of a model's embeddings and of its output head.

    Muon's documentation leaves them to AdamW, like all parameters that are no matrices.

    Args:
        module: The model.
    """
    head = getattr(module, "get_output_embeddings", lambda: None)()
    embeddings = [part for part in module.modules() if isinstance(part, torch.nn.Embedding)]
    return {
        parameter
        for part in (*embeddings, *([] if head is None else [head]))
        for parameter in part.parameters()
    }


def make_optimizer(
    name: str, parameters: Iterable[Parameter], *, embeddings: Collection[Parameter] = ()
) -> Optimizer:
    """Build an optimizer whose step runs on `meta` the kernels that it runs on a GPU.

    torch's own are run with foreach where torch selects it for a GPU: for plain parameters, and
    for all optimizers but Adafactor and Muon. Step counters lie on the host, as torch has them.
    States come at the first step, those of Adagrad now. Only `take_step` is to run the step.

    Args:
        name: One of `OPTIMIZERS`, or what `optimizer_name` accepts for it.
        parameters: What it updates; those that require no gradient are left out.
        embeddings: What Muon leaves to AdamW beside all that are no matrices.

    Returns:
        The optimizer. It holds its parameters and states, and nothing else does.

    Raises:
        InvalidValue: No optimizer has the name.
        CannotTrace: No parameter requires a gradient.
    """
    build = _BUILDERS[optimizer_name(name)]
    trained = [each for each in dict.fromkeys(parameters) if each.requires_grad]
    if not trained:
        raise CannotTrace(
            "nothing can be trained: no parameter requires a gradient; set requires_grad of some"
        )
    with HostValues():
        return build(trained, embeddings)


def state_bytes(optimizer: Optimizer) -> int:
    """Return the bytes of an optimizer's states in the device's memory.

    Step counters on the host and states in managed memory are left out; a storage that several
    parameters share counts once.

    Args:
        optimizer: An optimizer whose parameters are on `meta`, after its first step.
    """
    storages = {}
    for tensor in tensors_in([*optimizer.state.values()]):
        if tensor.is_meta and not is_paged(tensor):
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


_Build = Callable[[list[Parameter], Collection[Parameter]], Optimizer]


def _foreach(kind: Callable[..., Optimizer], **options: Any) -> _Build:
    """A class of torch whose default on a GPU is foreach, not fused."""
    return lambda parameters, _: kind(
        parameters, foreach=all(type(each) in _NATIVE for each in parameters), **options
    )


def _plain(kind: Callable[..., Optimizer], **options: Any) -> _Build:
    return lambda parameters, _: kind(parameters, **options)


_adamw = _foreach(torch.optim.AdamW)


def _muon(parameters: list[Parameter], embeddings: Collection[Parameter]) -> Optimizer:
    left = set(embeddings)
    matrices = [each for each in parameters if each.ndim == 2 and each not in left]
    others = [each for each in parameters if each.ndim != 2 or each in left]
    parts = [torch.optim.Muon(matrices)] if matrices else []
    return Chained([*parts, *([_adamw(others, ())] if others else [])])


_BUILDERS: Mapping[str, _Build] = MappingProxyType(
    {
        "adamw": _adamw,
        "adamw_fused": _plain(FusedAdamW),
        "adam": _foreach(torch.optim.Adam),
        "sgd": _foreach(torch.optim.SGD),
        "sgd_momentum": _foreach(torch.optim.SGD, momentum=0.9),
        "adafactor": _plain(torch.optim.Adafactor),
        "muon": _muon,
        "adagrad": _foreach(torch.optim.Adagrad),
        "rmsprop": _foreach(torch.optim.RMSprop),
        "nadam": _foreach(torch.optim.NAdam),
        "radam": _foreach(torch.optim.RAdam),
        "adamax": _foreach(torch.optim.Adamax),
        "adadelta": _foreach(torch.optim.Adadelta),
        "adamw_8bit": _plain(partial(BitsAndBytes, states=2)),
        "paged_adamw_8bit": _plain(partial(BitsAndBytes, states=2, paged=True)),
        "paged_adamw_32bit": _plain(partial(BitsAndBytes, states=2, bits=32, paged=True)),
        "lion": _plain(Lion),
        "lion_8bit": _plain(partial(BitsAndBytes, states=1)),
        "transformers_adafactor": _plain(TransformersAdafactor),
    }
)
