"""Records on disk answer as a trace would, without torch, and only where the code is the same."""

import dataclasses
import functools
import json
import operator
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedConfig, Qwen3Config, Qwen3ForCausalLM
from transformers.activations import ACT2CLS
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.models.qwen3 import modeling_qwen3

import llmsim_magic as llmsim
from llmsim_magic.__main__ import main
from llmsim_magic.capture import run as capture_run
from llmsim_magic.capture.meta.changed_code import changed_code
from llmsim_magic.records.errors import NoDecode
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import Workload
from llmsim_magic.simulate.cache import cache_folder, environment, kept_model, session_cache
from llmsim_magic.simulate.cache.session_cache import Question
from llmsim_magic.simulate.models import workloads
from tests.helpers.modules_folder import modules_folder

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "vocab_size": 96,
}
KEYS = {**SMALL, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of this test, in a process that was started after transformers was installed."""
    found = tmp_path / "records"
    monkeypatch.setenv("LLMSIM_CACHE", str(found))
    session_cache.forget()
    yield found
    session_cache.forget()


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every workload that is really run."""
    found: list[Any] = []
    really = capture_run.run

    def counted(meta_model: Any, workload: Any, **options: Any) -> Trace:
        found.append(workload)
        return really(meta_model, workload, **options)

    monkeypatch.setattr(capture_run, "run", counted)
    return found


def written(folder: Path, keys: dict[str, Any]) -> str:
    """The path of a config file with these keys."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(keys))
    return str(folder)


def in_new_process(code: str, **variables: str) -> list[str]:
    """The lines that a script prints in another process with the same cache."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **variables},
    )
    return done.stdout.splitlines()


IMPORTED = "import sys; print(sorted({'torch', 'transformers'} & sys.modules.keys()))"
ASKED: dict[str, str] = {
    "trace": "llmsim.trace({model!r}, batch=2, context=16).ops",
    "decode": "llmsim.trace({model!r}, phase='decode', context=9, hardware='H100').latency",
    "sweep": "s = llmsim.sweep({model!r}); s.ops; s.shapes; s.totals",
    "size": "llmsim.size({model!r}, context=64, hardware=['L4', 'H100']).table",
    "parallel": "llmsim.trace({model!r}, tp=2, hardware='L4').memory",
    "terminal": "from llmsim_magic.__main__ import main; main([{model!r}, '--ops', '--memory'])",
    "magic": """
        from IPython.core.interactiveshell import InteractiveShell
        shell = InteractiveShell.instance()
        shell.run_line_magic('load_ext', 'llmsim_magic')
        shell.run_line_magic('llmsim', {model!r} + ' --summary --deps --topological --costs')
        """,
    "panel": """
        import time
        panel = llmsim.panel({model!r})
        panel.refresh()
        while panel.status.is_busy: time.sleep(0.01)
        assert panel.report is not None
        """,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ASKED)
def test_a_question_asked_before_needs_no_torch(name: str, tmp_path: Path) -> None:
    model = written(tmp_path / "model", KEYS)
    asked = textwrap.dedent(ASKED[name]).format(model=model)
    script = f"import llmsim_magic as llmsim\n{asked}\n{IMPORTED}"
    assert in_new_process(script)[-1] == "['torch', 'transformers']"
    assert in_new_process(script)[-1] == "[]"


NEVER_SHOWN_WITH = (
    "accelerate", "graphviz", "huggingface_hub", "IPython", "matplotlib", "sympy", "torch",
    "transformers", "wasmtime",
)  # fmt: skip


