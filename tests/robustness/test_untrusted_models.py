"""Only the config of a model folder is read; nothing else is opened or executed."""

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from llmsim_magic.capture.configs.config_sanitizer import sanitized
from llmsim_magic.records.errors import CannotTrace, LlmsimError
from llmsim_magic.records.trace.trace import Trace
from tests.helpers import small_models
from tests.helpers.audit import Watched, watched

CODE = "import pathlib; pathlib.Path(__file__).with_name('PWNED').touch()\n"
CLASSES = {
    "AutoConfig": "configuration_evil.EvilConfig",
    "AutoModel": "modeling_evil.Evil",
    "AutoModelForCausalLM": "modeling_evil.Evil",
    "AutoModelForSeq2SeqLM": "modeling_evil.Evil",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "code beside": {"auto_map": CLASSES},
    "code that trusts itself": {"auto_map": CLASSES, "trust_remote_code": True},
    "code of a repository": {"auto_map": {key: f"evil/x--{name}" for key, name in CLASSES.items()}},
    "code and no class": {"auto_map": CLASSES, "architectures": None},
    "code for a class": {"auto_map": CLASSES, "architectures": ["Evil"]},
    "code for a type": {"auto_map": CLASSES, "architectures": ["Evil"], "model_type": "evil"},
    "code generates": {"custom_generate": "evil/x", "generation_config": {"custom_generate": "x"}},
    "a kernel for attention": {"_attn_implementation": "kernels-community/flash-attn2"},
    "any kernel for attention": {"attn_implementation": "evil/kernel@v1:run"},
    "a kernel in the stead of a package": {"attn_implementation": "flash_attention_2"},
    "a paged kernel": {"attn_implementation": "paged|evil/kernel"},
    "a kernel by parts": {"attn_implementation": {"": "evil/kernel"}},
    "a kernel for experts": {"experts_implementation": "evil/kernel"},
    "kernels for layers": {"use_kernels": True, "kernel_config": {"RMSNorm": "evil/x:Norm"}},
    "quantised by code": {"quantization_config": {"quant_method": "evil", "modules": "os.system"}},
    "quantised by data": {"quantization_config": {"quant_method": "gptq", "dataset": "evil/x"}},
    "a function as dtype": {"dtype": "save", "torch_dtype": "save"},
    "a class as dtype": {"dtype": "__class__"},
    "a path as dtype": {"dtype": "hub.load"},
    "an activation": {"hidden_act": "os.system"},
    "a rotation": {"rope_parameters": {"rope_type": "__import__", "rope_theta": 1.0}},
    "a dunder as class": {"architectures": ["__class__"]},
    "a module as class": {"architectures": ["utils"]},
    "a pipeline as class": {"architectures": ["pipeline"]},
    "a type by path": {"model_type": "../../evil"},
    "the cache of code": {"model_type": "transformers_modules", "architectures": ["evil"]},
    "an adapter": {"peft_config": {"base_model_name_or_path": "evil/x"}},
    "a plan": {"base_model_tp_plan": {"layers.*": "os.system"}},
    "another's name": {"_name_or_path": "evil/x"},
}
# Stands in for the package by which transformers fetches code from the hub.
KERNELS = """
def get_kernel(*args, **options):
    open(__file__ + ".PWNED", "w").close()
    raise RuntimeError("fetched")

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {"__init__": lambda self, *args, **options: None,
                           "__call__": lambda self, made: made})
"""


class Pwn:
    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (self.file, "w")


