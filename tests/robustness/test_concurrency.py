"""Concurrent traces, and traces inside any torch context, give the usual answer."""

import asyncio
import gc
import multiprocessing
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import llmsim_magic as llmsim
from llmsim_magic.capture import run as capture
from llmsim_magic.capture.meta import evaluation_modes
from llmsim_magic.capture.meta.isolation import isolated, model_lock
from llmsim_magic.records.errors import LlmsimError, RecursiveTrace
from tests.helpers import small_models
from tests.helpers.global_state import assert_state_unchanged


class Plain(nn.Module):
    """Makes tensors of its own: with the default dtype, on the default device, at random."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.register_buffer("table", torch.arange(4.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        own = torch.zeros(4) + torch.arange(4) / 3
        return self.lin(x).softmax(-1) * self.table + own * torch.rand(()).item()


X = torch.ones(2, 4)
PLAIN = Plain()
LIVE = transformers.AutoModelForCausalLM.from_config(small_models.qwen3())


def _config(make: Callable[[], Any], dtype: torch.dtype) -> Any:
    config = make()
    config.dtype = dtype
    return config


ASKED: dict[str, Callable[[], Any]] = {
    "module": lambda: llmsim.trace(PLAIN, inputs=X).trace,
    "live": lambda: llmsim.trace(LIVE, context=5, phase="decode").trace,
    "name": lambda: llmsim.trace("gpt2", context=5, phase="decode").trace,
    "bfloat16": lambda: llmsim.trace(_config(small_models.llama, torch.bfloat16), context=6).trace,
    "float16": lambda: llmsim.trace(_config(small_models.qwen3, torch.float16), context=7).trace,
    "experts": lambda: llmsim.trace(small_models.mixtral(), context=7).trace,
    "rank": lambda: llmsim.trace(small_models.qwen3(), context=5, tp=2).trace,
}
AND_VIEWS: dict[str, Callable[[], Any]] = {
    "sound": lambda: llmsim.trace(small_models.whisper(), context=7, phase="decode").trace,
    "sweep": lambda: llmsim.sweep(small_models.llama(), batch=[1, 2], context=[3, 4]).traces,
    "tables": lambda: llmsim.trace(small_models.gemma2(), context=6).kernels.to_csv(),
    "graph": lambda: llmsim.trace(small_models.bert(), context=6).dependency_graph().svg,
    "formulas": lambda: llmsim.trace(small_models.opt(), context=6).symbolic.totals.to_csv(),
    "plot": lambda: (
        llmsim.trace(small_models.gpt2(), context=6, hardware="H100").costing.roofline.svg
    ),
}


@pytest.fixture(scope="module")
def wanted() -> dict[str, Any]:
    """What each question is answered with when nothing else goes on."""
    return {name: _alone(ask) for name, ask in (ASKED | AND_VIEWS).items()}


def _alone(ask: Callable[[], Any]) -> Any:
    llmsim.forget()
    return ask()


@contextmanager
def hasty() -> Iterator[None]:
    """Let Python go from thread to thread as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


# threads


def _ask_at_once(asks: dict[str, Callable[[], Any]], wanted: Any, threads: int, each: int) -> None:
    def work(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(each):
            name = dice.choice(list(asks))
            if dice.random() < 0.3:
                llmsim.forget()
            assert asks[name]() == wanted[name], name

    with hasty(), ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, seed) for seed in range(threads)]:
            done.result()


def test_threads_that_trace_at_once_have_what_each_has_alone(wanted: dict[str, Any]) -> None:
    with assert_state_unchanged(PLAIN, LIVE):
        _ask_at_once(ASKED, wanted, threads=4, each=5)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [2, 8])