@pytest.mark.parametrize(
    ("view", "unneeded"),
    [
        ("--summary", ("pandas", "numpy")),
        pytest.param("--ops", (), marks=pytest.mark.slow),
        pytest.param("--multi-config", (), marks=pytest.mark.slow),
    ],
)
def test_a_terminal_shows_a_kept_record_with_few_imports(
    view: str, unneeded: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["gpt2", view]
    assert main(words) == 0
    shown = capsys.readouterr().out
    loaded = f"print(sorted({{*{NEVER_SHOWN_WITH + unneeded!r}}} & sys.modules.keys()))"
    script = f"import sys\nfrom llmsim_magic.__main__ import main\nmain({words!r})\n{loaded}"
    *lines, imported = in_new_process(script)
    assert lines == shown.splitlines()
    assert imported == "[]", changed_code()


def test_a_kept_trace_equals_the_one_that_was_traced(tmp_path: Path, runs: list[Any]) -> None:
    model = written(tmp_path / "model", KEYS)
    for phase in ("prefill", "decode"):
        first = llmsim.trace(model, phase=phase, batch=2, context=16).trace
        session_cache.forget()
        number = len(runs)
        assert llmsim.trace(model, phase=phase, batch=2, context=16).trace == first
        assert len(runs) == number


def test_that_a_model_has_no_decode_is_kept(tmp_path: Path, runs: list[Any]) -> None:
    keys = {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        "num_hidden_layers": 1,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": 96,
    }
    model = written(tmp_path / "model", keys)
    messages = []
    for _ in range(2):
        with pytest.raises(NoDecode) as caught:
            llmsim.trace(model, phase="decode")
        messages.append(str(caught.value))
        session_cache.forget()
    assert messages[0] == messages[1]
    assert len(runs) == 1


def test_one_changed_key_is_another_model(tmp_path: Path) -> None:
    model = written(tmp_path / "model", KEYS)
    assert llmsim.trace(model).trace.recorded.shapes([0])
    for key, value in (("hidden_size", 32), ("num_hidden_layers", 2), ("vocab_size", 97)):
        written(tmp_path / "model", {**KEYS, key: value})
        changed = llmsim.trace(model)
        config = Qwen3Config(**{**SMALL, key: value})
        fresh = Qwen3ForCausalLM(config).to("meta")
        assert changed.trace.model.class_name == "Qwen3ForCausalLM"
        assert changed.modules["params"].sum() == sum(p.numel() for p in fresh.parameters())


def test_the_order_of_the_keys_is_not_part_of_a_config(tmp_path: Path, runs: list[Any]) -> None:
    model = written(tmp_path / "model", KEYS)
    llmsim.trace(model)
    session_cache.forget()
    written(tmp_path / "model", dict(reversed(KEYS.items())))
    llmsim.trace(model)
    assert len(runs) == 1


@pytest.mark.parametrize(
    "options",
    [{"attn": "eager"}, {"dtype": "float16"}, {"base": True}, {"tp": 2}, {"replay": False}],
)
def test_options_of_the_build_are_part_of_the_question(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    model = written(tmp_path / "model", KEYS)
    plain = llmsim.trace(model).trace
    session_cache.forget()
    assert llmsim.trace(model, **options).trace != plain


def test_another_default_dtype_is_another_question(tmp_path: Path, runs: list[Any]) -> None:
    model = written(tmp_path / "model", KEYS)
    llmsim.trace(model)
    session_cache.forget()
    torch.set_default_dtype(torch.float64)
    try:
        llmsim.trace(model)
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(runs) == 2


@pytest.mark.slow
def test_another_installed_package_is_another_question(tmp_path: Path) -> None:
    """Transformers chooses kernels by what is installed, and by its own version."""
    model = written(tmp_path / "model", KEYS)
    script = f"import llmsim_magic as llmsim\nllmsim.trace({model!r})\n{IMPORTED}"
    in_new_process(script)
    site = tmp_path / "site"
    (site / "flash_linear_attention-1.0.dist-info").mkdir(parents=True)
    paths = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(site))))
    assert in_new_process(script)[-1] == "[]"
    assert in_new_process(script, PYTHONPATH=paths)[-1] != "[]"


