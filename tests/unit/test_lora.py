"""LoRA adapters of a training step: the option's text, and the model that peft makes of it."""

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import llmsim_magic as llmsim
from llmsim_magic.capture.adapters.lora import with_lora
from llmsim_magic.capture.configs.resolve import ConfigSource, find_config, load_config
from llmsim_magic.capture.meta.evaluation_modes import evaluating_partially
from llmsim_magic.capture.models.meta_model import MetaModel, from_config
from llmsim_magic.capture.replay.layer_matching import matched_layers
from llmsim_magic.capture.run import run
from llmsim_magic.records.errors import CannotTrace, InvalidValue
from llmsim_magic.records.trace.lora import Lora, parse_lora
from llmsim_magic.records.trace.training import Training
from llmsim_magic.records.trace.workload import Workload
from tests.helpers import small_models
from tests.helpers.replay_comparison import differences

peft = pytest.importorskip("peft")
META = torch.device("meta")
MODELS = ("llama", "qwen3", "gpt2", "bert")
SPECS = ("r=4,targets=all-linear", "r=4", "r=4,dora", "r=4,alpha=3,rslora,dropout=0.1")


# the option


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ("16", Lora(r=16)),
        (16, Lora(r=16)),
        ("r=16", Lora(r=16)),
        (Lora(r=4, dora=True), Lora(r=4, dora=True)),
        ("r=16,targets=all-linear", Lora(r=16, targets=("all-linear",))),
        ("r=4,targets=All-Linear", Lora(r=4, targets=("all-linear",))),
        (
            "r=8,alpha=32,dropout=0.05,targets=q_proj+self_attn.v_proj",
            Lora(r=8, alpha=32, dropout=0.05, targets=("q_proj", "self_attn.v_proj")),
        ),
        ("rslora, r = 2, dora=false", Lora(r=2, rslora=True)),
        ("r=1,dropout=1e-5", Lora(r=1, dropout=1e-5)),
        ("r=2, targets=q_proj,v_proj", Lora(r=2, targets=("q_proj", "v_proj"))),
        ("r=2 targets=q_proj + v_proj dora", Lora(r=2, targets=("q_proj", "v_proj"), dora=True)),
        ("targets=['q_proj', 'v_proj'], r=2", Lora(r=2, targets=("q_proj", "v_proj"))),
        ("8,alpha=16", Lora(r=8, alpha=16)),
    ],
)
def test_the_text_is_parsed_and_written_again(given: object, options: Lora) -> None:
    assert parse_lora(given) == options
    assert parse_lora(str(options)) == options
    assert " " not in str(options)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", ["lora must be", "rank"]),
        (None, ["lora must be", "None"]),
        (True, ["lora must be", "True"]),
        (2.5, ["lora must be", "2.5"]),
        (
            "rank=4",
            ["unknown key 'rank'", "did you mean r?", "r, alpha, dropout, targets, dora, rslora"],
        ),
        ("r=4,lora_alpha=8", ["did you mean alpha?"]),
        ("r=4,aplha=8", ["did you mean alpha?"]),
        ("r=4,q_proj", ["unknown key 'q_proj'"]),
        ("alpha=4", ["r is missing", "r=16"]),
        ("r=4,r=8", ["r is given twice"]),
        ("r=0", ["r must be a whole number from 1", "0"]),
        (-1, ["r must be a whole number from 1", "-1"]),
        ("r=4.5", ["r must be", "4.5"]),
        ("r=99999999999999999999", ["r must be"]),
        ("r=4,alpha=0", ["alpha must be"]),
        ("r=4,dropout=1", ["dropout must be", "below 1"]),
        ("r=4,dropout=nan", ["dropout must be"]),
        ("r=4,dora=perhaps", ["dora must be true or false"]),
        ("r=4,targets=", ["targets must be"]),
        ("r=4,targets=q_proj+", ["targets must be", "q_proj+v_proj"]),
        ("r=4,targets=all-linear+q_proj", ["all-linear cannot be combined"]),
    ],
)
def test_an_illegal_text_is_refused_in_one_line(given: object, words: list[str]) -> None:
    with pytest.raises(InvalidValue) as error:
        parse_lora(given)
    assert all(word in str(error.value) for word in words), error.value


# the model


def small_config(name: str, layers: int) -> Any:
    config = small_models.CONFIGS[name]()
    number = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    changes = {number: layers, "layer_types": None}  # which has one item per layer
    return type(config)(**(config.to_dict() | changes))


def built(name: str, layers: int = 2) -> Any:
    """A small model in bfloat16 on meta, by its class."""
    config = small_config(name, layers)
    with META:
        model = getattr(transformers, config.architectures[0])(config)
    return model.to(torch.bfloat16).train()


