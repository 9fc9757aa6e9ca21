"""The exported code of a request reproduces the request."""

import shlex

import pytest

from llmsim_magic.notebook.arguments import parse, parse_line
from llmsim_magic.notebook.code_export import magic_line, python_call

LINES = [
    "gpt2",
    "gpt2 --ops --deps --phase decode --batch 16 --context 4096",
    "Qwen/Qwen3-0.6B --multi-config --dtype float16 --attn eager --base",
    "'a folder/with spaces' --costs --trust-remote-code --refresh",
    "gpt2 --topological --depth 3 --layers 0,11 --level kernel",
    "gpt2 --deps --layers all",
    "gpt2 --costs --hardware H100,L40S --weight-dtype int4 --kv-dtype fp8 --launch eager",
    "gpt2 --memory --hardware 'RTX 4090' --tp 2 --pp 3",
    "gpt2 --compare distilgpt2 --hardware local",
    "gpt2 --explain transformer.h.0 --csv 'a b' --overwrite --no-replay",
    "gpt2 --batch 1,2,4 --context 8,16 --phase both --sure",
]


@pytest.mark.parametrize("line", LINES)
def test_the_magics_line_asks_for_the_same(line: str) -> None:
    request = parse_line(line).request
    again = parse(shlex.split(magic_line(request).removeprefix("%llmsim "))).request
    assert again == request


@pytest.mark.parametrize(
    "line",
    [
        "distilgpt2 --ops --deps --topological --costs --phase decode --batch 2 --context 5",
        "distilgpt2 --deps --depth 2 --layers 0,1 --level module",
        "distilgpt2 --multi-config --dtype float16 --base",
        "distilgpt2 --explain transformer.h.0 --attn eager --no-replay",
        "distilgpt2 --costs --memory --hardware H100,L40S --weight-dtype int8 --launch eager",
    ],
)
def test_the_call_in_python_runs_and_traces_the_same(line: str) -> None:
    request = parse_line(line).request
    names: dict[str, object] = {}
    exec(python_call(request), names)
    found = names["sweep"].traces if request.is_sweep else [names["report"].trace]
    for trace in found:
        if request.batches:
            assert trace.workload.batch in request.batches
        if request.phases:
            assert trace.workload.phase in request.phases
        if request.build.dtype:
            assert trace.model.dtype == request.build.dtype
        if request.build.base:
            assert trace.model.class_name == "GPT2Model"
        if request.build.attn:
            assert trace.model.attention == request.build.attn


def test_a_variable_is_named_and_not_quoted() -> None:
    request = parse_line("mine --ops").request
    assert "llmsim.trace(mine" in python_call(request, is_variable=True)
    assert "llmsim.trace('mine'" in python_call(request)
