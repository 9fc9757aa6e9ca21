"""The panel without a browser: what its controls ask for, and what they show."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import GPT2Config

import llmsim_magic as llmsim
from llmsim_magic.notebook.arguments import parse
from llmsim_magic.notebook.panel.panel import Panel, panel
from llmsim_magic.notebook.panel.table import _rows_json
from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.simulate.option_effect import require_panel_options
from llmsim_magic.simulate.sweeps import run_workloads
from llmsim_magic.simulate.views import VIEWS
from llmsim_magic.views import units
from llmsim_magic.views.file_names import file_stem
from llmsim_magic.views.safe_files import MANIFEST
from tests.helpers import small_models


@pytest.fixture
def shown() -> Iterator[Panel]:
    """A panel that shows a small model."""
    made = panel(small_models.qwen3(), context=5)
    run_and_wait(made, made.refresh)
    yield made
    made.cancel()


def run_and_wait(shown: Panel, act: Callable[[], Any]) -> None:
    """Do something, and wait until the panel has its answer."""
    act()
    wait_for(lambda: not shown.status.is_busy)


def wait_for(holds: Callable[[], bool], limit_s: float = 30) -> None:
    until = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.002)


def ask(shown: Panel, name: str, value: Any) -> None:
    control = getattr(shown.controls, name)
    is_size = hasattr(control, "number")
    given = str(value) if is_size else value
    run_and_wait(shown, lambda: setattr(control.number if is_size else control, "value", given))


def open_tab(shown: Panel, view: str) -> None:
    place = list(VIEWS).index(view)
    run_and_wait(shown, lambda: setattr(shown._tabs.widget, "selected_index", place))


def test_it_answers_what_the_controls_ask_for(shown: Panel) -> None:
    ask(shown, "phase", "decode")
    ask(shown, "batch", 16)
    ask(shown, "dtype", "float16")
    workload = shown.report.trace.workload
    assert (workload.phase, workload.batch, workload.context) == ("decode", 16, 5)
    assert shown.report.trace.model.dtype == "float16"
    assert "decode, batch 16 × context 5" in shown.status.message


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_has_a_tab(shown: Panel, view: str) -> None:
    open_tab(shown, view)
    assert shown.report.shows(view)
    tabs = shown._tabs.widget
    assert tabs.titles[tabs.selected_index]
    assert tabs.children[tabs.selected_index] is shown.panes[view].widget


def test_what_is_known_is_not_asked_again(shown: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    first = shown.report
    ask(shown, "batch", 2)
    monkeypatch.setattr("llmsim_magic.notebook.panel.panel.answer", None)
    ask(shown, "batch", 1)
    assert shown.report is first


def test_a_mistake_is_one_line_and_greys_what_is_shown_until_the_next_answer(shown: Panel) -> None:
    before = shown.report
    ask(shown, "model", "no/such/model")
    assert "no/such/model" in shown.status.error
    assert "\n" not in shown.status.error
    assert "UnknownModel" in shown.status.details
    assert "llmsim-stale" in shown._tabs.widget._dom_classes
    assert shown.report is before
    ask(shown, "model", "distilgpt2")
    assert shown.status.error == ""
    assert "llmsim-stale" not in shown._tabs.widget._dom_classes
    assert shown.report.trace.model.name == "distilgpt2"


def test_a_dropdown_chooses_the_runtime(shown: Panel) -> None:
    assert shown.controls.runtime.options[0] == ("every runtime", "")
    assert shown.controls.runtime.disabled, "a summary without a device has no figure of a runtime"
    open_tab(shown, "memory")
    assert not shown.controls.runtime.disabled
    assert set(shown.report.memory["runtime"]) == {"transformers"}
    ask(shown, "hardware", "H100-SXM5-80GB")
    assert set(shown.report.memory["runtime"]) == {"transformers", "vllm"}
    assert "under transformers and vLLM" in shown.panes["memory"].widget.value
    ask(shown, "runtime", "vllm")
    assert set(shown.report.memory["runtime"]) == {"vllm"}
    assert set(shown.report.latency["runtime"]) == {"vllm"}
    assert "under vLLM" in shown.panes["memory"].widget.value


def test_a_runtime_that_does_not_cover_the_model_is_one_line() -> None:
    made = panel(small_models.bert(), context=5, hardware="H100", runtime="vllm")
    assert made.controls.runtime.value == "vllm"
    run_and_wait(made, made.refresh)
    assert made.status.error.startswith("runtime must be transformers for")
    ask(made, "runtime", "")
    assert made.status.error == ""
    assert set(made.report.latency["runtime"]) == {"transformers"}
    assert "no rows of vLLM" in made.panes["summary"].widget.value
    made.cancel()


def test_every_runtime_may_be_given_by_name() -> None:
    made = panel(small_models.qwen3(), view="memory", context=5, runtime="all")
    run_and_wait(made, made.refresh)
    assert set(made.report.memory["runtime"]) == {"transformers", "vllm"}
    made.cancel()


class Gate:
    """Holds a trace until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered: list[Any] = []
        self.open = threading.Event()
        really = run_workloads.evaluate_or_trace

        def traced(recipe: Any, workload: Any, replay: bool, cancelled: Any) -> Any:
            self.entered.append(workload)
            while not self.open.wait(0.005):
                if cancelled():
                    raise KeyboardInterrupt
            return really(recipe, workload, replay, cancelled)

        monkeypatch.setattr(run_workloads, "evaluate_or_trace", traced)