class KernelLog(TorchDispatchMode):
    """The kernels that run, with the shapes and dtypes of their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        shapes = [(each.shape, each.dtype) for each in args if isinstance(each, torch.Tensor)]
        self.calls.append((str(func), shapes))
        return out


def forward_and_backward(model: Any) -> list[Any]:
    """The kernels of a step on meta without the optimizer's."""
    ids = torch.zeros(2, 7, dtype=torch.long, device=META)
    log = KernelLog()
    with evaluating_partially(), torch.enable_grad(), log:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return log.calls


@pytest.mark.filterwarnings("ignore")  # peft's own, of a model that is not ours
@pytest.mark.parametrize(
    ("name", "spec", "checkpointing"),
    [
        *((name, spec, False) for name in MODELS for spec in SPECS),
        *((name, SPECS[0], True) for name in MODELS),
    ],
)
def test_the_model_runs_the_kernels_of_the_one_that_peft_wraps(
    name: str, spec: str, checkpointing: bool
) -> None:
    options = parse_lora(spec)
    model, _ = with_lora(built(name), options, checkpointing=checkpointing)
    assert type(model) is type(built(name))
    config = peft.LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules="all-linear" if options.targets else None,
        use_dora=options.dora,
        use_rslora=options.rslora,
    )
    with META:
        wrapped = peft.get_peft_model(built(name), config)
    if checkpointing:
        wrapped.enable_input_require_grads()
        checkpoint(wrapped)
        checkpoint(model)
    ours, theirs = ({n: p.dtype for n, p in m.named_parameters()} for m in (model, wrapped))
    assert {f"base_model.model.{n}": dtype for n, dtype in ours.items()} == theirs
    assert forward_and_backward(model) == forward_and_backward(wrapped)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_only_the_adapters_have_gradients_and_they_are_in_float32(
    name: str, checkpointing: bool
) -> None:
    model, note = with_lora(
        built(name), parse_lora("r=4,targets=all-linear"), checkpointing=checkpointing
    )
    if checkpointing:
        checkpoint(model)
    forward_and_backward(model)
    for path, parameter in model.named_parameters():
        is_adapter = ".lora_A." in path or ".lora_B." in path
        assert parameter.requires_grad == is_adapter
        assert (parameter.grad is not None) == is_adapter, path
        assert parameter.dtype == (torch.float32 if is_adapter else torch.bfloat16)
        assert parameter.grad is None or parameter.grad.dtype == torch.float32
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    assert f"{trained:,} parameters in float32" in note
    assert "lm_head.lora_A" not in str(dict(model.named_modules()).keys())


def checkpoint(model: Any) -> None:
    """Turn checkpointing on by the name that this version of transformers has for it."""
    new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"
    getattr(model, new if hasattr(model, new) else old)()


@pytest.mark.filterwarnings("ignore")
def test_adapters_of_experts_run_as_on_a_real_device() -> None:
    """FLOPs of forward and backward equal those of a real model on the CPU."""
    spec = "r=4,targets=all-linear"

    def flops_and_gradients(model: Any) -> tuple[int, set[str]]:
        model.set_attn_implementation("eager")  # torch counts no FLOPs of the CPU's own kernel
        ids = torch.zeros(2, 7, dtype=torch.long, device=model.device)
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        graded = {path for path, each in model.named_parameters() if each.grad is not None}
        return counter.get_total_flops(), graded

    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    real = peft.get_peft_model(small_models.build("mixtral").train(), config).get_base_model()
    model, note = with_lora(small_models.build("mixtral", "meta").train(), parse_lora(spec))
    assert "gate_up_proj, down_proj" in note or "down_proj, gate_up_proj" in note
    expected = flops_and_gradients(real)
    with evaluating_partially(), torch.enable_grad():
        assert flops_and_gradients(model) == expected
    assert expected[1] == {path for path, each in real.named_parameters() if each.requires_grad}
    assert any(".experts." in path for path in expected[1])


def published(name: str, spec: str) -> Any:
    """A model of the catalogue with adapters."""
    return with_lora(from_config(load_config(find_config(name))).module, parse_lora(spec))[0]


def test_bytes_and_parameters_are_those_measured_on_an_h100() -> None:
    """Llama-3.1-8B in bfloat16 on an H100 with peft: allocated bytes after each part of step 0.

    The weights there include the allocator's rounding to 512 bytes.
    """
    weights, gradients, states = 16_228_312_064, 167_772_160, 335_544_320
    model = published("meta-llama/Llama-3.1-8B", "r=16,alpha=32,targets=all-linear")
    tensors = [*model.parameters(), *model.buffers()]
    trained = [each for each in model.parameters() if each.requires_grad]
    assert sum(each.numel() for each in trained) == 41_943_040
    assert sum(each.numel() for each in model.parameters()) == 8_072_204_288
    assert sum(each.nbytes for each in tensors) == pytest.approx(weights, rel=1e-5)
    assert sum(each.nbytes for each in trained) == gradients
    assert 2 * gradients == states  # AdamW's two moments are in the parameters' dtype


