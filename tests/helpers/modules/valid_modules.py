"""Sound parts: each maps `[batch, tokens, WIDTH]` to the same, and a CPU runs it.

A trace of a module that is made of these must agree with its real run.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

BATCH, TOKENS, WIDTH = 2, 6, 8
Body = Callable[[Any, Tensor], Any]


class ForwardModule(nn.Module):
    """A module whose forward is `body`, with the attributes that the body uses."""

    def __init__(self, body: Body, **held: Any) -> None:
        super().__init__()
        self.body = body
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def linear() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH)


def with_forward(body: Body, **held: Callable[[], Any]) -> Callable[[], nn.Module]:
    """A factory of a `ForwardModule` that also has a linear layer `lin`."""
    return lambda: ForwardModule(
        body, lin=linear(), **{name: make() for name, make in held.items()}
    )


# sound parts


def _turned(self: Any, x: Tensor) -> Tensor:
    return self.inner(x.transpose(1, 2)).transpose(1, 2)


def _first(self: Any, x: Tensor) -> Tensor:
    return self.inner(x)[0]


def _itself(self: Any, x: Tensor) -> Tensor:
    return self.inner(x, x, x)[0]


def _attends(self: Any, x: Tensor) -> Tensor:
    q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
    out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return self.lin(out.transpose(1, 2).flatten(2))


def _fourier(self: Any, x: Tensor) -> Tensor:
    spectrum = torch.fft.rfft(x, dim=1)
    return torch.fft.irfft(spectrum * torch.view_as_complex(self.filter), n=x.shape[1], dim=1)


def _keeps_state(self: Any, x: Tensor) -> Tensor:
    self.calls = getattr(self, "calls", 0) + 1
    self.last = x
    self.seen.append(self.calls)
    self.total.add_(self.calls)
    return x + self.total


def _attached(self: Any, x: Tensor) -> Tensor:
    functional_state = {name: p * 2 for name, p in self.lin.named_parameters()}
    return torch.func.functional_call(self.lin, functional_state, (x,))


def _on_host(self: Any, x: Tensor) -> Tensor:
    places = torch.arange(x.shape[1], device=x.device)
    mask = places[:, None] >= places
    size = int(mask.sum())
    return x * size + mask.float().sum(0)[:, None]


def _tied() -> nn.Module:
    module = nn.Sequential(linear(), nn.ReLU(), linear())
    module[2].weight = module[0].weight
    return module


def _twice() -> nn.Module:
    shared = linear()
    return nn.Sequential(shared, nn.GELU(), shared)


def _recurrent(kind: Any, **options: Any) -> Callable[[], nn.Module]:
    return lambda: ForwardModule(_first, inner=kind(WIDTH, WIDTH, batch_first=True, **options))


def _pruned() -> nn.Module:
    return prune.random_unstructured(linear(), "weight", amount=0.3)


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


def _parametrized() -> nn.Module:
    return parametrize.register_parametrization(linear(), "weight", Doubled())


def _picks(self: Any, x: Tensor) -> Tensor:
    return self.parts["b"](self.parts["a"](x)) * self.scales[0] + self.biases["y"]


def _hooked() -> nn.Module:
    module = nn.Sequential(linear(), nn.ReLU())
    module[0].register_forward_hook(lambda *given: None)
    module.register_forward_pre_hook(lambda *given: None)
    return module


class Many(nn.Module):
    """Layers that are alike, in a list."""

    def __init__(self, make: Callable[[], nn.Module], number: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(make() for _ in range(number))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def _view_of_parameter() -> nn.Module:
    module = ForwardModule(lambda self, x: x + self.row + self.lin(x), lin=linear())
    module.register_buffer("row", module.lin.weight.detach()[0])
    return module


class Keywords(nn.Module):
    """Calls its part by keyword alone, with what it hands over packed."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = linear()

        def forward(self, *rest: Tensor, scale: Tensor | float = 2.0, **more: Tensor) -> Any:
            return {"out": self.lin(more["x"]) * scale, "rest": rest}

    def __init__(self) -> None:
        super().__init__()
        self.inner = self.Inner()

    def forward(self, x: Tensor) -> Any:
        return self.inner(x, scale=torch.tensor(2.0), x=x)["out"]


def _zeros() -> nn.Parameter:
    return nn.Parameter(torch.zeros(WIDTH), requires_grad=False)