def test_two_quick_clicks_are_one_trace(shown: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    shown.controls.batch.number.value = "4"
    shown._buttons.trace.click()
    shown._buttons.trace.click()
    wait_for(lambda: bool(gate.entered))
    gate.open.set()
    wait_for(lambda: not shown.status.is_busy)
    assert len(gate.entered) == 1
    assert shown.report.trace.workload.batch == 4


def test_a_newer_question_takes_the_place_of_an_older(
    shown: Panel, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    shown.controls.batch.number.value = "4"
    wait_for(lambda: len(gate.entered) == 1)
    shown.controls.batch.number.value = "8"
    wait_for(lambda: len(gate.entered) == 2)
    gate.open.set()
    wait_for(lambda: not shown.status.is_busy)
    assert shown.report.trace.workload.batch == 8


def test_cancel_answers_at_once_leaves_no_thread_and_the_next_try_works(
    shown: Panel, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    shown.controls.batch.number.value = "4"
    wait_for(lambda: bool(gate.entered))
    assert not shown._buttons.cancel.disabled
    started = time.monotonic()
    shown._buttons.cancel.click()
    assert time.monotonic() - started < 0.5
    assert not shown.status.is_busy
    assert shown.status.message == "cancelled"
    wait_for(lambda: not [t for t in threading.enumerate() if t.name == "llmsim"], 0.5)
    gate.open.set()
    run_and_wait(shown, shown._buttons.trace.click)
    assert shown.report.trace.workload.batch == 4


def test_building_can_be_cancelled() -> None:
    llmsim.forget()
    started = threading.Event()
    with pytest.raises(LlmsimError, match="cancelled while it was built"):
        llmsim.sweep(
            GPT2Config(n_layer=300, n_embd=8, n_head=2, vocab_size=11),
            progress=lambda message: started.set() if "building" in message else None,
            cancelled=started.is_set,
        )


def test_a_row_that_is_chosen_is_explained_and_marked_in_the_graph(shown: Panel) -> None:
    open_tab(shown, "ops")
    pane: Any = shown.panes["ops"]
    ops = shown.report.ops
    order = int(ops.index[(ops["layer"] == 1) & (ops["op"] == "Linear")][0])
    pane._table.widget.selected_rows = [order]
    assert f"operator {order}" in pane._detail.widget.value
    # The browser finds the node, for there its layer may be open or folded.
    node = pane._place.widget.chosen
    assert node == f"n{order}"
    open_tab(shown, "deps")
    assert shown.panes["deps"]._picture.widget.chosen == node
    assert f"operator {order}" in shown.panes["deps"]._detail.widget.value


def test_a_node_that_is_clicked_selects_its_row(shown: Panel) -> None:
    open_tab(shown, "topological")
    shown.panes["topological"]._picture.widget.chosen = "n5"
    assert "operator 5" in shown.panes["topological"]._detail.widget.value
    open_tab(shown, "ops")
    assert shown.panes["ops"]._table.widget.selected_rows == [5]


def test_a_chosen_operator_stays_chosen_under_another_workload(shown: Panel) -> None:
    open_tab(shown, "ops")
    shown.select_operator(5)
    ask(shown, "batch", 8)
    assert shown.panes["ops"]._table.selected == 5
    ask(shown, "model", "distilgpt2")
    assert shown.panes["ops"]._table.selected is None


def test_filters_leave_the_rows_that_match_while_another_row_is_selected(shown: Panel) -> None:
    open_tab(shown, "ops")
    pane: Any = shown.panes["ops"]
    ops = shown.report.ops
    pane._layer.value = (1,)
    pane._kind.value = "module"
    pane._path.value = "mlp"
    wanted = ops.index[
        (ops["layer"] == 1) & (ops["kind"] == "module") & ops["path"].str.contains("mlp")
    ]
    assert pane._table._labels == [*wanted]
    shown.select_operator(0)
    assert pane._table._labels == [*wanted]
    assert "operator 0" in pane._detail.widget.value
    shown.select_operator(wanted[1])
    assert pane._table.widget.selected_rows == [1]
    pane._path.value = "down"
    assert pane._table._labels == [*ops.index[ops["path"].str.contains("layers.1.mlp.down")]]
    assert f"operator {wanted[1]}" in pane._detail.widget.value
    pane._path.value, pane._kind.value, pane._layer.value = "", "", (None,)
    assert set(pane._table._labels) == {*ops.index[ops["layer"].isna()]}


def test_an_operator_is_chosen_by_its_number(shown: Panel) -> None:
    open_tab(shown, "ops")
    pane: Any = shown.panes["ops"]
    for number in (0, 7):
        pane._number.value = str(number)
        assert pane._table.selected == number
    last = len(shown.report.ops) - 1
    for illegal in ("100000", str(last + 1), "-1", "1.5", "seven"):
        pane._number.value = illegal
        assert pane._number.value == illegal
        assert f"operator must be a whole number from 0 to {last}" in pane._refusal.value
        assert pane._table.selected == 7
    pane._number.value = "8"
    assert pane._refusal.value == ""
    pane._number.value = ""
    assert pane._table.selected is None


def test_any_size_is_typed_and_the_usual_ones_are_slid_to(shown: Panel) -> None:
    run_and_wait(shown, lambda: setattr(shown.controls.context.number, "value", "200"))
    assert shown.report.trace.workload.context == 200
    assert shown.controls.context.slider.value == 128
    run_and_wait(shown, lambda: setattr(shown.controls.context.slider, "value", 512))
    assert shown.report.trace.workload.context == 512


def test_many_workloads_take_no_phase_batch_and_context(shown: Panel) -> None:
    open_tab(shown, "multi-config")
    assert shown.controls.phase.disabled
    assert "8 workloads" in shown.status.message
    open_tab(shown, "summary")
    assert not shown.controls.phase.disabled


def test_a_device_is_chosen_like_anything_else(shown: Panel) -> None:
    open_tab(shown, "costs")
    ask(shown, "hardware", "H100-SXM5-80GB")
    assert "limited by" in shown.panes["costs"].widget.value
    assert "--hardware H100-SXM5-80GB" in shown._export._line.text
    ask(shown, "tp", "2")
    assert "plan" in shown.status.error or shown.report.trace.model.parallel.tp == 2


@pytest.mark.parametrize("field", ["batch", "context"])
def test_an_illegal_size_is_refused_as_the_magic_refuses_it_and_stays(
    shown: Panel, field: str
) -> None:
    before, control = shown.report, getattr(shown.controls, field)
    for typed in ("0", "-1", "", "many", "1.5", "1e3", "--5", str(2**31), "9" * 5000, "1,2"):
        ask(shown, field, typed)
        assert control.number.value == typed
        with pytest.raises(LlmsimError) as refused:
            require_panel_options(parse(["small", f"--{field}={typed}"]).request)
        assert shown.status.error == str(refused.value)
        assert shown.report is before
        assert "llmsim-stale" in shown._tabs.widget._dom_classes
    ask(shown, field, 3)
    assert shown.status.error == ""
    assert getattr(shown.report.trace.workload, field) == 3


def test_the_slider_leads_back_from_an_illegal_size(shown: Panel) -> None:
    ask(shown, "batch", "many")
    run_and_wait(shown, lambda: setattr(shown.controls.batch.slider, "value", 8))
    assert shown.controls.batch.number.value == "8"
    assert shown.report.trace.workload.batch == 8


def downloads(shown: Panel) -> dict[str, Any]:
    return {button.label: button for button, _ in shown._export._files.values()}


def downloaded(shown: Panel, label: str) -> list[str]:
    """The names of the files that a click on a download sends."""
    names: list[str] = []
    button = downloads(shown)[label]
    button.send_file = lambda name, content: names.append(name)
    button._handle_custom_msg({}, [])
    return names


def test_without_a_report_there_is_nothing_to_download() -> None:
    empty = panel()
    assert all(button.is_disabled for button in downloads(empty).values())
    assert empty._export._save.disabled
    assert downloaded(empty, "CSV") == []


def test_a_download_is_always_of_the_tab_that_is_shown(
    shown: Panel, monkeypatch: pytest.MonkeyPatch
) -> None:
    stem = file_stem(shown.report.trace)
    for view, table in {"memory": "memory", "ops": "ops", "costs": "costs"}.items():
        open_tab(shown, view)
        assert downloaded(shown, "CSV") == [f"{stem}.{table}.csv"]
        assert downloaded(shown, "HTML") == [f"{stem}.{view}.html"]
    open_tab(shown, "deps")
    assert downloaded(shown, "DOT") == [f"{stem}.deps.dot"]
    gate = Gate(monkeypatch)
    shown.controls.batch.number.value = "4"
    wait_for(lambda: bool(gate.entered))
    assert all(button.is_disabled for button in downloads(shown).values())
    assert shown._export._save.disabled
    assert downloaded(shown, "CSV") == []
    shown._buttons.cancel.click()
    assert downloaded(shown, "CSV") == []
    ask(shown, "batch", 1)
    assert not any(button.is_disabled for button in downloads(shown).values())
    assert downloaded(shown, "CSV") == [f"{stem}.edges.csv"]


def test_with_a_device_each_operator_has_a_time_under_each_execution(shown: Panel) -> None:
    open_tab(shown, "ops")
    pane: Any = shown.panes["ops"]
    assert not [name for name in pane._table.widget.df if "time" in name]
    ask(shown, "hardware", "H100-SXM5-80GB")
    table, times = pane._table.widget.df, shown.report.times
    executions = shown.report.costing.executions()
    assert len(executions) == 3
    for execution in executions:
        rows = times[
            (times["runtime"] == execution.runtime) & (times["launch"] == execution.launch)
        ]
        seconds = rows["time_s"].fillna(0)
        exact = pd.to_numeric(table[f"exact time ({execution})"]).fillna(0)
        assert exact.tolist() == pytest.approx(seconds.tolist())
        longest = int(seconds.argmax())
        shown_text = table[f"time ({execution})"].iloc[longest]
        assert shown_text == units.seconds(seconds.iloc[longest])
    ask(shown, "runtime", "vllm")
    assert "time" in pane._table.widget.df


@pytest.mark.parametrize(("view", "folded"), [("deps", "Dataflow"), ("ops", "Modules")])
def test_a_tab_shows_the_page_of_its_view_around_what_is_interactive(
    shown: Panel, view: str, folded: str
) -> None:
    open_tab(shown, view)
    ask(shown, "hardware", "H100-SXM5-80GB")
    page: Any = shown.panes[view]._page
    (own,) = [part for part in shown.report.content().parts if part.name == view]
    assert all(figure.value in page.above.value for figure in own.figures)
    assert "<table" not in page.above.value
    assert f"<summary>{folded}</summary>" in page.below.value
    assert "Time" in page.below.value
    assert "llmsim-graph" not in page.above.value + page.below.value


def test_rows_are_those_that_itables_makes_of_the_texts(shown: Panel) -> None:
    open_tab(shown, "ops")
    table = shown.panes["ops"]._table.widget
    rows, frame = json.loads(table._dt_args["data_json"]), table.df
    assert len(rows) == len(shown.report.ops)
    for texts in (frame, frame.assign(op="<b> & 'c'")):
        own = json.loads(_rows_json(texts))
        table.df = texts
        assert json.loads(table._dt_args["data_json"]) == own
    assert rows != own


def test_quantities_are_sorted_and_hovered_by_their_exact_numbers(shown: Panel) -> None:
    open_tab(shown, "ops")
    table = shown.panes["ops"]._table.widget
    names = list(table.df)
    definitions = table._dt_args["columnDefs"]
    exact = next(
        each["orderData"] for each in definitions if each["targets"] == names.index("FLOPs")
    )
    assert names[exact] == "exact flops"
    assert [int(text.replace(",", "")) for text in table.df["exact flops"]] == [
        int(flops) for flops in shown.report.ops["flops"]
    ]


def test_save_all_writes_tables_graphs_and_a_page(shown: Panel, tmp_path: Path) -> None:
    open_tab(shown, "deps")
    shown._export._folder.value = str(tmp_path / "out")
    shown._export._save.click()
    stem = file_stem(shown.report.trace)
    whats = ("modules.csv", "edges.csv", "deps.svg", "deps.json", "deps.dot", "deps.html")
    names = {f"{stem}.{what}" for what in whats}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names | {MANIFEST}
    assert shown.status.message == f"Wrote 6 files to {tmp_path / 'out'}/"
    ask(shown, "batch", 2)
    shown._export._save.click()
    assert len(list((tmp_path / "out").iterdir())) == 2 * len(names) + 1


def test_a_folder_that_cannot_be_written_is_one_line(shown: Panel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    shown._export._folder.value = str(tmp_path / "file" / "out")
    shown._export._save.click()
    assert "choose a folder that can be written" in shown.status.error


def test_trace_looks_anew_at_a_variable_that_changed() -> None:
    config = small_models.qwen3()
    shown = panel(config, context=5)
    run_and_wait(shown, shown.refresh)
    before = len(shown.report.trace.modules)
    config.num_hidden_layers += 1
    config.layer_types = [*config.layer_types, config.layer_types[-1]]
    run_and_wait(shown, shown._buttons.trace.click)
    assert len(shown.report.trace.modules) > before


def test_a_live_model_is_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmsim_magic.capture.models import live_model_copy

    copied: list[str] = []
    really = live_model_copy.copy_without_weights
    monkeypatch.setattr(
        live_model_copy,
        "copy_without_weights",
        lambda *given, **named: copied.append(given[1]) or really(*given, **named),
    )
    shown = panel(small_models.build("qwen3"), context=5)
    run_and_wait(shown, shown.refresh)
    open_tab(shown, "ops")
    ask(shown, "batch", 2)
    assert len(copied) == 1
    assert shown.report.trace.model.origin == "live module"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": 123}, "int"),
        ({"view": "nothing"}, "nothing"),
        ({"phase": "sideways"}, "sideways"),
        ({"batch": 0}, "0"),
        ({"hardware": "H1000"}, "H1000"),
    ],
)
def test_a_mistake_in_its_call_is_one_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(LlmsimError, match=said):
        panel(**given)


def test_in_a_terminal_it_says_what_to_do_instead() -> None:
    with pytest.raises(LlmsimError, match="needs a notebook"):
        panel("gpt2").show()


def _is_visible(control: Any) -> bool:
    return bool(control.layout.display != "none")


def test_a_step_of_training_has_controls_of_its_own(shown: Panel) -> None:
    own = [shown.controls.optimizer, shown.controls.precision, shown.controls.checkpointing]
    assert not any(map(_is_visible, own))
    ask(shown, "phase", "train")
    assert all(map(_is_visible, own))
    ask(shown, "optimizer", "sgd")
    ask(shown, "precision", "amp")
    ask(shown, "checkpointing", True)
    training = shown.report.trace.training
    assert (training.optimizer, training.precision, training.checkpointing) == ("sgd", "amp", True)
    assert "train, batch 1 × context 5" in shown.status.message
    for control in (shown.controls.runtime, shown.controls.weights, shown.controls.cache):
        assert control.disabled
    assert shown.controls.dtype.disabled  # by the precision
    ask(shown, "phase", "decode")
    assert shown.report.trace.training is None
    assert not any(map(_is_visible, own))


@pytest.mark.parametrize("view", VIEWS)
def test_every_tab_shows_a_step_of_training(shown: Panel, view: str) -> None:
    ask(shown, "phase", "train")
    open_tab(shown, view)
    assert shown.status.message.startswith("Qwen3ForCausalLM")
    assert shown.report.trace.training is not None
    assert shown.report.shows(view)
    shown.select_operator(shown.report.ops.index[-1])


def test_a_panel_opens_with_a_step_of_training() -> None:
    made = panel(small_models.qwen3(), phase="train", optimizer="sgd", context=5)
    run_and_wait(made, made.refresh)
    assert made.report.trace.training.optimizer == "sgd"