def test_what_a_package_brings_for_itself_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Setuptools puts a folder inside itself on the path when it is imported."""
    before = environment.environment()
    brought = tmp_path / "setuptools" / "_vendor"
    (brought / "wheel-1.0.dist-info").mkdir(parents=True)
    (brought.parent / "__init__.py").touch()
    monkeypatch.syspath_prepend(brought)
    assert environment.environment() == before
    (brought.parent / "__init__.py").unlink()
    assert environment.environment() != before


def test_a_package_that_was_replaced_after_it_was_imported_is_not_kept(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = environment._version
    monkeypatch.setattr(
        environment, "_version", lambda name: "99.0" if name == "transformers" else really(name)
    )
    assert not environment.is_as_installed()
    llmsim.trace(written(tmp_path / "model", KEYS))
    assert not folder.exists()


def test_a_changed_file_of_code_is_another_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Any]
) -> None:
    code = tmp_path / "modeling.py"
    code.write_text("one")
    os.utime(code, (1_000_000, 1_000_000))
    monkeypatch.setattr(workloads, "_code_files", lambda meta_model: (str(code),))
    model = written(tmp_path / "model", KEYS)
    llmsim.trace(model)
    session_cache.forget()
    llmsim.trace(model)
    assert len(runs) == 1
    session_cache.forget()
    code.write_text("two")
    os.utime(code, (1_000_000, 1_000_000))  # the same size: only the time of change differs
    os.utime(code, (2_000_000, 2_000_000))
    llmsim.trace(model)
    assert len(runs) == 2
    session_cache.forget()
    code.unlink()
    llmsim.trace(model)
    assert len(runs) == 3


def test_code_that_changed_after_this_process_began_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Any]
) -> None:
    code = tmp_path / "modeling.py"
    code.write_text("newer than what was imported")
    monkeypatch.setattr(workloads, "_code_files", lambda meta_model: (str(code),))
    model = written(tmp_path / "model", KEYS)
    for number in (1, 2):
        llmsim.trace(model)
        session_cache.forget()
        assert len(runs) == number


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    return x


def _scripted(function: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(function)


def _replaced_function(*args: Any, **options: Any) -> Any:
    return args


CHANGES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "method": lambda patch: patch.setattr(
        modeling_qwen3.Qwen3MLP, "forward", lambda self, hidden: hidden
    ),
    "function": lambda patch: patch.setattr(
        modeling_qwen3, "eager_attention_forward", _replaced_function
    ),
    "class": lambda patch: patch.setattr(
        modeling_qwen3, "Qwen3RMSNorm", type("Fast", (modeling_qwen3.Qwen3RMSNorm,), {})
    ),
    "torch": lambda patch: patch.setattr("torch.nn.functional.silu", _replaced_function),
    "attention": lambda patch: patch.setitem(
        modeling_qwen3.ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", _replaced_function
    ),
    "activation": lambda patch: patch.setitem(
        modeling_qwen3.ACT2FN, "silu", type("Mine", (modeling_qwen3.nn.SiLU,), {})
    ),
    "imported function": lambda patch: patch.setattr(
        modeling_qwen3, "create_causal_mask", _replaced_function
    ),
    "another function of the library": lambda patch: patch.setattr(
        modeling_qwen3, "create_causal_mask", modeling_qwen3.create_sliding_window_causal_mask
    ),
    "another class of the library": lambda patch: patch.setattr(
        modeling_qwen3, "Qwen3RMSNorm", modeling_qwen3.nn.RMSNorm
    ),
    "another method of the library": lambda patch: patch.setattr(
        modeling_qwen3.Qwen3MLP, "forward", modeling_qwen3.Qwen3RMSNorm.forward
    ),
    "constructor": lambda patch: patch.setattr(
        modeling_qwen3.Qwen3MLP, "__init__", modeling_qwen3.nn.Identity.__init__
    ),
    "code of a method": lambda patch: patch.setattr(
        modeling_qwen3.Qwen3MLP.forward, "__code__", (lambda self, hidden: hidden).__code__
    ),
    "partial method": lambda patch: patch.setattr(
        modeling_qwen3.Qwen3MLP, "forward", functools.partialmethod(_replaced_function)
    ),
    "wrapped method": lambda patch: patch.setattr(
        modeling_qwen3.Qwen3MLP, "forward", torch.no_grad()(_replaced_function)
    ),
    "callable object": lambda patch: patch.setattr(
        modeling_qwen3, "apply_rotary_pos_emb", operator.itemgetter(0)
    ),
    "scripted function": lambda patch: patch.setattr(
        modeling_qwen3, "rotate_half", _scripted(rotate_half)
    ),
    "flag": lambda patch: patch.setattr(
        modeling_qwen3.Qwen3PreTrainedModel, "_supports_sdpa", False
    ),
    "attention of torch": lambda patch: patch.setattr(
        "torch.nn.functional.scaled_dot_product_attention", _replaced_function
    ),
    "class of torch": lambda patch: patch.setattr(
        "torch.nn.Linear", type("Linear", (modeling_qwen3.nn.Linear,), {"__module__": __name__})
    ),
    "operator of torch": lambda patch: patch.setattr("torch.matmul", _replaced_function),
    "method of a tensor": lambda patch: patch.setattr(
        torch.Tensor, "matmul", _replaced_function, raising=False
    ),
    "mask": lambda patch: patch.setitem(
        ALL_MASK_ATTENTION_FUNCTIONS._local_mapping, "sdpa", _replaced_function
    ),
    "another attention of the library": lambda patch: patch.setitem(
        modeling_qwen3.ALL_ATTENTION_FUNCTIONS._global_mapping,
        "sdpa",
        modeling_qwen3.ALL_ATTENTION_FUNCTIONS["flash_attention_2"],
    ),
    "another activation of the library": lambda patch: patch.setitem(
        ACT2CLS, "silu", modeling_qwen3.nn.GELU
    ),
    "registered": lambda patch: patch.setitem(
        AutoConfig.register.__globals__["CONFIG_MAPPING"]._extra_content,
        "qwen3",
        type("MyConfig", (PreTrainedConfig,), {}),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_code_is_neither_answered_from_records_nor_kept(
    name: str, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = written(tmp_path / "model", KEYS)
    stock = llmsim.trace(model).trace
    files = set(folder.iterdir())
    session_cache.forget()
    assert changed_code() is None
    with monkeypatch.context() as patch:
        CHANGES[name](patch)
        assert changed_code() is not None
        recipe = workloads._kept_model(_recipe(model))
        assert recipe is None
        if name == "method":
            assert llmsim.trace(model).trace != stock
    assert set(folder.iterdir()) == files
    assert changed_code() is None
    session_cache.forget()
    assert llmsim.trace(model).trace == stock


def test_a_model_built_of_changed_code_answers_only_while_it_is_changed(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session's model and traces must not outlive a patch, nor reach the disk."""
    model = written(tmp_path / "model", KEYS)
    with monkeypatch.context() as off:
        off.setenv("LLMSIM_CACHE", "off")
        stock = {context: llmsim.trace(model, context=context).trace for context in (8, 16)}
    session_cache.forget()

    class Fast(modeling_qwen3.Qwen3RMSNorm):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return hidden_states * self.weight

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(modeling_qwen3, "Qwen3RMSNorm", Fast)
            assert llmsim.trace(model, context=8).trace.recorded != stock[8].recorded
        for context, expected in stock.items():
            assert llmsim.trace(model, context=context).trace == expected
    session_cache.forget()
    for context, expected in stock.items():
        assert llmsim.trace(model, context=context).trace == expected


