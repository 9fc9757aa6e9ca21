"""An option that changes nothing of what a line or call shows is refused, never ignored."""

import re
from pathlib import Path
from typing import Any

import pytest
import transformers
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

import llmsim_magic as llmsim
from llmsim_magic.__main__ import main
from llmsim_magic.notebook.arguments import parse, parse_line
from llmsim_magic.notebook.panel.panel import Panel
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.simulate.option_effect import options_without_effect, require_effect
from llmsim_magic.simulate.options import BY_NAME, OPTIONS
from llmsim_magic.simulate.views import OPTION_VIEWS, VIEWS
from tests.helpers import small_models
from tests.helpers.reduced_configs import candidates
from tests.helpers.shells import NO_HISTORY

IDLE = {
    "--layers 99": "--layers 99 has no effect without --deps or --topological",
    "--layers all --summary": "--layers all has no effect without --deps or --topological",
    "--ops --depth 2": "--depth 2 has no effect without --deps or --topological",
    "--memory --level module": "--level module has no effect without --deps or --topological",
    "--summary --level operator": "--level operator has no effect without --deps or --topological",
    "--explain wte --layers 0": "--layers 0 has no effect without --deps or --topological",
    "--costs --weight-dtype int4": "--weight-dtype int4 has no effect without --memory",
    "--ops --kv-dtype fp8": "--kv-dtype fp8 has no effect without --memory or --hardware",
    "--memory --launch eager": "--launch eager has no effect without --hardware",
    "--overwrite": "--overwrite has no effect without --csv",
    "--sure": "--sure has no effect without --multi-config",
}
USED = [
    "--deps --layers 0,1 --depth 2 --level kernel",
    "--topological --layers all",
    "--ops --deps --level module",
    "--memory --weight-dtype int4 --kv-dtype fp8",
    "--hardware H100 --launch eager --weight-dtype int4",
    "--hardware all --launch graph --kv-dtype fp8",
    "--compare distilgpt2 --weight-dtype int8",
    "--csv d --overwrite",
    "--explain transformer.h.0 --summary --csv d",
    "--batch 1,2 --sure",
    "--multi-config --sure --no-replay --dtype bf16 --attn eager --base",
]


@pytest.mark.parametrize("options", IDLE)
def test_the_terminal_refuses_an_option_that_no_view_of_the_line_uses(
    options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gpt2", *options.split()]) == 2
    assert capsys.readouterr().err.startswith(f"llmsim: {IDLE[options]}")


@pytest.mark.parametrize("options", IDLE)
def test_the_magic_refuses_it_too(options: str, capsys: pytest.CaptureFixture[str]) -> None:
    shell = InteractiveShell.instance(config=NO_HISTORY)
    shell.run_line_magic("load_ext", "llmsim_magic")
    with pytest.raises(UsageError) as caught:
        shell.run_line_magic("llmsim", f"gpt2 {options}")
    assert str(caught.value).startswith(IDLE[options])


@pytest.mark.parametrize("options", USED)
def test_an_option_that_one_view_uses_is_taken(options: str) -> None:
    line = parse(["gpt2", *options.split()])
    require_effect(line.request, line.given)


def test_a_layer_that_does_not_exist_is_refused_where_layers_are_drawn() -> None:
    assert main(["gpt2", "--deps", "--layers", "99"]) == 2


def test_a_default_of_the_session_is_for_the_views_that_use_it() -> None:
    defaults = {"depth": "2", "level": "module", "batch": "1,2"}
    request = parse_line("gpt2 --summary", defaults).request
    assert request.batches == (1, 2)
    assert parse_line("gpt2 --deps", defaults).request.selection.depth == 2
    assert parse_line("gpt2 --deps --depth 3", defaults).request.selection.depth == 3
    line = parse_line("gpt2 --summary", defaults)
    require_effect(line.request, line.given)
    line = parse_line("gpt2 --depth 3", defaults)
    with pytest.raises(InvalidValue, match="--depth 3 has no effect"):
        require_effect(line.request, line.given)


def test_an_explanation_is_a_file_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    assert (
        main(["gpt2", "--context", "8", "--explain", "transformer.h.0", "--csv", str(folder)]) == 0
    )
    (file,) = (path for path in folder.iterdir() if not path.name.startswith("."))
    assert file.name == "gpt2.prefill.b1.c8.explanation.txt"
    assert "transformer.h.0: add, operator" in file.read_text("utf-8")


def test_a_call_refuses_a_keyword_that_no_table_of_its_report_uses() -> None:
    with pytest.raises(InvalidValue, match="launch='eager' has no effect without hardware"):
        llmsim.trace("gpt2", launch="eager")
    assert llmsim.trace("gpt2", context=8, kv_dtype="fp8").deployment.kv_dtype == "fp8"


def test_a_config_object_has_nothing_to_read_from_the_hub() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_embd=32, n_head=2)
    for model in (config, transformers.GPT2Model(config)):
        with pytest.raises(InvalidValue, match="refresh=True"):
            llmsim.trace(model, refresh=True)


@pytest.mark.parametrize(
    "options",
    [
        "--explain wte",
        "--compare distilgpt2",
        "--csv d",
        "--sure",
        "--hardware L4,L40S",
        "--hardware all",
        "--batch 1,2",
        "--phase both",
    ],
)
def test_a_panel_refuses_what_it_does_not_show(options: str) -> None:
    request = parse_line(f"gpt2 --panel {options}").request
    with pytest.raises(InvalidValue, match=rf"^{re.escape(options)} cannot be combined"):
        Panel(request)


