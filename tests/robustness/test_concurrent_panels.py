"""Panels and cells that run at the same time do not affect each other."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

import llmsim_magic as llmsim
from llmsim_magic import load_ipython_extension
from llmsim_magic.capture.meta.isolation import model_lock
from llmsim_magic.notebook.panel.panel import panel
from tests.helpers import small_models
from tests.helpers.global_state import assert_state_unchanged
from tests.helpers.shells import NO_HISTORY
from tests.integration.test_panel import wait_for
from tests.robustness.test_concurrency import hasty

CONTEXTS = (3, 4, 5, 6)


@contextmanager
def no_error_in_a_thread() -> Iterator[None]:
    """Fails where a thread ends with an exception that nobody caught."""
    lost: list[Any] = []
    before, threading.excepthook = threading.excepthook, lost.append
    try:
        yield
    finally:
        threading.excepthook = before
    assert lost == []


@pytest.mark.parametrize("same", [True, False], ids=["one model", "two models"])
def test_two_panels_show_each_its_own(same: bool) -> None:
    models = [small_models.qwen3(), small_models.qwen3() if same else small_models.gpt2()]
    panels = [panel(model, context=2) for model in models]
    with no_error_in_a_thread(), assert_state_unchanged(), hasty():
        for context in CONTEXTS:
            for shown in panels:
                shown.controls.context.number.value = str(context)
            for shown, model in zip(panels, models, strict=True):
                wait_for(lambda shown=shown: not shown.status.is_busy, 60)
                assert shown.status.error == ""
                assert shown.report.trace == llmsim.trace(model, context=context).trace


def test_a_panel_and_cells_at_once_have_each_their_answer() -> None:
    wanted = [llmsim.trace("gpt2", context=context, phase="decode").trace for context in CONTEXTS]
    model = small_models.qwen3()
    shown = panel(model, context=2)
    with no_error_in_a_thread(), assert_state_unchanged(), hasty():
        for place, context in enumerate(CONTEXTS):
            llmsim.forget()
            shown.controls.context.number.value = str(context)
            cell = llmsim.trace("gpt2", context=context, phase="decode").trace
            wait_for(lambda: not shown.status.is_busy, 60)
            assert cell == wanted[place]
            assert shown.report.trace == llmsim.trace(model, context=context).trace


def test_a_panel_that_is_closed_as_it_works_leaves_nothing() -> None:
    threads = threading.active_count()
    with no_error_in_a_thread(), assert_state_unchanged():
        for context in CONTEXTS:
            shown = panel(small_models.llama(), context=context)
            shown.refresh()
            shown.widget.close_all() if context == CONTEXTS[-1] else shown.widget.close()
        wait_for(lambda: threading.active_count() == threads, 60)
    assert len(llmsim.trace(small_models.llama(), context=5).ops)


def test_a_panel_in_a_cell_that_is_run_again_takes_the_place_of_the_older() -> None:
    with no_error_in_a_thread(), assert_state_unchanged():
        for context in CONTEXTS:
            shown = panel("gpt2", context=context)
            shown.refresh()
        wait_for(lambda: not shown.status.is_busy, 60)
    assert shown.report.trace.workload.context == CONTEXTS[-1]
    assert torch.get_default_dtype() == torch.float32


def test_a_cell_begins_when_no_thread_builds_a_model() -> None:
    """Transformers builds a model under its own default dtype, which is the whole process's."""
    shell = InteractiveShell(config=NO_HISTORY)
    load_ipython_extension(shell)
    building = threading.Event()

    def build() -> None:
        with model_lock, torch_dtype(torch.bfloat16):
            building.set()
            time.sleep(0.2)

    thread = threading.Thread(target=build)
    thread.start()
    building.wait()
    shell.run_cell("import torch\nfound = torch.ones(1).dtype")
    thread.join()
    assert shell.user_ns["found"] == torch.float32


@contextmanager
def torch_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