def test_a_recipe_of_before_a_change_leaves_nothing_of_the_changed_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report that traces on demand has the recipe of when it was asked for."""
    model = written(tmp_path / "model", KEYS)
    with monkeypatch.context() as off:
        off.setenv("LLMSIM_CACHE", "off")
        stock = {context: llmsim.trace(model, context=context).trace for context in (8, 16)}
    session_cache.forget()
    recipe = _recipe(model)
    with monkeypatch.context() as patch:
        CHANGES["class"](patch)
        patch.setattr(modeling_qwen3.Qwen3RMSNorm, "forward", lambda self, hidden: hidden)
        patched = workloads.trace_workload(recipe, stock[8].workload, replay=True)
        assert patched.recorded != stock[8].recorded
    for context, expected in stock.items():
        assert workloads.trace_workload(recipe, expected.workload, replay=True) == expected
        assert llmsim.trace(model, context=context).trace == expected


def test_a_model_that_registers_its_own_classes_changes_nothing() -> None:
    pytest.importorskip("transformers.models.deepseek_v4.modeling_deepseek_v4")
    pytest.importorskip("transformers.models.doge.modeling_doge")
    assert changed_code() is None


def test_the_code_of_a_long_lived_recipe_is_looked_at_for_each_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Any]
) -> None:
    """A panel keeps a recipe while a file of the code changes."""
    code = tmp_path / "modeling.py"
    code.write_text("one")
    os.utime(code, (1_000_000, 1_000_000))
    monkeypatch.setattr(workloads, "_code_files", lambda meta_model: (str(code),))
    recipe = _recipe(written(tmp_path / "model", KEYS))
    for number in (1, 1, 2):
        os.utime(code, (1_000_000 * number, 1_000_000 * number))
        workloads.trace_workload(recipe, Workload("prefill", 1, 8), replay=True)
        session_cache.forget_traces()
        assert len(runs) == number


def test_each_trace_keeps_its_own_parameters(tmp_path: Path) -> None:
    model = written(tmp_path / "model", KEYS)
    kept = workloads._kept_model(_recipe(model))
    assert kept is not None
    first = llmsim.trace(model, context=8).trace
    wider = tuple(dataclasses.replace(each, dtype="float64") for each in first.parameters)
    question = Question(Workload("prefill", 1, 9), replay=True, default_dtype="float64")
    second = dataclasses.replace(first, parameters=wider, workload=question.workload)
    kept.keep_trace(question, second, ())
    session_cache.forget()
    found = workloads._kept_model(_recipe(model))
    assert found is not None
    read = found.trace(question)
    assert read is not None
    assert read.parameters == wider
    assert llmsim.trace(model, context=8).trace == first


def test_a_package_that_was_installed_meanwhile_stops_the_records(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers asks for some packages when it first imports a model."""
    assert environment.code_in_use() == environment.environment()
    (tmp_path / "flash_linear_attention-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    llmsim.trace(written(tmp_path / "model", KEYS))
    assert not folder.exists()


def test_the_order_of_the_rules_in_a_value_is_part_of_a_config(tmp_path: Path) -> None:
    rules = {"-:.*mlp.*": {}, "+:.*": {"bits": 8}}
    for dynamic in (rules, dict(reversed(rules.items()))):
        quantization = {"quant_method": "gptq", "bits": 4, "group_size": 32, "dynamic": dynamic}
        model = written(tmp_path / "model", {**KEYS, "quantization_config": quantization})
        session_cache.forget()
        found = llmsim.trace(model).trace.model.quantisation
        assert found is not None
        assert [*found["dynamic"]] == [*dynamic]


def _recipe(model: Any) -> Any:
    from llmsim_magic.simulate.models.recipes import model_recipe
    from llmsim_magic.simulate.request import Build

    return model_recipe(model, Build())


def test_nothing_is_changed_in_a_process_that_traces(tmp_path: Path) -> None:
    for keys in (KEYS, {"model_type": "gpt2"}, {"model_type": "t5"}, {"model_type": "mixtral"}):
        written(tmp_path / "model", keys)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LLMSIM_CACHE", "off")
            llmsim.trace(str(tmp_path / "model"), context=8)
    assert changed_code() is None


def test_importing_what_users_train_with_changes_nothing() -> None:
    import peft  # noqa: F401
    import transformers.models.vits.modeling_vits  # noqa: F401 - some versions script a function
    from transformers import Trainer
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    assert Trainer.__module__ == "transformers.trainer"
    assert TYPE_TO_SCHEDULER_FUNCTION
    assert changed_code() is None


def test_a_function_that_its_module_scripts_is_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_qwen3, "rotate_half", _scripted(modeling_qwen3.rotate_half))
    assert changed_code() is None