@pytest.fixture(scope="module")
def fetcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what transformers takes for the package `kernels`."""
    from transformers.utils.import_utils import KERNELS_MIN_VERSION

    folder = tmp_path_factory.mktemp("packages")
    (folder / "kernels").mkdir()
    (folder / "kernels" / "__init__.py").write_text(KERNELS)
    facts = folder / f"kernels-{KERNELS_MIN_VERSION}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: kernels\nVersion: {KERNELS_MIN_VERSION}\n"
    )
    return folder


@pytest.fixture(scope="module")
def process(fetcher: Path) -> Iterator[Watched]:
    with watched(str(fetcher), HF_MODULES_CACHE=str(fetcher / "modules")) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder in which everything but the config is a trap."""
    for name in ("modeling_evil.py", "configuration_evil.py", "__init__.py", "custom_generate.py"):
        (tmp_path / name).write_text(CODE)
    for name in ("pytorch_model.bin", "model.pkl", "training_args.bin", "model.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Pwn(str(tmp_path / "PWNED"))))
    for name in ("generation_config", "tokenizer_config", "preprocessor_config", "adapter_config",
                 "tokenizer", "model.safetensors.index", "processor_config"):  # fmt: skip
        (tmp_path / f"{name}.json").write_text('{"auto_map": {"AutoProcessor": "modeling_evil.X"}}')
    (tmp_path / "chat_template.jinja").write_text("{{ 1 }}")
    return tmp_path


# The names of the tensors: JSON, and the header of a file.
NAMES_OF_TENSORS = [["open", "model.safetensors.index.json"], ["open", "model.safetensors"]]


@pytest.mark.parametrize("kind", CONFIGS)
def test_only_the_config_and_names_of_tensors_are_opened_and_nothing_is_run(
    process: Watched, fetcher: Path, folder: Path, kind: str
) -> None:
    config = small_models.llama().to_dict() | CONFIGS[kind]
    (folder / "config.json").write_text(json.dumps(config))
    told = process.ask(folder, str(folder), "--context", "4")
    opened = [each for each in told.seen if each not in NAMES_OF_TENSORS]
    assert opened == [["open", "config.json"]]
    assert told.status == 0 or len(told.said.strip().splitlines()) == 1, told.said
    assert not (folder / "PWNED").exists()
    assert not list(fetcher.rglob("*.PWNED"))


@pytest.mark.parametrize("kind", ["a kernel for attention", "code and no class", "plain"])
def test_what_would_have_run_is_left_out(process: Watched, folder: Path, kind: str) -> None:
    config = small_models.llama().to_dict() | CONFIGS[kind]
    (folder / "config.json").write_text(json.dumps(config))
    told = process.ask(folder, str(folder), "--context", "4")
    assert told.status == 0, told.said
    assert "LlamaForCausalLM" in told.out or "LlamaModel" in told.out
    assert ("is not run" in told.out) == ("kernel" in kind)


def test_code_that_is_trusted_is_run_and_seen(process: Watched, folder: Path) -> None:
    """So the watch would see it."""
    config = small_models.llama().to_dict() | CONFIGS["code for a type"]
    (folder / "config.json").write_text(json.dumps(config))
    told = process.ask(folder, str(folder), "--trust-remote-code")
    assert ["open", "configuration_evil.py"] in told.seen
    assert told.status == 2


def test_code_that_is_trusted_is_traced(process: Watched, folder: Path) -> None:
    (folder / "configuration_evil.py").write_text(
        "from transformers import LlamaConfig\n"
        "class EvilConfig(LlamaConfig):\n    model_type = 'evil'\n"
    )
    (folder / "modeling_evil.py").write_text(
        "from transformers import LlamaForCausalLM\n"
        "from .configuration_evil import EvilConfig\n"
        "class Evil(LlamaForCausalLM):\n    config_class = EvilConfig\n"
    )
    own = {name: place for name, place in CLASSES.items() if "Seq2Seq" not in name}
    for more, class_name in (
        ({"model_type": "evil", "architectures": ["Evil"]}, "Evil"),
        ({}, "LlamaForCausalLM"),  # which transformers has itself
    ):
        config = small_models.llama().to_dict() | {"auto_map": own} | more
        (folder / "config.json").write_text(json.dumps(config))
        told = process.ask(folder, str(folder), "--trust-remote-code", "--context", "4")
        assert told.status == 0, told.said
        assert class_name in told.out
        assert ["open", "pytorch_model.bin"] not in told.seen


def test_parts_of_a_config_are_data_too() -> None:
    config = AutoConfig.for_model("llava")
    config.text_config.auto_map = {"AutoModelForCausalLM": "evil.Evil"}
    config.vision_config._attn_implementation = "evil/kernel"
    (note,) = sanitized(config, "x", trust_remote_code=False)
    assert "evil/kernel" in note
    assert not hasattr(config.text_config, "auto_map")
    assert config.vision_config._attn_implementation is None


def test_timm_is_pointed_nowhere() -> None:
    config = AutoConfig.for_model("timm_wrapper", architecture="resnet18")
    config.model_args = {"checkpoint_path": "pytorch_model.bin", "drop_rate": 0.1}
    sanitized(config, "x", trust_remote_code=False)
    assert config.model_args == {"drop_rate": 0.1}
    config.architecture = "hf-hub:evil/x"
    with pytest.raises(CannotTrace, match="hf-hub:evil/x"):
        sanitized(config, "x", trust_remote_code=False)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{}", b"[]", b"null", b"\xff\xfe", b"{" * 100_000, b'{"model": 1}', "\ud800",
        pickle.dumps(Pwn("PWNED")), b'{"__class__": "os.system"}',
    ],
)  # fmt: skip
def test_a_record_from_elsewhere_is_one_line_or_well_typed(text: bytes | str) -> None:
    with pytest.raises(LlmsimError) as error:
        Trace.from_json(text)
    assert str(error.value).isprintable()
