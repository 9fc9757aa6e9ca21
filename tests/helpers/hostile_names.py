"""Names that try to inject markup or code, and a model that has one everywhere."""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import nn
from transformers import LlamaForCausalLM

from tests.helpers import small_models

PWNED = "window.__pwned=1"
NAMES = {
    "plain": "plain",
    "script": f"<script>{PWNED}</script>",
    "image": f"<img src=x onerror={PWNED}>",
    "attribute": f"\" onmouseover={PWNED} x=\"' onfocus={PWNED} autofocus '",
    "end of script": f"</script></style></title></pre></textarea>--><script>{PWNED}</script>",
    "end of data": f"]]><svg xmlns='http://www.w3.org/2000/svg' onload={PWNED}/>",
    "entities": "&lt;b&gt; &amp; &#27; &#0; &#x202e; &nosuch;",
    "link": f"javascript:{PWNED}",
    "DOT": '"]; evil [label=<<b>x</b>> URL="javascript:1"]; n0 -> n1; subgraph cluster_x { y } //',
    "DOT escapes": '\\N \\G \\l \\" \\',
    "HTML-like": "<<table><tr><td>x</td></tr></table>>",
    "formula": "=cmd|'/C calc'!A0",
    "formula in words": "@SUM(1+1)*cmd",
    "minus": "-2+3",
    "path": "../../x",
    "device": "CON",
    "math": r"$\frac{1}{0}$ $x",
    "template": "{0} %s ${HOME} {{x}} %(y)d",
    "commas": 'a,"b";c\td',
    "NUL": "a\0b",
    "lines": "a\nb\r\nc\u2028d\x85e",
    "terminal": "\x1b[2J\x1b]0;x\x07\x9b31m",
    "right to left": "\u202egnp.exe\u2066\u200f",
    "unseen": "\u200b\ufeff\xad\u2060",
    "half": "\ud800",
    "no character": "\uffff\U000e0001",
    "long": "x" * 10_000,
    "wide": "漢字😀 ",
}
_JOINED = ("formula", "end of script", "attribute", "DOT", "entities", "half", "lines", "terminal",
           "right to left", "NUL", "math")  # fmt: skip
NAMES["all at once"] = "".join(NAMES[kind] for kind in _JOINED)


def model(name: str) -> nn.Module:
    """A HuggingFace model whose own names, and those of all in its layers, are this one."""
    torch.manual_seed(0)
    config = small_models.llama()
    made = LlamaForCausalLM(config)
    made.name_or_path = made.config._name_or_path = name
    for layer in made.model.layers:
        layer.mlp = _part(name, config.hidden_size)
    made.__class__ = type(_class_name(name), (LlamaForCausalLM,), {})
    return made


def _part(name: str, width: int) -> nn.Module:
    """A module whose class, module, parameter, buffer and function bear the name."""
    key = name.replace(".", "·")  # the only mark that torch refuses in names
    helper = _called(f"call {name}", _doubled)  # what is called <…> is no function with a name

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.said = name
            self.add_module(f"{key} module", nn.Linear(width, width))
            self.register_parameter(f"{key} parameter", nn.Parameter(torch.ones(width)))
            self.register_buffer(f"{key} buffer", torch.ones(width))
            self.parts = nn.ModuleDict(
                {key: type(_class_name(name), (nn.Linear,), {})(width, width)}
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = getattr(self, f"{key} module")(x) * getattr(self, f"{key} parameter")
            return helper(self.parts[key](x)) + getattr(self, f"{key} buffer")

    Part.__name__ = _class_name(name)
    return Part()


def _class_name(name: str) -> str:
    """Python's own rule: no NUL, and what can be encoded."""
    return name.replace("\0", "\x01").encode(errors="replace").decode()


def _doubled(x: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(x * 2)


def _called(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function under another name, in the frames of its calls as well."""
    code = function.__code__.replace(co_name=_class_name(name), co_qualname=_class_name(name))
    return FunctionType(code, function.__globals__, _class_name(name))