def test_a_live_module_is_never_kept(folder: Path) -> None:
    llmsim.trace(Qwen3ForCausalLM(Qwen3Config(**SMALL)).to("meta"))
    assert not folder.exists()


def test_a_config_object_is_kept_unless_its_class_is_the_users(
    folder: Path, runs: list[Any]
) -> None:
    class Mine(Qwen3Config):
        pass

    for config in (Qwen3Config(**SMALL), Qwen3Config(**SMALL)):
        llmsim.trace(config)
        session_cache.forget()
    assert len(runs) == 1
    assert _recipe(Qwen3Config(**SMALL)).identity is not None
    assert _recipe(Mine(**SMALL)).identity is None


REMOTE_CONFIG = """
from transformers import PreTrainedConfig
class MyConfig(PreTrainedConfig):
    model_type = "mine_to_keep"
    def __init__(self, width=8, **rest):
        self.width = width
        super().__init__(**rest)
"""
REMOTE_MODEL = """
import torch
from transformers import PreTrainedModel
from .configuration_mine import MyConfig
class MyModel(PreTrainedModel):
    config_class = MyConfig
    def __init__(self, config):
        super().__init__(config)
        self.table = torch.nn.Embedding(16, config.width)
        self.linear = torch.nn.Linear(config.width, WIDTH)
        self.post_init()
    def forward(self, input_ids, **rest):
        return self.linear(self.table(input_ids))
"""