def _cached(self: Any, x: Tensor) -> Tensor:
    with parametrize.cached():
        return self.inner(self.inner(x))


def _written(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0] = 1.0
    y.transpose(1, 2)[..., 1].zero_()
    return y


def _without_grad(part: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        y = part(x)
    with torch.no_grad():
        return y.detach()


def _autocast(part: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type if x.device.type != "meta" else "cpu", torch.bfloat16):
        return part(x).to(x.dtype)


def _inference(part: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return part(x)


SOUND: dict[str, Callable[[], nn.Module]] = {
    "linear": linear,
    "linear without bias": lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    "bilinear": lambda: ForwardModule(
        lambda s, x: s.inner(x, x), inner=nn.Bilinear(WIDTH, WIDTH, WIDTH)
    ),
    "conv": lambda: ForwardModule(_turned, inner=nn.Conv1d(WIDTH, WIDTH, 3, padding=1)),
    "grouped conv": lambda: ForwardModule(
        _turned, inner=nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=4)
    ),
    "transposed conv": lambda: ForwardModule(
        _turned, inner=nn.ConvTranspose1d(WIDTH, WIDTH, 3, padding=1)
    ),
    "conv in 2d": with_forward(
        lambda s, x: s.inner(x[:, None])[:, 0], inner=lambda: nn.Conv2d(1, 1, 1)
    ),
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "rms norm": lambda: nn.RMSNorm(WIDTH),
    "batch norm": lambda: ForwardModule(_turned, inner=nn.BatchNorm1d(WIDTH)),
    "group norm": lambda: ForwardModule(_turned, inner=nn.GroupNorm(2, WIDTH)),
    "positions": with_forward(
        lambda s, x: x + s.inner(torch.arange(x.shape[1], device=x.device)),
        inner=lambda: nn.Embedding(TOKENS, WIDTH),
    ),
    "bag": with_forward(
        lambda s, x: x + s.inner(torch.tensor([[0, 1]], device=x.device)),
        inner=lambda: nn.EmbeddingBag(4, WIDTH),
    ),
    "gelu": nn.GELU,
    "relu in place": lambda: nn.Sequential(linear(), nn.ReLU(inplace=True)),
    "dropout": lambda: nn.Dropout(0.5),
    "identity": nn.Identity,
    "attention": lambda: ForwardModule(_attends, qkv=nn.Linear(WIDTH, 3 * WIDTH), lin=linear()),
    "multihead": lambda: ForwardModule(
        _itself, inner=nn.MultiheadAttention(WIDTH, 2, batch_first=True)
    ),
    "encoder layer": lambda: nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True),
    "encoder": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True), 3
    ),
    "transformer": lambda: ForwardModule(
        lambda s, x: s.inner(x, x),
        inner=nn.Transformer(WIDTH, 2, 1, 1, 16, batch_first=True),
    ),
    "lstm": _recurrent(nn.LSTM),
    "lstm both ways": lambda: nn.Sequential(
        ForwardModule(_first, inner=nn.LSTM(WIDTH, 4, 2, batch_first=True, bidirectional=True))
    ),
    "gru": _recurrent(nn.GRU),
    "rnn": _recurrent(nn.RNN),
    "gru cell": with_forward(
        lambda s, x: s.cell(x.flatten(0, 1)).view(x.shape), cell=lambda: nn.GRUCell(WIDTH, WIDTH)
    ),
    "fourier": lambda: ForwardModule(
        _fourier, filter=nn.Parameter(torch.rand(TOKENS // 2 + 1, WIDTH, 2))
    ),
    "einsum": with_forward(lambda s, x: torch.einsum("btd,ed->bte", x, s.lin.weight)),
    "matmul": with_forward(lambda s, x: x @ s.lin.weight.t() @ s.lin.weight),
    "mv": with_forward(lambda s, x: x * (s.lin.weight @ s.lin.bias)),
    "module dict and lists": lambda: ForwardModule(
        _picks,
        parts=nn.ModuleDict({"a": linear(), "b": nn.Tanh()}),
        scales=nn.ParameterList([torch.ones(WIDTH), torch.ones(1)]),
        biases=nn.ParameterDict({"y": torch.zeros(WIDTH)}),
    ),
    "tied": _tied,
    "twice": _twice,
    "weight norm": lambda: parametrizations.weight_norm(linear()),
    "old weight norm": lambda: torch.nn.utils.weight_norm(linear()),
    "spectral norm": lambda: parametrizations.spectral_norm(linear()),
    "old spectral norm": lambda: torch.nn.utils.spectral_norm(linear()),
    "orthogonal": lambda: parametrizations.orthogonal(linear()),
    "parametrized": _parametrized,
    "cached parametrization": lambda: ForwardModule(_cached, inner=_parametrized()),
    "pruned": _pruned,
    "hooked": _hooked,
    "many": lambda: Many(lambda: nn.Sequential(linear(), nn.GELU())),
    "many that keep state": lambda: Many(with_forward(_keeps_state, seen=list, total=_zeros)),
    "state": with_forward(_keeps_state, seen=list, total=_zeros),
    "view of a parameter": _view_of_parameter,
    "keywords": Keywords,
    "double": with_forward(
        lambda s, x: s.inner(x.double()).to(x.dtype), inner=lambda: linear().double()
    ),
    "bfloat16": with_forward(
        lambda s, x: s.inner(x.bfloat16()).to(x.dtype), inner=lambda: linear().bfloat16()
    ),
    "int8 weight": with_forward(
        lambda s, x: functional.linear(x, s.q.to(x.dtype) * s.scale, s.lin.bias),
        q=lambda: nn.Parameter(torch.ones(WIDTH, WIDTH, dtype=torch.int8), requires_grad=False),
        scale=lambda: nn.Parameter(torch.ones(WIDTH, 1)),
    ),
    "float8 weight": with_forward(
        lambda s, x: functional.linear(x, s.q.to(x.dtype)),
        q=lambda: nn.Parameter(torch.ones(WIDTH, WIDTH).to(torch.float8_e4m3fn), False),
    ),
    "complex weight": with_forward(
        lambda s, x: (x.to(s.w.dtype) @ s.w).real.to(x.dtype),
        w=lambda: nn.Parameter(torch.ones(WIDTH, WIDTH, dtype=torch.complex64)),
    ),
    "conjugate": with_forward(
        lambda s, x: (x.to(s.w.dtype) @ s.w.conj()).imag.to(x.dtype),
        w=lambda: nn.Parameter(torch.ones(WIDTH, WIDTH, dtype=torch.complex64)),
    ),
    "nothing": with_forward(
        lambda s, x: x + s.none.sum() + x[:, :0].sum(1, keepdim=True),
        none=lambda: nn.Parameter(torch.zeros(0, WIDTH)),
    ),
    "checkpoint": with_forward(lambda s, x: checkpoint(s.lin, x, use_reentrant=False)),
    "reentrant checkpoint": with_forward(lambda s, x: checkpoint(s.lin, x, use_reentrant=True)),
    "functional call": with_forward(_attached),
    "host": with_forward(_on_host),
    "mask": with_forward(lambda s, x: x.masked_fill(torch.ones_like(x).triu().bool(), 0.0)),
    "scatter": with_forward(
        lambda s, x: torch.zeros_like(x).scatter_(
            1, torch.zeros(x.shape, dtype=torch.long, device=x.device), x
        )
    ),
    "cumulative": with_forward(lambda s, x: x.cumsum(1).logsumexp(-1, keepdim=True) + x),
    "padding": with_forward(lambda s, x: functional.pad(x, (1, 1))[..., 1:-1]),
    "upsampling": with_forward(lambda s, x: functional.interpolate(x, scale_factor=2.0)[..., ::2]),
    "pooling": with_forward(lambda s, x: functional.avg_pool1d(x, 3, 1, 1)),
    "adaptive pooling": with_forward(lambda s, x: functional.adaptive_max_pool1d(x, WIDTH)),
    "in place": with_forward(lambda s, x: x.clone().mul_(2).add_(s.lin.bias)),
    "written view": with_forward(lambda s, x: _written(x)),
    "out": with_forward(lambda s, x: torch.add(x, 1, out=torch.empty_like(x))),
    "split": with_forward(lambda s, x: torch.cat(torch.split(x, [3, 5], -1)[::-1], -1)),
    "unbound": with_forward(lambda s, x: torch.stack([s.lin(each) for each in x.unbind(1)], 1)),
    "no grad": with_forward(lambda s, x: _without_grad(s.lin, x)),
    "autocast": with_forward(lambda s, x: _autocast(s.lin, x)),
    "inference": with_forward(lambda s, x: _inference(s.lin, x)),
}
