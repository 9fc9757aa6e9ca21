"""Operators take arguments of which only some have known values, as small buffers do."""

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import llmsim_magic as llmsim
from llmsim_magic.capture.kernels.tensors import tensors_in
from llmsim_magic.capture.meta.evaluation_modes import evaluating_partially
from llmsim_magic.capture.record.recorder import Recorder
from tests.helpers.real_forward import really_run, shapes_in


class WithBuffer(nn.Module):
    """Calls a function of its input and a small buffer, and multiplies the result by a matrix."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], buffer: Tensor) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("buffer", buffer)

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(x, self.buffer)
        return y @ y.new_ones(y.shape[-1], 3)


def _spectrogram(x: Tensor, window: Tensor) -> Tensor:
    return torch.stft(x, 16, 4, window=window, return_complex=True).abs()


def _inverse(x: Tensor, window: Tensor) -> Tensor:
    return torch.istft(torch.polar(x, x), 16, 4, window=window)


CALLS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]] = {
    "stft": (_spectrogram, torch.randn(2, 64), torch.hann_window(16)),
    "istft": (_inverse, torch.randn(2, 9, 20), torch.hann_window(16)),
    "quantile": (torch.quantile, torch.randn(9), torch.tensor([0.1, 0.9])),
    "take_along_dim": (torch.take_along_dim, torch.randn(3, 4), torch.tensor([[0, 1]])),
    "inner": (torch.inner, torch.randn(3, 4), torch.ones(5, 4)),
    "cdist": (torch.cdist, torch.randn(3, 4), torch.ones(5, 4)),
    "multi_dot": (lambda x, b: torch.linalg.multi_dot([b, x, b]), torch.ones(4, 4), torch.eye(4)),
    "matrix_rank": (  # creates its result and a tolerance before it compares devices
        lambda x, b: torch.linalg.matrix_rank(x, rtol=b).float(),
        torch.randn(3, 4, 4),
        torch.tensor(0.1),
    ),
    "meshgrid": (lambda x, b: torch.meshgrid(x, b, indexing="ij")[0], torch.ones(3), torch.ones(4)),
    "tensor_split": (lambda x, b: x.tensor_split(b)[1], torch.ones(7, 4), torch.tensor([2, 5])),
    "inside a function": (
        lambda x, b: nn.functional.interpolate(torch.inner(x, b)[None], 6)[0],
        torch.randn(3, 4),
        torch.ones(5, 4),
    ),
}


@pytest.mark.parametrize(("function", "x", "buffer"), CALLS.values(), ids=CALLS)
def test_a_function_takes_data_and_a_small_buffer(
    function: Callable[[Tensor, Tensor], Tensor], x: Tensor, buffer: Tensor
) -> None:
    model = WithBuffer(function, buffer)
    seen, report = really_run(model, x), llmsim.trace(model, inputs=x)
    assert report.modules.output_shapes.iloc[0] == list(shapes_in(seen.output))
    assert report.summary.value["flops"] == seen.flops


def test_a_function_that_runs_again_is_recorded_once() -> None:
    x, buffer = torch.randn(2, 64), torch.hann_window(16)
    report = llmsim.trace(WithBuffer(_spectrogram, buffer), inputs=x)
    counts = report.kernels.kernel.value_counts()
    assert counts["aten._fft_r2c.default"] == 1
    assert counts["aten.abs.default"] == 1


def test_the_buffer_of_a_function_that_runs_again_is_read_as_a_buffer() -> None:
    model = WithBuffer(_spectrogram, torch.hann_window(16))
    trace = llmsim.trace(model, inputs=torch.randn(2, 64)).trace
    read = {number for kernel in trace.kernels for number in kernel.inputs}
    roles = {trace.storages[trace.tensors[number].storage].role for number in read}
    assert "buffer" in roles


def test_a_kernel_with_several_results_may_write_data_into_a_known_buffer() -> None:
    norm = nn.BatchNorm2d(3).train()
    x = torch.empty(2, 3, 4, 4, device="meta")
    with evaluating_partially() as evaluation:
        mean, variance = torch.zeros(3), torch.ones(3)
        out = torch._native_batch_norm_legit(
            x, norm.weight.to("meta"), norm.bias.to("meta"), mean, variance, True, 0.1, 1e-5
        )
        assert [tuple(tensor.shape) for tensor in out] == [(2, 3, 4, 4), (3,), (3,)]
        assert not evaluation.is_known(mean)


# Why an operator is left out, or only tried where some tensors are known.
_NOT_ON_META = "torch has no kernel for it on meta, whatever is known"
_LEFT_OUT = {
    "histogram": _NOT_ON_META,
    "histogramdd": _NOT_ON_META,
    "linalg.lstsq": _NOT_ON_META,
    "nn.functional.ctc_loss": _NOT_ON_META,
    "addbmm": "on the CPU, its in-place variant broadcasts the tensor that it writes",
}
_NEEDS_VALUES = {
    "cov": "it refuses weights by their values",
    "tensor_split": "its result depends on the values of the indices",
}
_SAMPLES = 8  # of each operator


def _operators() -> list[Any]:
    from torch.testing._internal.common_methods_invocations import op_db

    return list(op_db)


def _samples(operator: Any) -> Iterator[Any]:
    """Samples of at least two dense tensors, of the first dtype that the operator takes."""
    dtypes = (torch.float32, torch.complex64, torch.int64, torch.bool)
    dtype = next((each for each in dtypes if each in operator.dtypes), None)
    if dtype is None or operator.name in _LEFT_OUT:
        return
    # `sample_inputs` would seed all devices for each sample, which takes longer than a call.
    samples = operator.sample_inputs_func(operator, "cpu", dtype, requires_grad=False)
    yield from itertools.islice(filter(_is_suitable, samples), _SAMPLES)


def _is_suitable(sample: Any) -> bool:
    tensors = tensors_in((sample.input, sample.args, sample.kwargs))
    return len(tensors) > 1 and all(tensor.layout is torch.strided for tensor in tensors)


def _arguments(sample: Any, unknown: frozenset[int]) -> tuple[Any, Any]:
    """Copies of a sample's arguments; the tensors of these numbers are on `meta`."""
    count = itertools.count()

    def given(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return copy.copy(value)
        return value.to("meta") if next(count) in unknown else value.clone()

    args, kwargs = tree_map(given, ((sample.input, *sample.args), sample.kwargs))
    return args, kwargs


def _results(out: Any) -> list[Any]:
    return [(tensor.shape, tensor.dtype) for tensor in tensors_in(out)]


def _call(function: Callable[..., Any], sample: Any) -> list[Any]:
    """Shapes and dtypes of a real call."""
    args, kwargs = _arguments(sample, frozenset())
    return _results(function(*args, **kwargs))


def _trace(function: Callable[..., Any], sample: Any, unknown: frozenset[int]) -> list[Any]:
    """Shapes and dtypes of a traced call; a pass would know what it moves to `meta` itself."""
    args, kwargs = _arguments(sample, unknown)
    with evaluating_partially() as evaluation:
        recorder = Recorder({})
        evaluation.on_retry = recorder.drop_function
        with evaluation.reporting_to(recorder):
            return _results(function(*args, **kwargs))


def _wrong(operator: Any) -> Iterator[str]:
    """The calls of an operator that differ from the real one where some tensors are known."""
    for function in (operator.op, operator.method_variant, operator.inplace_variant):
        for sample in _samples(operator) if function else ():
            try:
                real = _call(function, sample)
            except Exception:
                continue  # the variant does not take the sample, or needs a GPU
            count = len(tensors_in((sample.input, sample.args, sample.kwargs)))
            one_known = {frozenset(range(count)) - {one} for one in range(count)}
            one_unknown = {frozenset({one}) for one in range(count)}
            for unknown in one_known | one_unknown:
                if operator.name in _NEEDS_VALUES and unknown != {0}:
                    continue
                try:
                    traced = _trace(function, sample, unknown)
                    is_right = traced == real or traced == _trace_unknown(function, sample, count)
                except Exception as error:
                    yield f"{operator.name} {sorted(unknown)}: {error}"
                else:
                    if not is_right:
                        yield f"{operator.name} {sorted(unknown)}: {traced} instead of {real}"


def _trace_unknown(function: Callable[..., Any], sample: Any, count: int) -> list[Any] | None:
    """The result where nothing is known; it differs from the real one if values decide it."""
    try:
        return _trace(function, sample, frozenset(range(count)))
    except RuntimeError:
        return None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_operator_takes_known_and_unknown_tensors() -> None:
    operators = _operators()
    assert len(operators) > 500
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not [line for operator in operators for line in _wrong(operator)]