@pytest.mark.slow
def test_gradients_and_states_of_a_step_are_those_measured_on_an_h100() -> None:
    """The same run: gradients after backward, and what the optimizer's step then allocates."""
    report = llmsim.trace(
        "meta-llama/Llama-3.1-8B",
        phase="train",
        context=2048,
        checkpointing=True,
        lora="r=16,alpha=32,targets=all-linear",
    )
    nbytes = Counter[str]()
    for storage in report.trace.storages:
        nbytes[storage.role] += storage.nbytes
    assert (nbytes["gradient"], nbytes["optimizer"]) == (167_772_160, 335_544_320)


@pytest.mark.parametrize(
    ("spec", "trainable", "parameters"),
    [
        ("r=32,targets=q_proj+v_proj", 9_175_040, 3_221_924_864),
        ("r=32", 9_175_040, 3_221_924_864),
        ("r=64,targets=q_proj+v_proj,rslora", 18_350_080, 3_231_099_904),
        ("r=32,targets=q_proj+v_proj,dora", 9_289_728, 3_222_039_552),
        ("r=10,targets=down_proj+gate_proj+up_proj", 9_461_760, 3_222_211_584),
    ],
)
def test_trainable_parameters_are_those_that_peft_publishes(
    spec: str, trainable: int, parameters: int
) -> None:
    """From huggingface/peft, method_comparison/MetaMathQA/results, Llama-3.2-3B."""
    model = published("meta-llama/Llama-3.2-3B", spec)
    sizes = [(each.numel(), each.requires_grad) for each in model.parameters()]
    assert sum(size for size, trains in sizes if trains) == trainable
    assert sum(size for size, _ in sizes) == parameters


@pytest.mark.parametrize(
    ("name", "spec"),
    [*(("llama", spec) for spec in SPECS), *((name, SPECS[0]) for name in MODELS[1:])],
)
def test_adapted_layers_are_equal_and_replayed_as_they_run(name: str, spec: str) -> None:
    plain = from_config(ConfigSource("small", small_config(name, layers=4), "a test"))
    model, _ = with_lora(plain.module, parse_lora(spec))
    found = matched_layers(model)
    assert len(found) == 4
    assert len({layer.kind for layer in found.values()}) == 1
    meta_model = MetaModel(model, plain.info)
    workload = Workload("prefill", 2, 7)
    full, replayed = (run(meta_model, workload, replay=each) for each in (False, True))
    assert len(replayed.replays) == 3
    assert not list(differences(full, replayed))


def test_layers_whose_adapters_differ_are_not_equal() -> None:
    model = built("llama", layers=4)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[0, 1])
    with META:
        peft.inject_adapter_in_model(config, model)
    kinds = [layer.kind for layer in matched_layers(model).values()]
    assert kinds == [0, 0, 1, 1]


def test_the_head_of_a_classifier_is_trained_beside_the_adapters() -> None:
    """As `get_peft_model` does for the task SEQ_CLS: a copy of the head, in the model's dtype."""
    config = small_models.bert()
    with META:
        model = transformers.BertForSequenceClassification(config).to(torch.bfloat16)
    model, _ = with_lora(model, parse_lora("r=4,targets=all-linear"))
    trained = {path for path, each in model.named_parameters() if each.requires_grad}
    head = {path for path in trained if path.startswith("classifier")}
    assert head == {f"classifier.modules_to_save.default.{each}" for each in ("weight", "bias")}
    assert all(".lora_" in path for path in trained - head)


# the options of a step


def test_the_options_of_a_step_hold_the_text_in_one_form() -> None:
    assert Training(lora="16") == Training(lora=" r=16 ")
    assert Training(qlora=True).lora == "r=16,targets=all-linear"
    assert Training(qlora=True, lora="4").lora == "r=4"
    with pytest.raises(InvalidValue, match="unknown key 'rank'"):
        Training(lora="rank=4")