def test_a_panel_keeps_every_other_option() -> None:
    line = "gpt2 --panel --deps --layers 0 --level kernel --hardware H100 --launch eager --ep 2"
    controls = Panel(parse_line(line).request).controls
    request = controls.request("deps")
    assert (request.selection.layers, request.selection.level) == ({0}, "kernel")
    assert (request.deployment.launch, request.build.parallel.ep) == ("eager", 2)


def test_a_panel_requests_only_what_its_view_uses() -> None:
    controls = Panel(parse_line("gpt2 --panel --layers 99 --kv-dtype fp8").request).controls
    shown = parse_line("gpt2 --phase prefill --batch 1 --context 128").request
    assert controls.request("summary") == shown
    assert (controls.weights.disabled, controls.cache.disabled) == (True, True)
    controls.disable_unused("memory")
    assert controls.request("memory").deployment.kv_dtype == "fp8"
    assert (controls.weights.disabled, controls.cache.disabled) == (False, False)
    assert controls.request("deps").selection.layers == {99}
    controls.hardware.value = "L40S"
    controls.disable_unused("deps")
    assert controls.weights.disabled is False


def test_views_name_options_that_exist() -> None:
    for view in (*VIEWS.values(), *OPTION_VIEWS):
        assert set(view.uses) <= set(BY_NAME)


def test_every_option_has_an_effect_in_some_request() -> None:
    lines: list[Any] = [parse_line(f"gpt2 {options}").request for options in USED]
    used = {option.name for option in OPTIONS} - frozenset.intersection(
        *(options_without_effect(request) for request in lines)
    )
    assert used == set(BY_NAME)


@pytest.mark.parametrize("name", ["bert", "vit", "mamba"])
def test_a_dtype_of_keys_and_values_is_refused_where_none_are_cached(name: str) -> None:
    config = getattr(small_models, name)()
    said = r"kv_dtype fp8 has no effect on \w+, which caches no keys and values; leave it out"
    with pytest.raises(InvalidValue, match=said):
        llmsim.trace(config, context=4, kv_dtype="fp8")
    with pytest.raises(InvalidValue, match=said):
        llmsim.size(config, context=4, kv_dtype="fp8", hardware="H100")


def test_a_dtype_of_keys_and_values_is_taken_where_one_of_two_models_caches_some(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {}
    for name in ("llama", "bert"):
        folders[name] = str(tmp_path / name)
        getattr(small_models, name)().save_pretrained(folders[name])
    options = ["--context", "4", "--memory", "--kv-dtype", "fp8", "--compare"]
    assert main([folders["llama"], *options, folders["bert"]]) == 0
    assert main([folders["bert"], *options, folders["llama"]]) == 0
    capsys.readouterr()
    assert main([folders["bert"], *options, folders["bert"]]) != 0
    assert "caches no keys and values" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "is_ignored"), [("vit", True), ("bert", False), ("llama", False), ("whisper", False)]
)
def test_a_context_that_changes_no_input_is_named(name: str, is_ignored: bool) -> None:
    config = getattr(small_models, name)()
    given, default = llmsim.trace(config, context=7), llmsim.trace(config)
    note = "context 7 has no effect: the inputs of ViTForImageClassification do not depend on it"
    assert (note in given.remarks()) is is_ignored
    assert bool(given.summary.isna().value["context"]) is is_ignored
    assert not any("has no effect" in remark for remark in default.remarks())


@pytest.mark.parametrize("phase", ["prefill", "train"])
@pytest.mark.parametrize("name", ["whisper", "speech_to_text", "moonshine", "pix2struct"])
def test_the_longest_context_of_an_encoder_decoder_has_an_effect(name: str, phase: str) -> None:
    """Labels stand in for the decoder's tokens, and longer ones are cut to its positions."""
    config = small_models.whisper() if name == "whisper" else next(candidates(name)).config
    most = getattr(config, "max_target_positions", 0) or 64
    given, shorter = (llmsim.trace(config, phase=phase, context=each) for each in (most, most // 2))
    assert not any("has no effect" in remark for remark in given.remarks())
    if phase == "train":
        assert given.summary.value["flops"] > shorter.summary.value["flops"]


@pytest.mark.parametrize(
    "class_name", ["WhisperForAudioClassification", "ASTForAudioClassification"]
)
def test_a_classifier_of_audio_of_a_fixed_length_ignores_the_context(class_name: str) -> None:
    if class_name.startswith("Whisper"):
        config = small_models.whisper()
    else:
        config = transformers.ASTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
    config.architectures = [class_name]
    report = llmsim.trace(config, phase="train", context=32)
    said = [note for note in report.remarks() if "context" in note]
    assert said == [f"context 32 has no effect: the inputs of {class_name} do not depend on it"]


def test_a_context_is_the_number_of_frames_where_audio_is_the_only_input() -> None:
    config = transformers.HubertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    short, long = (llmsim.trace(config, context=context) for context in (4, 9))
    has_effect = short.summary.value["flops"] != long.summary.value["flops"]
    assert any("has no effect" in remark for remark in short.remarks()) is not has_effect


def test_the_panel_of_python_spells_a_keyword_as_python_does() -> None:
    with pytest.raises(InvalidValue, match="hardware='all' is not for the panel") as error:
        llmsim.panel("gpt2", hardware="all")
    assert "--" not in str(error.value)
