"""Every catalogue entry is valid and has the model class it names."""

from dataclasses import replace
from typing import Any

import pytest

import llmsim_magic as llmsim
from llmsim_magic.capture.configs.resolve import find_config, load_config
from llmsim_magic.capture.models.meta_model import from_config
from llmsim_magic.catalog import models
from tests.helpers.reduced_configs import shallower

NAMES = sorted(models.entries())
BY_SIZE = sorted(models.entries().values(), key=lambda entry: -entry.params)
SMALLEST = {entry.config["architectures"][0]: entry.name for entry in BY_SIZE}

PREDICTION_LAYER = "multi-token prediction layer, which transformers does not build"
ROUTER_BIASES = "router biases, which transformers keeps as buffers"
WITH_PREDICTION_LAYER = [n for n in NAMES if PREDICTION_LAYER in models.entries()[n].difference]
WITH_ROUTER_BIASES = [n for n in NAMES if ROUTER_BIASES in models.entries()[n].difference]

every_architecture = pytest.mark.parametrize("name", SMALLEST.values(), ids=SMALLEST)


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_builds_to_its_recorded_number_of_parameters(name: str) -> None:
    entry = models.entries()[name]
    module = from_config(load_config(find_config(name))).module
    assert sum(parameter.numel() for parameter in module.parameters()) == entry.params
    assert type(module).__name__ in entry.config["architectures"]
    assert all(parameter.is_meta for parameter in module.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_says_how_it_is_known(name: str) -> None:
    entry = models.entries()[name]
    assert entry.source
    assert entry.params + sum(entry.difference.values()) == entry.published_params


def prediction_layer(name: str) -> int:
    """Elements of a multi-token prediction layer as DeepSeek-V3 has it.

    It is one more layer of the model, a projection of two hidden states to one, and three norms.
    """
    module = from_config(load_config(find_config(name))).module
    decoder = getattr(module.model, "language_model", module.model)
    layer, width = decoder.layers[-1], decoder.config.hidden_size
    stored = sum(tensor.numel() for tensor in layer.state_dict().values())
    return stored + 2 * width * width + 3 * width


@pytest.mark.parametrize("name", WITH_PREDICTION_LAYER)
def test_a_prediction_layer_that_is_not_built_has_its_arithmetic(name: str) -> None:
    assert models.entries()[name].difference[PREDICTION_LAYER] == prediction_layer(name)


@pytest.mark.parametrize("name", WITH_ROUTER_BIASES)
def test_router_biases_are_buffers_of_the_model(name: str) -> None:
    module = from_config(load_config(find_config(name))).module
    parameters = {key for key, _ in module.named_parameters(remove_duplicate=False)}
    stored = module.state_dict().items()
    biases = [tensor.numel() for key, tensor in stored if key not in parameters]
    assert models.entries()[name].difference[ROUTER_BIASES] == sum(biases)


def runs(model: Any) -> None:
    sweep = llmsim.sweep(model, batch=[1], context=[2])
    phases = [trace.workload.phase for trace in sweep.traces]
    assert phases == ["prefill", "decode"] or "decode does not exist" in sweep.notes[0]
    assert (sweep.totals["flops"] > 0).all()


@every_architecture
def test_every_architecture_of_the_catalogue_runs(name: str) -> None:
    facts = find_config(name)
    whole = load_config(facts).config.to_dict()
    fewer = {key: cut for key, cut in shallower(whole).items() if cut != whole[key]}
    runs(load_config(replace(facts, keys=facts.keys | fewer)).config)


@pytest.mark.slow
@every_architecture
def test_every_architecture_of_the_catalogue_runs_with_all_its_layers(name: str) -> None:
    runs(name)


def test_aliases_and_case_lead_to_the_same_entry() -> None:
    assert models.find("openai-community/gpt2") == models.find("GPT2") == models.entries()["gpt2"]
    assert models.find("nothing/like-it") is None


def test_no_alias_means_two_models() -> None:
    spellings = [s.lower() for e in models.entries().values() for s in (e.name, *e.aliases)]
    assert len(spellings) == len(set(spellings))


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("Qwen/Qwen3-0.6", "Qwen/Qwen3-0.6B"),
        ("bert-base-uncase", "bert-base-uncased"),
        ("Llama-3.1-405B", "meta-llama/Llama-3.1-405B"),
        ("mixtral-8x7b", "mistralai/Mixtral-8x7B-v0.1"),
    ],
)
def test_a_misspelt_id_is_met_with_the_one_meant(misspelt: str, meant: str) -> None:
    assert meant in models.nearest(misspelt)


def test_facts_handed_out_are_copies() -> None:
    find_config("gpt2").keys["n_layer"] = 99
    assert find_config("gpt2").keys["n_layer"] == 12