@pytest.mark.parametrize("options", [{"lora": "r=4,targets=all-linear"}, {"qlora": True}])
def test_a_step_trains_the_adapters_alone(options: dict[str, Any]) -> None:
    report = llmsim.trace(small_config("llama", 2), phase="train", batch=2, context=7, **options)
    trained = {each.name for each in report.trace.parameters if each.trainable}
    storages = report.trace.storages
    assert trained == {each.name for each in storages if each.role == "gradient"}
    assert all(".lora_" in name for name in trained)
    states = {each.name for each in storages if each.role == "optimizer"}
    assert states == {f"{name}.{key}" for name in trained for key in ("exp_avg", "exp_avg_sq")}
    assert any("LoRA adapters of rank" in note for note in report.trace.notes)


# mistakes

# The modules that peft adapts, by kind; the most frequent names first.
LLAMA = (
    "linear layers q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, lm_head; "
    "embeddings embed_tokens"
)
GPT2 = "linear layers c_proj, c_attn, c_fc, lm_head; embeddings wte, wpe"


@pytest.mark.parametrize(
    ("name", "targets", "words"),
    [
        ("llama", "qproj", ["no module", "'qproj'", "did you mean q_proj", LLAMA]),
        ("llama", "q_proj+v_prj", ["no module", "'v_prj'", "did you mean v_proj", LLAMA]),
        ("llama", "vprj+zzz", ["no module of the model is named 'vprj' or 'zzz'", LLAMA]),
        ("llama", "mlp.q_proj", ["no module", "'mlp.q_proj'", "mlp.up_proj", LLAMA]),
        ("llama", "block.qproj", ["'block.qproj'", "did you mean self_attn.q_proj", LLAMA]),
        ("llama", "norm", ["'norm' is a LlamaRMSNorm", LLAMA]),
        ("gpt2", "q_proj", ["no module", "did you mean c_proj", GPT2]),
        ("gpt2", "zzz", ["no module", f"'zzz'; targets are all-linear, or names of its {GPT2}"]),
    ],
)
def test_targets_that_match_nothing_are_refused_with_the_nearest_names(
    name: str, targets: str, words: list[str]
) -> None:
    with pytest.raises(InvalidValue) as error:
        with_lora(built(name), parse_lora(f"r=4,targets={targets}"))
    assert all(word in str(error.value) for word in words), error.value


def test_names_of_many_modules_fit_one_line() -> None:
    names = [f"projection_of_a_long_name_{number}" for number in range(60)]
    with META:
        model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2) for name in names})
        model["first"] = torch.nn.Sequential(torch.nn.Conv1d(2, 2, 1), torch.nn.Linear(2, 2))
    with pytest.raises(InvalidValue) as error:
        with_lora(model, parse_lora("r=4,targets=zzz"))
    text = str(error.value)
    assert "…" not in text
    shown = [name for name in names if f" {name}," in f"{text.replace(' and', ',')}"]
    assert f"{shown[-1]} and {61 - len(shown)} more; convolutions first.0" in text


def test_a_model_without_linear_layers_is_refused_in_one_line() -> None:
    with META:
        model = torch.nn.Sequential(torch.nn.LayerNorm(8))
    with pytest.raises((InvalidValue, CannotTrace), match=r"^lora: "):
        with_lora(model, parse_lora("4"))


def test_what_peft_refuses_is_said_with_the_names_of_other_targets() -> None:
    """peft adapts no `out_proj` of a Mamba, which all-linear would."""
    with pytest.raises(CannotTrace) as error:
        with_lora(small_models.build("mamba", "meta"), parse_lora("r=4,targets=all-linear"))
    assert "out_proj" in str(error.value)
    assert "in_proj" in str(error.value).rpartition("name targets among")[2]
    with_lora(small_models.build("mamba", "meta"), parse_lora("r=4,targets=in_proj+x_proj"))


def test_a_model_that_has_adapters_is_refused() -> None:
    model, _ = with_lora(built("llama"), parse_lora("4"))
    with pytest.raises(InvalidValue, match="already has adapters"):
        with_lora(model, parse_lora("4"))


def test_without_peft_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(CannotTrace, match=r"pip install 'llmsim-magic\[train\]'"):
        with_lora(built("llama"), parse_lora("4"))


# frozen parts


def frozen_embedding(model: Any) -> None:
    model.get_input_embeddings().requires_grad_(False)


def frozen_layer(model: Any) -> None:
    model.model.layers[0].requires_grad_(False)


def frozen_all_but_head(model: Any) -> None:
    model.requires_grad_(False)
    model.get_output_embeddings().requires_grad_(True)


@pytest.mark.parametrize("freeze", [frozen_embedding, frozen_layer, frozen_all_but_head])
def test_frozen_parts_have_no_gradient(freeze: Callable[[Any], None]) -> None:
    model, whole = built("llama"), built("llama")
    freeze(model)
    calls = forward_and_backward(model)
    for path, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, path
    assert len(calls) < len(forward_and_backward(whole))