def test_many_rounds_of_threads_with_every_view(threads: int, wanted: dict[str, Any]) -> None:
    with assert_state_unchanged(PLAIN, LIVE):
        _ask_at_once(ASKED | AND_VIEWS, wanted, threads, each=120 // threads)


def test_every_pass_of_a_model_waits_for_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass changes the model and settings of the process, so two at once spoil both."""
    turns: list[int | None] = []
    really = evaluation_modes.PartialEvaluation

    def begin(*args: Any) -> Any:
        turns.append(model_lock._thread)
        return really(*args)

    monkeypatch.setattr(evaluation_modes, "PartialEvaluation", begin)
    asked = ASKED | AND_VIEWS
    asked["size"] = lambda: llmsim.size(small_models.gpt2(), hardware="H100")
    asked["beyond"] = lambda: llmsim.size(small_models.bert(), hardware="H100", context=4096)
    for ask in asked.values():
        llmsim.forget()
        with suppress(LlmsimError):
            ask()
    assert len(turns) > len(asked)
    assert set(turns) == {threading.get_ident()}


def test_one_model_that_many_ask_for_at_once_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmsim_magic.capture.models import meta_model

    built: list[Any] = []
    really = meta_model.from_config
    monkeypatch.setattr(
        meta_model, "from_config", lambda *a, **k: built.append(a) or really(*a, **k)
    )
    llmsim.forget()
    with hasty(), ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: llmsim.trace("gpt2", context=3).trace, range(8)))
    assert len(built) == 1
    assert all(trace == found[0] for trace in found)


class Besides:
    """What another thread of the user's goes on doing while this is open, and what it sees."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self._act = act
        self._stop = threading.Event()
        self.seen: list[Any] = []
        self._thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        while not self._stop.is_set():
            self.seen.append(self._act())

    def __enter__(self) -> "Besides":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()


def _many_traces() -> None:
    for _ in range(3):
        llmsim.forget()
        for name in ("module", "live", "name", "bfloat16"):
            ASKED[name]()


def _training() -> Iterator[float]:
    """The losses of a small training with dropout, one step after another."""
    module = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1)).to(torch.float32)
    optimiser = torch.optim.SGD(module.parameters(), 0.01)
    while True:
        optimiser.zero_grad()
        loss = module(torch.randn(3, 4, dtype=torch.float32)).square().mean()
        loss.backward()
        optimiser.step()
        yield loss.item()


@pytest.mark.slow
def test_a_training_in_another_thread_draws_the_same_numbers_as_without_us() -> None:
    ASKED["name"]()
    ASKED["bfloat16"]()  # built, so that only passes go on beside it
    torch.manual_seed(3)
    with hasty(), Besides(partial(next, _training())) as training:
        for context in range(2, 20):
            llmsim.trace("gpt2", context=context, phase="decode")
            llmsim.trace(PLAIN, inputs=X)
    torch.manual_seed(3)
    assert training.seen == list(islice(_training(), len(training.seen)))


def test_another_thread_keeps_its_own_modes() -> None:
    def state() -> Any:
        with torch.enable_grad(), torch.device("meta"):
            inside = (torch.is_grad_enabled(), torch.empty(1).device.type)
        return (*inside, torch.is_grad_enabled(), torch.empty(1).device.type)

    with hasty(), Besides(state) as other:
        _many_traces()
    assert set(other.seen) == {(True, "meta", True, "cpu")}


# random numbers


class Draws(nn.Module):
    def __init__(self, draw: Callable[[], Any]) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.draw = draw

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.draw()
        return self.lin(x)


