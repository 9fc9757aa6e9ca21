"""Repositories of the hub: kept in the local cache, of any kind, with their own code on request."""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import peft
import pytest
import transformers
from transformers import AutoModelForCausalLM

import llmsim_magic as llmsim
from llmsim_magic.__main__ import main
from llmsim_magic.capture.configs.resolve import find_config, load_config
from llmsim_magic.records.errors import LlmsimError
from tests.helpers import loopback_hub, small_models
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.modules_folder import modules_folder

LLAMA: dict[str, Any] = small_models.llama().to_dict()
CONFIG = "config.json"
LORA = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "owner/base",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"],
    "init_lora_weights": "pissa",
    "auto_mapping": {"parent_library": "os", "base_model_class": "system"},
}
MODULE = """
from torch.nn import Linear
from transformers import LlamaConfig, LlamaForCausalLM
from .layers_own import SCALE

class OwnConfig(LlamaConfig):
    pass

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.lm_head = Linear(config.hidden_size, SCALE * config.vocab_size, bias=False)
        self.post_init()
"""
CLASSES = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
OWN = LLAMA | {"architectures": ["OwnModel"], "auto_map": CLASSES}
CODE = {"modeling_own.py": MODULE.encode(), "layers_own.py": b"SCALE = 2\n"}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    with (
        loopback_hub.loopback_hub() as running,
        loopback_hub.hub_of_this_process(running.address, tmp_path),
    ):
        yield running
    llmsim.forget()