def test_remote_code_answers_only_if_trusted_and_unchanged(tmp_path: Path, runs: list[Any]) -> None:
    keys = {
        "model_type": "mine_to_keep",
        "auto_map": {
            "AutoConfig": "configuration_mine.MyConfig",
            "AutoModel": "modeling_mine.MyModel",
        },
    }
    model = Path(written(tmp_path / "model", keys))
    (model / "configuration_mine.py").write_text(REMOTE_CONFIG)
    (model / "modeling_mine.py").write_text(REMOTE_MODEL.replace("WIDTH", "4"))

    def parameters() -> int:
        session_cache.forget()
        with modules_folder(tmp_path / "modules"):
            traced = llmsim.trace(str(model), trust_remote_code=True)
        return int(traced.modules["params"].sum())

    assert parameters() == 16 * 8 + 9 * 4
    assert parameters() == 16 * 8 + 9 * 4
    assert len(runs) == 1
    session_cache.forget()
    with pytest.raises(llmsim.LlmsimError, match="--trust-remote-code"):
        llmsim.trace(str(model))
    (model / "modeling_mine.py").write_text(REMOTE_MODEL.replace("WIDTH", "12"))
    assert parameters() == 16 * 8 + 9 * 12


def test_refresh_traces_again_and_replaces_the_record(
    tmp_path: Path, runs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = written(tmp_path / "model", KEYS)
    llmsim.trace(model)
    session_cache.forget()
    llmsim.trace(model, refresh=True)
    assert len(runs) == 2
    session_cache.forget()
    llmsim.trace(model)
    assert len(runs) == 2


def test_forget_deletes_the_records(tmp_path: Path, folder: Path, runs: list[Any]) -> None:
    model = written(tmp_path / "model", KEYS)
    llmsim.trace(model)
    assert list(folder.iterdir())
    llmsim.forget()
    assert not list(folder.iterdir())
    llmsim.trace(model)
    assert len(runs) == 2


def test_no_record_is_kept_where_they_are_off(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMSIM_CACHE", "off")
    llmsim.trace(written(tmp_path / "model", KEYS))
    assert not folder.exists()


def test_an_unusable_folder_costs_an_answer_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLMSIM_CACHE", str(tmp_path / "file" / "below"))
    assert len(llmsim.trace(written(tmp_path / "model", KEYS)).ops) > 10


def test_a_record_with_impossible_references_is_traced_again(
    tmp_path: Path, folder: Path, runs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone who writes a whole entry by hand has its digest right, too."""
    from msgspec.structs import replace

    model = written(tmp_path / "model", KEYS)
    keep = kept_model.KeptModel._write

    def forged(self: Any, what: str, value: Any, files: Any) -> None:
        if isinstance(value, Trace):
            kernels = value.recorded.kernels
            wrong = (*kernels[:-1], replace(kernels[-1], inputs=(10**6,)))
            value = _with(value, recorded=_with(value.recorded, kernels=wrong))
        keep(self, what, value, files)

    monkeypatch.setattr(kept_model.KeptModel, "_write", forged)
    llmsim.trace(model)
    monkeypatch.undo()
    monkeypatch.setenv("LLMSIM_CACHE", str(folder))
    session_cache.forget()
    good = llmsim.trace(model).trace
    assert max(max(k.inputs, default=0) for k in good.recorded.kernels) < 10**6


def test_impossible_limits_are_found_again(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = written(tmp_path / "model", KEYS)
    keep = kept_model.KeptModel._write

    def forged(self: Any, what: str, value: Any, files: Any) -> None:
        keep(self, what, _with(value, declared=-5) if what == "limits" else value, files)

    monkeypatch.setattr(kept_model.KeptModel, "_write", forged)
    llmsim.trace(model)
    monkeypatch.undo()
    monkeypatch.setenv("LLMSIM_CACHE", str(folder))
    session_cache.forget()
    assert llmsim.size(model, hardware="L4", context=64).table["fits"].all()


def _with(record: Any, **changes: Any) -> Any:
    import dataclasses

    return dataclasses.replace(record, **changes)


def test_the_origin_is_that_of_this_time(tmp_path: Path) -> None:
    """A config from the hub comes from the local cache the next time: one record answers both."""
    from llmsim_magic.capture.checkpoint.found_config import FoundConfig
    from llmsim_magic.records.trace.workload import Workload
    from llmsim_magic.simulate.models.recipes import _recipe_of_config_file
    from llmsim_magic.simulate.request import Build

    traces = []
    for origin, notes in (("hub", ("from the hub",)), ("local cache", ())):
        facts = FoundConfig("a/b", dict(KEYS), origin, "a/b", notes)
        recipe = _recipe_of_config_file(facts, Build())
        traces.append(workloads.trace_workload(recipe, Workload("prefill", 1, 8), True))
        session_cache.forget()
    assert [trace.model.origin for trace in traces] == ["hub", "local cache"]
    assert "from the hub" in traces[0].notes
    assert "from the hub" not in traces[1].notes
    assert traces[0].recorded == traces[1].recorded


def test_the_magic_chooses_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from IPython.core.interactiveshell import InteractiveShell

    from llmsim_magic.notebook.magic import LLMSim

    monkeypatch.setattr(cache_folder, "_chosen", "")
    magics = LLMSim(InteractiveShell())
    magics.cache = str(tmp_path / "mine")
    found = cache_folder.disk_cache()
    assert found is not None
    assert found.folder == tmp_path / "mine"
    magics.cache = "off"
    assert cache_folder.disk_cache() is None
    with pytest.raises(Exception, match="cache must be off or a folder"):
        magics.cache = __file__


def test_formulas_are_kept_and_answer_what_was_never_traced(
    tmp_path: Path, runs: list[Any]
) -> None:
    model = written(tmp_path / "model", KEYS)
    batches, contexts = (1, 2, 3, 4, 5, 8), (16, 17, 32, 48, 64, 100)
    traced = llmsim.sweep(model, batch=batches, context=contexts, phase="prefill")
    assert len(runs) > 10
    session_cache.forget()
    number = len(runs)
    again = llmsim.sweep(model, batch=batches, context=contexts, phase="prefill")
    assert list(again.traces) == list(traced.traces)
    evaluated = llmsim.trace(model, batch=7, context=77).trace
    assert len(runs) == number
    os.environ["LLMSIM_CACHE"] = "off"
    session_cache.forget()
    assert llmsim.trace(model, batch=7, context=77).trace == evaluated
    assert len(runs) == number + 1


def test_a_sweep_that_was_asked_before_derives_no_formulas(tmp_path: Path, runs: list[Any]) -> None:
    model = written(tmp_path / "model", KEYS)
    options: dict[str, Any] = {"batch": range(1, 6), "context": range(1, 5), "phase": "prefill"}
    assert len(llmsim.sweep(model, **options).traces) == 20
    number = len(runs)
    session_cache.forget()
    assert len(llmsim.sweep(model, **options).traces) == 20
    assert len(runs) == number


def test_looking_for_changes_makes_nothing_of_a_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of activations makes what is read from it."""

    def refuse(self: Any, key: str) -> Any:
        raise AssertionError(key)

    monkeypatch.setattr(type(modeling_qwen3.ACT2FN), "__getitem__", refuse)
    assert changed_code() is not None