DRAWS = {
    "python": random.random,
    "numpy": np.random.rand,
    "torch": lambda: torch.rand(3),
    "in place": lambda: torch.empty(3).normal_(),
    "like another": lambda: torch.randint_like(torch.arange(3), 9),
    "dropout": lambda: nn.functional.dropout(torch.ones(9), training=True),
    "a seed": lambda: torch.manual_seed(5),
    "the same seed": lambda: torch.manual_seed(torch.initial_seed()),
    "permutation": lambda: torch.randperm(5),
    "multinomial": lambda: torch.multinomial(torch.ones(5), 3),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_forward_that_draws_moves_no_generator(draw: Callable[[], Any]) -> None:
    torch.rand(7)
    module = Draws(draw)
    numpys = np.random.get_state()[1:3]
    with assert_state_unchanged(module):
        first = llmsim.trace(module, inputs=X).trace
    assert str(np.random.get_state()[1:3]) == str(numpys)
    torch.rand(1)
    assert llmsim.trace(module, inputs=X).trace == first


def test_a_class_that_draws_as_it_is_built_moves_no_generator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers.models.llama import modeling_llama

    really = modeling_llama.LlamaMLP.__init__

    def build(self: Any, config: Any) -> None:
        really(self, config)
        self.register_buffer("noise", torch.rand(3), persistent=False)
        self.number = (random.random(), np.random.rand(), torch.manual_seed(3).initial_seed())

    monkeypatch.setattr(modeling_llama.LlamaMLP, "__init__", build)
    llmsim.forget()
    with assert_state_unchanged():
        llmsim.trace(small_models.llama(), context=5)
    llmsim.forget()


# what the caller is in


class Heard(TorchDispatchMode):
    """A mode of the user's that hears of kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.heard.append(func)
        return func(*args, **(kwargs or {}))


class Doubles(TorchDispatchMode):
    """Changes every result."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return out.double() if isinstance(out, torch.Tensor) else out


class Refuses(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise ValueError("no kernel here")


class HeardFunctions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.heard.append(func)
        return func(*args, **(kwargs or {}))


class RefusesFunctions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise ValueError("no function here")


@contextmanager
def _set(change: Callable[[Any], Any], value: Any, before: Any) -> Iterator[None]:
    change(value)
    try:
        yield
    finally:
        change(before)


def _watching(*_: Any) -> Any:
    return _watching


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "device meta": lambda: torch.device("meta"),
    "device cpu": lambda: torch.device("cpu"),
    "default device": lambda: _set(torch.set_default_device, "meta", None),
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "heard": Heard,
    "doubles": Doubles,
    "refuses": Refuses,
    "functions": HeardFunctions,
    "refuses functions": RefusesFunctions,
    "no functions": torch._C.DisableTorchFunction,
    "flop counter": lambda: FlopCounterMode(display=False),
    "fake tensors": FakeTensorMode,
    "profiler": torch.profiler.profile,
    "autograd profiler": torch.autograd.profiler.profile,
    "saved on the host": torch.autograd.graph.save_on_cpu,
    "deterministic": lambda: _set(torch.use_deterministic_algorithms, True, False),
    "debugger": lambda: _set(sys.settrace, _watching, sys.gettrace()),
    "python profiler": lambda: _set(sys.setprofile, lambda *_: None, sys.getprofile()),
    "more than one": lambda: _nested(torch.inference_mode(), Heard(), torch.device("meta")),
}


@contextmanager
def _nested(*contexts: AbstractContextManager[Any]) -> Iterator[None]:
    if not contexts:
        yield
        return
    with contexts[0], _nested(*contexts[1:]):
        yield


def _thread_state() -> list[str]:
    """All that torch keeps for a thread."""
    return [
        str(torch._C._dispatch_tls_local_include_set()),
        str(torch._C._dispatch_tls_local_exclude_set()),
        str(torch.is_grad_enabled()),
        str(torch.is_inference_mode_enabled()),
        str(torch._C._len_torch_dispatch_stack()),
        str(torch._C._len_torch_function_stack()),
        str(torch._C._is_torch_function_enabled()),
        str(torch._C._functorch.peek_interpreter_stack() is None),
        str(getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)),
    ]


