"""A forward that fails is one line of ours at each front door, and names what it asks for."""

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from torch import Tensor, nn
from torch.nn import functional

import llmsim_magic as llmsim
from llmsim_magic.__main__ import main
from tests.helpers import small_models
from tests.helpers.shells import NO_HISTORY

# What torch and Python say of the objects of a trace.
FORBIDDEN = ("object at 0x", "llmsim_magic.", "Hint", "Meta tensors", "fake impl", "device='meta'")


def _raise(error: Exception) -> Any:
    raise error


class Unknown(torch._ops.HigherOrderOperator):
    def __init__(self) -> None:
        super().__init__("llmsim_unruled")

    def __call__(self, x: Tensor) -> Any:
        return super().__call__(x)


UNKNOWN = Unknown()
OPERATORS = torch.library.Library("llmsim_tests", "FRAGMENT")
OPERATORS.define("without_meta(Tensor x) -> Tensor")
OPERATORS.impl("without_meta", torch.clone, "CPU")
FAILURES: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "a higher-order operator": (UNKNOWN, "calls llmsim_unruled, a higher-order operator"),
    "a kernel without meta": (
        lambda x: torch.ops.llmsim_tests.without_meta(x),
        "llmsim_tests::without_meta has no kernel",
    ),
    "a device's state": (lambda x: torch.cuda.get_device_capability(), "asks for a device"),
    "a generator of a device": (lambda x: torch.Generator("cuda"), "asks for a device"),
    "a tensor in a message": (lambda x: _raise(ValueError(f"bad {x}")), "bad tensor of shape (1, "),
    "a mode in a message": (
        lambda x: _raise(ValueError(str(torch.overrides._get_current_function_mode()))),
        "ValueError: the trace",
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(small_models.llama().to_dict()))
    return str(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that must not be there")
@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_a_line_of_ours_at_each_front_door(
    name: str,
    folder: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fail, wanted = FAILURES[name]
    original = transformers.LlamaForCausalLM.forward

    @wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        fail(self.lm_head.weight[:1])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", forward)
    with pytest.raises(llmsim.LlmsimError) as caught:
        llmsim.trace(folder, context=4)
    lines = [str(caught.value)]
    assert main([folder, "--context", "4"]) == 2
    lines.append(capsys.readouterr().err)
    shell = InteractiveShell(config=NO_HISTORY)
    shell.run_line_magic("load_ext", "llmsim_magic")
    with pytest.raises(UsageError) as refused:
        shell.run_line_magic("llmsim", f"{folder} --context 4")
    lines.append(str(refused.value))
    for line in lines:
        assert wanted in line
        assert len(line.strip().splitlines()) == 1
        assert not [each for each in FORBIDDEN if each in line]


class Forward(nn.Module):
    def __init__(self, body: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.body, self.lin = body, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        return self.body(self.lin, x)


X = torch.zeros(3, 8)
LINEAR = 2 * 3 * 8 * 8


def _in_context(lin: Any, x: Tensor) -> Tensor:
    with torch.device("cuda"):
        return lin(x) + torch.zeros(8)


@pytest.mark.parametrize(
    "body",
    [
        lambda lin, x: lin(x.cuda()),
        lambda lin, x: lin(x.cuda(0, non_blocking=True)),
        lambda lin, x: lin(x.to("cuda")),
        lambda lin, x: lin(x.to("cuda:1", torch.float32)),
        lambda lin, x: lin(x.to(0)),
        lambda lin, x: lin(x.to(torch.device("mps"))),
        lambda lin, x: lin(x) + torch.zeros(8, device="cuda"),
        lambda lin, x: lin(x) + torch.ones(8, device=0),
        lambda lin, x: lin(x) + torch.arange(8, device=torch.device("cuda")),
        lambda lin, x: lin(x) + torch.randn(8, device="cuda"),
        lambda lin, x: lin(x) + torch.tensor([1.0] * 8, device="cuda"),
        lambda lin, x: lin(x) + torch.zeros_like(x, device="xpu"),
        lambda lin, x: lin.cuda()(x),
        lambda lin, x: lin.to("cuda")(x),
        _in_context,
    ],
)
def test_a_device_that_a_forward_names_is_that_of_the_trace(
    body: Callable[[Any, Tensor], Any],
) -> None:
    assert llmsim.trace(Forward(body), inputs=X).summary.value["flops"] == LINEAR


def test_a_known_value_that_is_moved_to_a_device_stays_known() -> None:
    report = llmsim.trace(
        Forward(lambda lin, x: lin(x)[: int(torch.arange(3).cuda().max())]), inputs=X
    )
    assert report.modules.output_shapes[""] == [(2, 8)]


@pytest.mark.parametrize(
    "quantised",
    [
        lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, 0, 255),
        lambda x: torch.fake_quantize_per_tensor_affine(
            x, torch.tensor(0.1), torch.tensor(0, dtype=torch.int32), 0, 255
        ),
        lambda x: torch.fake_quantize_per_channel_affine(
            x, torch.ones(8), torch.zeros(8, dtype=torch.int32), 1, 0, 255
        ),
    ],
)
def test_fake_quantisation_is_elementwise_work(quantised: Callable[[Tensor], Tensor]) -> None:
    summary = llmsim.trace(Forward(lambda lin, x: lin(quantised(x))), inputs=X).summary.value
    assert summary["flops"] == LINEAR
    assert summary["elementwise_ops"] == 5 * X.numel()
    assert summary["kernels_not_counted"] == 0


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_ctc_loss_has_the_shape_of_a_real_one(reduction: str) -> None:
    def body(lin: Any, x: Tensor) -> Tensor:
        scores = lin(x).log_softmax(-1)[:, None]
        lengths = torch.tensor([3]), torch.tensor([2])
        return functional.ctc_loss(scores, torch.tensor([[1, 2]]), *lengths, reduction=reduction)

    report = llmsim.trace(Forward(body), inputs=X)
    assert report.modules.output_shapes[""] == [tuple(Forward(body)(X).shape)]
    assert report.summary.value["kernels_not_counted"] == 0