@pytest.fixture(autouse=True, scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Code of a repository is copied into a folder of these tests, and imported from there."""
    with modules_folder(tmp_path_factory.mktemp("modules")):
        yield


def resolve(repo: str, *files: str, revision: str = "main") -> list[str]:
    return [f"/{repo}/resolve/{revision}/{file}" for file in files]


def layer_count(name: str, **options: Any) -> int:
    return int(llmsim.trace(name, context=4, **options).layers["path"].notna().sum())


def error_line(name: str, **options: Any) -> str:
    with pytest.raises(LlmsimError) as error:
        llmsim.trace(name, context=4, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# what is kept


def test_what_was_fetched_is_kept_where_huggingface_hub_finds_it(hub: LoopbackHub) -> None:
    commit = hub.add("owner/name", {CONFIG: LLAMA})
    assert llmsim.trace("owner/name", context=4).trace.model.origin == "hub"
    assert hub.paths == resolve("owner/name", CONFIG)
    kept = huggingface_hub.hf_hub_download("owner/name", CONFIG, local_files_only=True)
    assert Path(kept).read_bytes() == json.dumps(LLAMA).encode()
    cache = huggingface_hub.scan_cache_dir(huggingface_hub.constants.HF_HUB_CACHE)
    assert not cache.warnings
    (repo,) = cache.repos
    assert [revision.commit_hash for revision in repo.revisions] == [commit]


@pytest.mark.parametrize("has_commits", [True, False])
def test_a_model_is_fetched_once_for_all_questions_and_answers_without_the_hub(
    hub: LoopbackHub, has_commits: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.has_commits = has_commits
    hub.add("owner/name", {CONFIG: LLAMA})
    llmsim.trace("owner/name", context=4)
    llmsim.sweep("owner/name", context=[4], batch=[1, 2])
    llmsim.size("owner/name", context=8, hardware=["H100"])
    hub.fault = loopback_hub.resets
    assert main(["owner/name", "--summary", "--context", "4"]) == 0
    assert "owner/name" in capsys.readouterr().out
    assert hub.paths == resolve("owner/name", CONFIG)


def test_a_cache_that_cannot_be_written_is_no_failure(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/dev/null/cache")
    hub.add("owner/name", {CONFIG: LLAMA})
    for _ in range(2):
        llmsim.trace("owner/name", context=4)
    assert hub.paths == resolve("owner/name", CONFIG)


def test_refresh_asks_again_and_keeps_the_new_commit(hub: LoopbackHub) -> None:
    hub.add("owner/name", {CONFIG: LLAMA})
    llmsim.trace("owner/name", context=4)
    hub.add("owner/name", {CONFIG: LLAMA | {"num_hidden_layers": 3}})
    assert layer_count("owner/name") == 2
    assert layer_count("owner/name", refresh=True) == 3
    assert layer_count("owner/name") == 3
    assert hub.paths == resolve("owner/name", CONFIG, CONFIG)


def test_weights_that_share_an_etag_are_never_overwritten(hub: LoopbackHub) -> None:
    hub.add("owner/name", {CONFIG: LLAMA, "model.safetensors": b"weights"})
    kept = Path(huggingface_hub.hf_hub_download("owner/name", "model.safetensors"))
    etag = kept.resolve().name
    content = json.dumps(LLAMA).encode()
    headers = {"ETag": f'"{etag}"', "X-Repo-Commit": hub.commit("owner/name", "main")}
    hub.fault = lambda handler: handler.reply(200, content, headers=headers)
    llmsim.trace("owner/name", context=4)
    assert kept.read_bytes() == b"weights"
    found = huggingface_hub.try_to_load_from_cache("owner/name", CONFIG)
    assert Path(str(found)).read_bytes() == content


@pytest.mark.parametrize("headers", [{"X-Repo-Commit": "../../x"}, {"ETag": '"../../../../x"'}])
def test_headers_of_a_hostile_hub_write_nothing_outside_the_cache(
    hub: LoopbackHub, tmp_path: Path, headers: dict[str, str]
) -> None:
    content = json.dumps(LLAMA).encode()
    headers = {"X-Repo-Commit": "a" * 40} | headers
    hub.fault = lambda handler: handler.reply(200, content, headers=headers)
    llmsim.trace("owner/name", context=4)
    written = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert all(path.is_relative_to(tmp_path / "hub" / "models--owner--name") for path in written)


def test_a_login_page_is_not_kept(hub: LoopbackHub) -> None:
    hub.fault = lambda handler: handler.reply(
        200, b"<html>log in</html>", headers={"X-Repo-Commit": "a" * 40}
    )
    assert "not valid JSON" in error_line("owner/name")
    hub.fault = None
    hub.add("owner/name", {CONFIG: LLAMA})
    assert llmsim.trace("owner/name", context=4).trace.model.origin == "hub"


def test_a_refresh_that_fails_says_who_answers_without_it(hub: LoopbackHub) -> None:
    hub.add("owner/name", {CONFIG: LLAMA})
    llmsim.trace("owner/name", context=4)
    hub.fault = loopback_hub.resets
    for name, where in (("gpt2", "built-in catalogue"), ("owner/name", "local cache")):
        line = error_line(name, refresh=True)
        assert "not in the catalogue" not in line
        assert line.endswith(f"without --refresh the {where} answers")


def test_a_byte_order_mark_is_accepted(hub: LoopbackHub) -> None:
    hub.add("owner/name", {CONFIG: b"\xef\xbb\xbf" + json.dumps(LLAMA).encode()})
    for _ in range(2):  # from the hub, and from the cache
        assert llmsim.trace("owner/name", context=4).trace.model.class_name == "LlamaForCausalLM"


# names


def test_a_revision_and_a_pasted_address_are_understood(hub: LoopbackHub) -> None:
    hub.add("owner/name", {CONFIG: LLAMA})
    pinned = hub.add("owner/name", {CONFIG: LLAMA | {"num_hidden_layers": 3}}, revision="v2")
    main_address = "https://huggingface.co/owner/name"
    for name, layers in (
        ("owner/name", 2),
        (main_address, 2),
        (f"{main_address}/blob/main/config.json", 2),
        (f"{hub.address}/owner/name", 2),
        ("owner/name@v2", 3),
        (f"owner/name@{pinned}", 3),
        (f"{main_address}/tree/v2", 3),
    ):
        assert layer_count(name) == layers, name
    # The pinned commit is known from the answer to v2.
    assert hub.paths == resolve("owner/name", CONFIG) + resolve("owner/name", CONFIG, revision="v2")
    assert "no revision 'v3'" in error_line("owner/name@v3")


def test_the_address_of_a_model_of_the_catalogue_asks_nobody(hub: LoopbackHub) -> None:
    for name in ("https://huggingface.co/gpt2", "gpt2@main", "hf.co/openai-community/gpt2"):
        assert llmsim.trace(name, context=4).trace.model.origin == "catalogue"
    assert not hub.asked


# kinds


def test_an_adapter_is_its_base_model_with_its_layers(hub: LoopbackHub) -> None:
    hub.add("owner/base", {CONFIG: LLAMA})
    hub.add("owner/adapter", {"adapter_config.json": LORA, "adapter_model.safetensors": b"w"})
    report = llmsim.trace("owner/adapter", context=4)
    real = AutoModelForCausalLM.from_config(small_models.llama())
    real = peft.get_peft_model(real, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    expected = sum(parameter.numel() for parameter in real.parameters())
    assert report.modules["params"].sum() == expected
    # In both layers, q_proj is 64 to 64 wide and v_proj 64 to 32, with 4 tokens at rank 4.
    added = 2 * 2 * 4 * 4 * ((64 + 64) + (64 + 32))
    base = llmsim.trace("owner/base", context=4)
    assert report.ops["flops"].sum() - base.ops["flops"].sum() == added
    assert any("owner/base" in note for note in report.trace.notes)
    assert hub.paths == [
        *resolve("owner/adapter", CONFIG, "adapter_config.json"),
        *resolve("owner/base", CONFIG),
    ]
    hub.fault = loopback_hub.resets
    assert llmsim.trace("owner/adapter", context=8).trace.model.name == "owner/adapter"


@pytest.mark.parametrize("has_error_codes", [True, False])
def test_an_adapter_is_known_where_a_mirror_says_only_404(
    hub: LoopbackHub, has_error_codes: bool
) -> None:
    hub.has_error_codes, hub.has_commits = has_error_codes, False
    hub.add("owner/base", {CONFIG: LLAMA})
    hub.add("owner/adapter", {"adapter_config.json": LORA})
    assert llmsim.trace("owner/adapter", context=4).trace.model.class_name == "LlamaForCausalLM"
    assert "missing on the hub, or private" in error_line("owner/nothing")
    assert len(set(hub.paths)) == len(hub.paths)


def test_an_adapter_in_a_folder_is_its_base_model_too(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add("owner/base", {CONFIG: LLAMA})
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(LORA))
    report = llmsim.trace(str(folder), context=4)
    assert report.trace.model.name == "adapter"
    assert report.modules.index.str.contains("lora_A").sum() > 0


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"peft_type": "IA3"}, ["adapter (IA3)", "owner/base", "only LoRA"]),
        ({"base_model_name_or_path": "/mnt/base"}, ["/mnt/base", "trained it"]),
        ({"base_model_name_or_path": None}, ["names no base model"]),
        ({"base_model_name_or_path": "owner/gone"}, ["owner/gone", "missing"]),
        ({"base_model_name_or_path": "owner/adapter"}, ["owner/adapter"]),
        ({"target_modules": ["nothing"]}, ["cannot be added", "owner/base"]),
        ({"r": "many"}, ["cannot be added", "owner/base"]),
    ],
)
def test_an_adapter_that_cannot_be_traced_names_its_base_model(
    hub: LoopbackHub, keys: dict[str, Any], said: list[str]
) -> None:
    hub.add("owner/base", {CONFIG: LLAMA})
    hub.add("owner/adapter", {"adapter_config.json": LORA | keys})
    line = error_line("owner/adapter")
    for words in said:
        assert words in line


def test_a_sentence_transformers_model_is_its_transformer(hub: LoopbackHub) -> None:
    modules = [
        {"idx": 0, "name": "0", "path": "0_Transformer", "type": "models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "models.Pooling"},
    ]
    bert = small_models.bert().to_dict()
    hub.add("owner/sentences", {"modules.json": modules, "0_Transformer/config.json": bert})
    report = llmsim.trace("owner/sentences", context=4)
    assert report.trace.model.model_type == "bert"
    assert any("1_Pooling" in note for note in report.trace.notes)
    escaping = [{"path": "../owner--other"}, {"path": "/etc"}, {"path": 3}]
    hub.add("owner/escaping", {"modules.json": escaping})
    assert "without a transformer" in error_line("owner/escaping")
    assert not [path for path in hub.paths if ".." in path or "etc" in path]


def test_a_pipeline_of_diffusers_names_its_parts(hub: LoopbackHub) -> None:
    pipeline = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.30.0",
        "text_encoder": ["transformers", "CLIPTextModel"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "safety_checker": [None, None],
    }
    unet = {"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.30.0"}
    files = {"text_encoder/config.json": LLAMA, "unet/config.json": unet}
    hub.add("owner/pictures", {"model_index.json": pipeline, **files})
    line = error_line("owner/pictures")
    for words in ("StableDiffusionPipeline", "text_encoder (CLIPTextModel)", "unet ("):
        assert words in line
    assert "owner/pictures@main/PART" in line
    part = llmsim.trace("owner/pictures@main/text_encoder", context=4)
    assert part.trace.model.class_name == "LlamaForCausalLM"
    assert "UNet2DConditionModel of diffusers" in error_line("owner/pictures@main/unet")


@pytest.mark.parametrize(
    "card", [b"hi", b"---\nmodel-index:\n- name: x\n  results: 5\n---\n", b"---\n: [\n---\n"]
)
def test_a_card_without_metadata_adds_no_line_of_huggingface_hub(
    hub: LoopbackHub, caplog: pytest.LogCaptureFixture, card: bytes
) -> None:
    import huggingface_hub.repocard

    logger = logging.getLogger("huggingface_hub")
    hub.add("owner/empty", {"README.md": card})
    logger.addHandler(caplog.handler)
    try:
        with pytest.raises(LlmsimError):
            llmsim.trace("owner/empty", context=4)
        assert not caplog.messages
        huggingface_hub.repocard.logger.warning("from elsewhere")
        assert set(caplog.messages) == {"from elsewhere"}
    finally:
        logger.removeHandler(caplog.handler)


@pytest.mark.parametrize("has_api", [True, False])
def test_a_repository_of_gguf_files_names_its_base_model(hub: LoopbackHub, has_api: bool) -> None:
    hub.has_api = has_api
    card = b"---\nbase_model: owner/base\nlicense: mit\n---\n# Weights\n"
    hub.add("owner/packed", {"model-Q4_K_M.gguf": b"GGUF", "README.md": card})
    line = error_line("owner/packed")
    assert "owner/base" in line
    assert ("GGUF weights (model-Q4_K_M.gguf)" in line) == has_api
    assert not [path for path in hub.paths if path.endswith("gguf")]  # no weights
    assert len(set(hub.paths)) == len(hub.paths)


def test_a_folder_of_gguf_files_says_what_it_is(tmp_path: Path) -> None:
    assert "without a config.json" in error_line(str(tmp_path))
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "README.md").write_text("---\nbase_model:\n- owner/base\n---\n")
    line = error_line(str(tmp_path))
    assert "holds GGUF weights (model.gguf)" in line
    assert "owner/base" in line


BARE = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "float16"}
DEFAULTS = "its config gives no sizes: every size is transformers' default"


@pytest.mark.parametrize("config", [{"model_type": "llama"}, BARE | {"bos_token_id": 1}])
def test_gguf_files_beside_a_config_without_sizes_name_the_base_model(
    hub: LoopbackHub, config: dict[str, Any]
) -> None:
    card = b"---\nbase_model: owner/base\n---\n"
    hub.add("owner/packed", {"a-Q4_K_M.gguf": b"GGUF", "README.md": card, CONFIG: config})
    line = error_line("owner/packed")
    assert "holds GGUF weights (a-Q4_K_M.gguf) and a config.json without sizes" in line
    assert line.endswith("trace its base model owner/base")
    assert error_line("owner/packed") == line  # its config is in the local cache now
    hub.add("owner/sized", {"a.gguf": b"GGUF", "README.md": card, CONFIG: LLAMA})
    assert DEFAULTS not in llmsim.trace("owner/sized", context=4).trace.notes


def test_a_folder_of_gguf_files_with_a_config_without_sizes(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(json.dumps({"model_type": "qwen2"}))
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    line = error_line(str(tmp_path))
    assert "without sizes; trace the model that it was made from" in line
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert DEFAULTS in llmsim.trace(str(tmp_path), context=4).trace.notes


@pytest.mark.parametrize(
    ("config", "is_default"),
    [
        (BARE, True),
        (BARE | {"rope_theta": 10000, "quantization_config": {"group_size": 128}}, True),
        ({"model_type": "clip", "text_config": {"model_type": "clip_text_model"}}, True),
        ({"model_type": "clip", "vision_config": {"num_hidden_layers": 1}}, False),
        ({"model_type": "gpt2", "n_layer": 1}, False),
        ({"model_type": "t5", "architectures": ["T5EncoderModel"], "d_model": 64}, False),
    ],
)
def test_a_config_without_sizes_is_said_to_have_defaults(
    config: dict[str, Any], is_default: bool, tmp_path: Path
) -> None:
    (tmp_path / CONFIG).write_text(json.dumps(config))
    source = load_config(find_config(str(tmp_path)))
    assert (DEFAULTS in source.notes) == is_default


def test_entries_of_the_catalogue_leave_out_defaults() -> None:
    assert load_config(find_config("microsoft/resnet-50")).notes == ()


# code of the repository


def without_its_code(name: str, model_type: str) -> str:
    """What is said of a repository's own class where its code may not run.

    transformers' class of a type that it knows is built instead.
    """
    if model_type not in transformers.CONFIG_MAPPING:
        return error_line(name)
    return " ".join(llmsim.trace(name, context=4).trace.notes)


@pytest.mark.parametrize("model_type", ["llama", "of_its_own"])
def test_own_code_runs_on_request_and_each_file_is_fetched_once(
    hub: LoopbackHub, model_type: str
) -> None:
    hub.add("owner/own", {CONFIG: OWN | {"model_type": model_type}, **CODE, "setup.py": b"1 / 0"})
    assert "--trust-remote-code" in without_its_code("owner/own", model_type)
    assert hub.paths == resolve("owner/own", CONFIG)
    report = llmsim.trace("owner/own", context=4, trust_remote_code=True)
    assert report.trace.model.class_name == "OwnModel"
    assert report.ops["output_shapes"].iloc[-1] == [(1, 4, 2 * 100)]  # its own head
    assert hub.paths == resolve("owner/own", CONFIG, "modeling_own.py", "layers_own.py")


def test_own_code_of_a_folder_runs_on_request(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(OWN))
    for name, content in CODE.items():
        (folder / name).write_bytes(content)
    assert "--trust-remote-code" in without_its_code(str(folder), "llama")
    report = llmsim.trace(str(folder), context=4, trust_remote_code=True)
    assert report.trace.model.class_name == "OwnModel"


def test_code_of_another_repository_is_found_there(hub: LoopbackHub) -> None:
    classes = {auto: f"owner/code--{reference}" for auto, reference in CLASSES.items()}
    hub.add("owner/code", CODE)
    hub.add("owner/own", {CONFIG: OWN | {"auto_map": classes}})
    report = llmsim.trace("owner/own", context=4, trust_remote_code=True)
    assert report.trace.model.class_name == "OwnModel"
    assert hub.paths == [
        *resolve("owner/own", CONFIG),
        *resolve("owner/code", "modeling_own.py", "layers_own.py"),
    ]


def test_code_of_a_revision_is_that_of_the_revision(hub: LoopbackHub) -> None:
    hub.add("owner/own", {CONFIG: OWN, "modeling_own.py": b"1 / 0"})
    hub.add("owner/own", {CONFIG: OWN, **CODE}, revision="v2")
    assert "ZeroDivisionError" in error_line("owner/own", trust_remote_code=True)
    report = llmsim.trace("owner/own@v2", context=4, trust_remote_code=True)
    assert report.trace.model.class_name == "OwnModel"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "has no modeling_own.py"),
        ({"modeling_own.py": MODULE.encode()}, "has no layers_own.py"),
        ({**CODE, "modeling_own.py": b"1 / 0"}, "ZeroDivisionError"),
        ({**CODE, "modeling_own.py": b"x = 1"}, "OwnConfig"),
    ],
)
def test_code_that_is_missing_or_fails_is_one_line(
    hub: LoopbackHub, files: dict[str, bytes], said: str
) -> None:
    hub.add("owner/own", {CONFIG: OWN, **files})
    assert said in error_line("owner/own", trust_remote_code=True)


@pytest.mark.parametrize("reference", ["../x.Y", "a/b.C", "os.system.run", 3, "../../x--m.C"])
def test_a_reference_that_names_no_module_is_refused(hub: LoopbackHub, reference: Any) -> None:
    hub.add("owner/own", {CONFIG: OWN | {"auto_map": {"AutoConfig": reference}}})
    error_line("owner/own", trust_remote_code=True)
    assert hub.paths == resolve("owner/own", CONFIG)


def test_code_is_waited_for_as_long_as_a_config(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("owner/own", {CONFIG: OWN, **CODE})
    without_its_code("owner/own", "llama")
    monkeypatch.setattr("llmsim_magic.capture.hub.request.TIMEOUT_S", 0.3)
    hub.fault = loopback_hub.stalls
    started = time.monotonic()
    assert "took longer than 0.3 s" in error_line("owner/own", trust_remote_code=True)
    assert time.monotonic() - started < 2