@pytest.mark.parametrize("surroundings", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_alone_is_as_a_thread_of_its_own(
    surroundings: Callable[[], AbstractContextManager[Any]],
) -> None:
    with ThreadPoolExecutor(1) as pool:
        of_a_thread = pool.submit(_thread_state).result()
    with surroundings():
        with isolated():
            inside = _thread_state()
        with suppress(ZeroDivisionError), isolated():
            raise ZeroDivisionError
    assert inside == of_a_thread


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("surroundings", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_a_trace_is_the_same_whatever_its_caller_is_in(
    surroundings: Callable[[], AbstractContextManager[Any]], wanted: dict[str, Any]
) -> None:
    llmsim.forget()
    with assert_state_unchanged(PLAIN, LIVE), surroundings() as mode:
        before = _thread_state()
        for name, ask in ASKED.items():
            assert ask() == wanted[name], name
        assert _thread_state() == before
    assert not getattr(mode, "heard", None)


def test_a_mistake_leaves_the_callers_modes_as_they_were() -> None:
    with Heard(), torch.inference_mode(), torch.device("meta"), torch.autocast("cpu"):
        before = _thread_state()
        with pytest.raises(LlmsimError):
            llmsim.trace(PLAIN, inputs=torch.ones(2, 5))
        assert _thread_state() == before


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_default_dtype_is_said_and_not_remembered_for_this_one(
    dtype: torch.dtype, wanted: dict[str, Any]
) -> None:
    name = str(dtype).removeprefix("torch.")
    with _set(torch.set_default_dtype, dtype, torch.float32):
        own, named = ASKED["module"](), ASKED["name"]()
    assert name in {tensor.dtype for tensor in own.tensors}
    for trace in (own, named):
        assert [note for note in trace.notes if f"default dtype is {name}" in note]
    assert ASKED["name"]() == wanted["name"]


def test_fake_and_batched_tensors_are_traced_or_refused_in_one_line() -> None:
    with FakeTensorMode():
        fake = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        inputs = torch.ones(2, 4)
    for module, given in ((fake, X), (PLAIN, inputs), (fake, inputs)):
        with suppress(LlmsimError):
            assert len(llmsim.trace(module, inputs=given).ops)

    def ask(x: torch.Tensor) -> torch.Tensor:
        with suppress(LlmsimError):
            llmsim.trace(PLAIN, inputs=x)
        return x * len(llmsim.trace(PLAIN, inputs=X).ops)

    number = len(llmsim.trace(PLAIN, inputs=X).ops)
    assert torch.equal(torch.func.vmap(ask)(X), X * number)
    assert torch.equal(torch.func.grad(lambda x: ask(x).sum())(X), torch.full_like(X, number))


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")
def test_a_compiled_function_may_ask(wanted: dict[str, Any]) -> None:
    found = []

    def ask(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        found.append(llmsim.trace(PLAIN, inputs=X).trace)
        return y * 2

    assert torch.equal(torch.compile(ask, backend="eager")(X), X * 4)
    assert found == [wanted["module"]]


def test_a_coroutine_may_ask(wanted: dict[str, Any]) -> None:
    async def ask(name: str) -> Any:
        await asyncio.sleep(0)
        return ASKED[name]()

    async def all_of_them() -> Any:
        here = await asyncio.gather(*map(ask, ("module", "name")))
        return [*here, await asyncio.to_thread(ASKED["live"])]

    assert asyncio.run(all_of_them()) == [wanted[name] for name in ("module", "name", "live")]


def test_too_little_stack_is_one_line() -> None:
    depth = len(__import__("inspect").stack())
    with (
        _set(sys.setrecursionlimit, depth + 20, sys.getrecursionlimit()),
        pytest.raises((LlmsimError, RecursionError)),
    ):
        llmsim.trace(PLAIN, inputs=X)
    with assert_state_unchanged(PLAIN):
        assert len(llmsim.trace(PLAIN, inputs=X).ops)


# asked from within


class Asks(nn.Module):
    """A forward that asks for a trace."""

    def __init__(self, ask: Callable[["Asks"], Any]) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.ask = ask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.ask(self)
        return self.lin(x)


@pytest.mark.parametrize(
    "ask",
    [
        lambda module: llmsim.trace(module, inputs=X),
        lambda module: llmsim.trace(PLAIN, inputs=X),
        lambda module: llmsim.trace("gpt2"),
        lambda module: llmsim.sweep(small_models.qwen3(), batch=[1], context=[2]),
    ],
    ids=["itself", "another", "name", "sweep"],
)
def test_a_forward_that_asks_for_a_trace_is_refused_in_one_line(ask: Callable[..., Any]) -> None:
    module = Asks(ask)
    with (
        assert_state_unchanged(module),
        pytest.raises(RecursiveTrace, match="cannot start a trace"),
    ):
        llmsim.trace(module, inputs=X)
    assert len(llmsim.trace(PLAIN, inputs=X).ops)


def test_a_class_that_asks_as_it_is_built_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama import modeling_llama

    def build(self: Any, config: Any) -> None:
        llmsim.trace("gpt2")

    monkeypatch.setattr(modeling_llama.LlamaMLP, "__init__", build)
    llmsim.forget()
    with pytest.raises(LlmsimError, match="cannot start a trace"):
        llmsim.trace(small_models.llama(), context=5)


def test_a_finaliser_may_ask_whenever_it_runs() -> None:
    """It runs in any thread, in the midst of anything: a trace or a refusal, never a deadlock."""
    ended: list[Any] = []

    class Dying:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            try:
                ended.append(len(llmsim.trace(PLAIN, inputs=X).ops))
            except LlmsimError as error:
                ended.append(error)

    llmsim.trace("gpt2", context=9)  # imports everything
    before = gc.get_threshold()
    gc.set_threshold(50)
    try:
        for context in range(2, 6):
            Dying()
            llmsim.forget()
            llmsim.trace("gpt2", context=context)
    finally:
        gc.set_threshold(*before)
        gc.collect()
    assert len(ended) == 4


# processes


def _traced_in_a_child(results: Any) -> None:
    results.put([ASKED[name]() for name in ("module", "name", "live")])


fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes fork here")


@fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_in_the_midst_of_a_pass_can_trace(wanted: dict[str, Any]) -> None:
    """Of the thread that had its turn there is nothing in the child."""
    entered, leave = threading.Event(), threading.Event()

    def hold(_: Any) -> None:
        entered.set()
        leave.wait(30)

    holder = threading.Thread(target=lambda: llmsim.trace(Asks(hold), inputs=X))
    holder.start()
    entered.wait(30)
    try:
        context = multiprocessing.get_context("fork")
        results = context.SimpleQueue()
        child = context.Process(target=_traced_in_a_child, args=(results,))
        child.start()
        child.join(60)
        assert child.exitcode == 0
    finally:
        leave.set()
        holder.join()
    assert results.get() == [wanted[name] for name in ("module", "name", "live")]
    with model_lock:
        pass


@fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_model_of_a_pass_that_a_fork_cut_short_answers_as_before() -> None:
    from transformers.models.qwen3 import modeling_qwen3

    report = llmsim.trace(small_models.qwen3(), context=5)
    entered, leave = threading.Event(), threading.Event()
    really = modeling_qwen3.Qwen3MLP.forward

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        self.spoilt = True
        entered.set()
        leave.wait(30)
        return really(self, x)

    expected = report.tracer.trace(capture.Workload("prefill", 1, 9))
    llmsim.forget()
    report = llmsim.trace(small_models.qwen3(), context=5)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(modeling_qwen3.Qwen3MLP, "forward", forward)
        holder = threading.Thread(
            target=report.tracer.trace, args=(capture.Workload("decode", 1, 9),)
        )
        holder.start()
        entered.wait(30)
        child = os.fork()
        if not child:
            leave.set()
            patched.undo()
            same = report.tracer.trace(capture.Workload("prefill", 1, 9)) == expected
            os._exit(0 if same else 1)
        leave.set()
        holder.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_trace_the_same(method: str) -> None:
    context = multiprocessing.get_context(method)
    asked: dict[str, Any] = {"batch": [1, 2], "context": [3, 4]}
    here = llmsim.sweep(small_models.llama(), **asked).traces
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        assert llmsim.sweep(small_models.llama(), **asked, executor=pool).traces == here


ODD = {
    "warnings are errors": ("", ["-W", "error"]),
    "no output": ("import sys; sys.stdout.close(); sys.stderr.close()", []),
    "a Turkish locale": (
        "import locale\ntry: locale.setlocale(locale.LC_ALL, 'tr_TR.UTF-8')\nexcept locale.Error:"
        " locale.setlocale(locale.LC_ALL, 'C')",
        [],
    ),
    "optimised": ("", ["-O"]),
    "a development build's checks": ("", ["-X", "dev"]),
}
_ASKED = """
import os
import llmsim_magic as llmsim
report = llmsim.trace("gpt2", context=5)
report.ops, report.summary
svg = report.dependency_graph().svg
os._exit(0 if len(report.ops) > 50 and "<svg" in svg else 1)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("first", "options"), ODD.values(), ids=ODD)
def test_an_odd_process_has_its_answer(first: str, options: list[str]) -> None:
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    ran = subprocess.run(
        [sys.executable, *options, "-c", f"{first}\n{_ASKED}"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]


@pytest.mark.slow
def test_a_process_that_ends_may_ask_a_last_time() -> None:
    code = (
        "import atexit, torch, llmsim_magic as llmsim\n"
        "atexit.register(lambda: print(len(llmsim.trace('gpt2', context=5).ops) > 50))\n"
        "llmsim.trace('gpt2', context=4)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["True"], ran.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("imported", ["torch", "torch, transformers"])
def test_a_process_whose_folder_is_gone_is_told_so_in_one_line(imported: str) -> None:
    """transformers asks for it whenever it loads one of its files."""
    code = (
        f"import os, tempfile, {imported}\n"
        "torch.ones(2, 2) @ torch.ones(2, 2)  # which needs a folder itself, the first time\n"
        "d = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d)\n"
        "import llmsim_magic as llmsim\n"
        "from llmsim_magic.records.errors import LlmsimError\n"
        "try: llmsim.trace('gpt2', context=5)\n"
        "except LlmsimError as error: print(error)"
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "No such file or directory" in ran.stdout, ran.stderr
    assert len(ran.stdout.splitlines()) == 1


def test_plots_that_are_drawn_at_once_leave_the_users_style_alone() -> None:
    import matplotlib
    from matplotlib.figure import Figure

    from llmsim_magic.views.plots.plot import render_figure

    def draw(_: int) -> bytes:
        return render_figure(lambda: Figure(figsize=(1, 1)), "salt", "svg")

    with matplotlib.rc_context({"font.size": 17.5}), hasty(), ThreadPoolExecutor(4) as pool:
        before = dict(matplotlib.rcParams)
        pictures = set(pool.map(draw, range(24)))
        assert dict(matplotlib.rcParams) == before
    assert len(pictures) == 1


def test_a_picture_leaves_what_elementtree_calls_a_namespace_alone() -> None:
    from xml.etree import ElementTree

    report = llmsim.trace("gpt2", context=5, hardware="H100")
    for picture in (report.costing.roofline.svg, report.dependency_graph().svg):
        assert ElementTree.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"
    shape = ElementTree.Element("{http://www.w3.org/2000/svg}rect")
    assert ElementTree.tostring(shape).startswith(b"<ns0:rect")


def test_hooks_on_all_modules_hear_of_other_threads_alone() -> None:
    from torch.nn.modules import module

    live = torch.nn.Sequential(torch.nn.Linear(2, 2))
    heard: list[int] = []
    handles = [
        register(lambda *_: heard.append(threading.get_ident()))
        for register in (
            module.register_module_forward_hook,
            module.register_module_forward_pre_hook,
            module.register_module_module_registration_hook,
            module.register_module_parameter_registration_hook,
        )
    ]
    try:
        with assert_state_unchanged():
            llmsim.forget()
            llmsim.trace("gpt2")
            llmsim.trace(live, inputs=torch.ones(1, 2))
        assert heard == []
        live(torch.ones(1, 2))
        assert heard
    finally:
        for handle in handles:
            handle.remove()
