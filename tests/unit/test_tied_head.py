"""A head that a checkpoint stores apart from the embedding has weights of its own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

import llmsim_magic as llmsim
from llmsim_magic.capture.checkpoint.checkpoint import Checkpoint
from llmsim_magic.capture.checkpoint.tied_head import separate_head
from tests.helpers import small_models

T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 1000}
HEAD = 64 * 1000
UNTIED, UNKNOWN = "the head is not tied to the embedding", "its config does not say whether"
VALUES_UNKNOWN = "it cannot be known here whether with equal values"
NOTES = (UNTIED, UNKNOWN, VALUES_UNKNOWN)


def report(model: Any) -> tuple[int, list[str]]:
    """The number of parameters, and the notes about the head."""
    found = llmsim.trace(model, context=8)
    notes = [note for note in found.trace.notes if any(each in note for each in NOTES)]
    return found.summary.value["parameters"], notes


def folder(path: Path, keys: dict[str, Any], tensors: dict[str, Any] | None = None) -> str:
    path.joinpath("config.json").write_text(json.dumps(keys))
    if tensors is not None:
        save_file(tensors, path / "model.safetensors")
    return str(path)


def stored(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a model as transformers saves them: what is tied once."""
    found = {}
    seen = set()
    for name, value in module.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            found[name] = value.detach().clone()
    return found


def t5_keys(**given: Any) -> dict[str, Any]:
    return {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]} | T5 | given


@pytest.mark.parametrize("kind", ["T5", "UMT5", "MT5"])
def test_the_config_of_t5_1_1_holds_as_object_and_as_file(kind: str, tmp_path: Path) -> None:
    make = getattr(transformers, f"{kind}Config")
    given = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    architectures = [f"{kind}ForConditionalGeneration"]
    config = make(**given, architectures=architectures)
    tied = sum(p.numel() for p in getattr(transformers, architectures[0])(config).parameters())
    total, notes = report(config)
    assert total == tied + HEAD
    assert len(notes) == 1
    assert UNTIED in notes[0]
    keys = {"model_type": kind.lower(), "architectures": architectures, **given}
    assert report(folder(tmp_path, keys))[0] == tied + HEAD


@pytest.mark.parametrize("given", [{}, {"tie_word_embeddings": True}])
def test_the_first_t5_keeps_its_tied_head(given: dict[str, Any], tmp_path: Path) -> None:
    tied = sum(
        p.numel()
        for p in transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)).parameters()
    )
    assert report(transformers.T5Config(**T5, architectures=t5_keys()["architectures"]))[0] == tied
    total, notes = report(folder(tmp_path, t5_keys(**given)))
    assert total == tied
    assert [UNKNOWN in note for note in notes] == ([] if given else [True])


@pytest.mark.parametrize("says", [True, False, None])
@pytest.mark.parametrize("is_apart", [True, False])
def test_what_a_folder_stores_decides(says: bool | None, is_apart: bool, tmp_path: Path) -> None:
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5))
    tensors = stored(model)
    if is_apart:
        tensors["lm_head.weight"] = torch.zeros(1000, 64)
    keys = t5_keys() if says is None else t5_keys(tie_word_embeddings=says)
    tied = sum(parameter.numel() for parameter in model.parameters())
    total, notes = report(folder(tmp_path, keys, tensors))
    assert total == tied + HEAD * is_apart
    assert [UNTIED in note for note in notes] == [True] * is_apart


def test_an_index_names_the_tensors_too(tmp_path: Path) -> None:
    names = ["shared.weight", "lm_head.weight"]
    index = {"weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}
    tmp_path.joinpath("model.safetensors.index.json").write_text(json.dumps(index))
    assert UNTIED in report(folder(tmp_path, t5_keys()))[1][0]


def twice(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor], int, str]:
    """A small tied model whose head is stored too: its config, tensors, parameters and head."""
    config = small_models.CONFIGS[name]()
    config.tie_word_embeddings = True
    model = getattr(transformers, config.architectures[0])(config)
    tensors = {key: value.detach().clone() for key, value in model.state_dict().items()}
    total = sum(parameter.numel() for parameter in model.parameters())
    head = "proj_out.weight" if name == "whisper" else "lm_head.weight"
    assert head in tensors
    return model.config.to_dict(), tensors, total, head


@pytest.mark.parametrize("name", ["llama", "gpt2", "whisper", "t5"])
@pytest.mark.slow
def test_a_head_that_is_stored_with_equal_values_is_tied(name: str, tmp_path: Path) -> None:
    """As `from_pretrained` does, here and for other values."""
    keys, tensors, total, head = twice(name)
    assert report(folder(tmp_path, keys, tensors)) == (total, [])
    tensors[head][-1, -1] += 1
    apart, notes = report(folder(tmp_path, keys, tensors))
    load = getattr(transformers, keys["architectures"][0]).from_pretrained
    assert apart == sum(parameter.numel() for parameter in load(tmp_path).parameters())
    assert apart == total + tensors[head].numel()
    assert notes[0].endswith("its checkpoint stores both, with different values")


@pytest.mark.parametrize("is_equal", [True, False])
def test_tensors_in_two_files_are_compared(is_equal: bool, tmp_path: Path) -> None:
    keys, tensors, total, head = twice("llama")
    if not is_equal:
        tensors[head][0, 0] += 1
    save_file({head: tensors.pop(head)}, tmp_path / "b.safetensors")
    save_file(tensors, tmp_path / "a.safetensors")
    files = {head: "b.safetensors"} | dict.fromkeys(tensors, "a.safetensors")
    index = json.dumps({"weight_map": files})
    tmp_path.joinpath("model.safetensors.index.json").write_text(index)
    expected = total if is_equal else total + keys["vocab_size"] * keys["hidden_size"]
    assert report(folder(tmp_path, keys))[0] == expected


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("shard", ["missing.safetensors", "../outside.safetensors", 1])
def test_names_alone_do_not_untie_what_a_config_ties(file: str, shard: Any, tmp_path: Path) -> None:
    keys, tensors, total, head = twice("llama")
    inner = tmp_path / "inner"
    inner.mkdir()
    save_file({head: tensors[head] + 1}, tmp_path / "outside.safetensors")
    index = json.dumps({"weight_map": dict.fromkeys(tensors, shard)})
    inner.joinpath(f"{file}.index.json").write_text(index)
    found, notes = report(folder(inner, keys))
    assert found == total
    assert [VALUES_UNKNOWN in note for note in notes] == [True]


def test_a_torch_index_names_what_is_shared_twice(tmp_path: Path) -> None:
    index = {"weight_map": dict.fromkeys(["shared.weight", "lm_head.weight"], "a.bin")}
    tmp_path.joinpath("pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert UNKNOWN in report(folder(tmp_path, t5_keys()))[1][0]
    says = t5_keys(tie_word_embeddings=False)
    assert UNTIED in report(folder(tmp_path, says))[1][0]


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02" + bytes(7) + b"[]", b"\x01" * 99])
def test_a_damaged_file_is_not_read(content: bytes, tmp_path: Path) -> None:
    tmp_path.joinpath("model.safetensors").write_bytes(content)
    assert UNKNOWN in report(folder(tmp_path, t5_keys()))[1][0]


def mistral3(**given: Any) -> Any:
    text = small_models.CONFIGS["mistral"]().to_dict()
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "head_dim": 16,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "model_type": "pixtral",
    }
    return transformers.Mistral3Config(
        text_config={**text, "tie_word_embeddings": False},
        vision_config=vision,
        architectures=["Mistral3ForConditionalGeneration"],
        **given,
    )


@pytest.mark.parametrize("of", ["object", "file"])
def test_a_silent_config_is_read_by_its_language_model(of: str, tmp_path: Path) -> None:
    config = mistral3()
    keys = config.to_dict()
    del keys["tie_word_embeddings"]
    model = config if of == "object" else folder(tmp_path, keys)
    apart = llmsim.trace(mistral3(tie_word_embeddings=False), context=8).summary.value
    total, notes = report(model)
    assert total == apart["parameters"]
    assert "its text_config says False" in notes[0]


def test_an_explicit_config_is_not_overruled_by_its_language_model(tmp_path: Path) -> None:
    keys = mistral3().to_dict() | {"tie_word_embeddings": True}
    total, notes = report(folder(tmp_path, keys))
    assert notes == []
    assert total < report(mistral3())[0]


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5", "mistral"])
def test_other_objects_are_as_transformers_builds_them(name: str) -> None:
    make: Callable[[], Any] = small_models.CONFIGS[name]
    real = sum(parameter.numel() for parameter in small_models.build(name).parameters())
    assert report(make()) == (real, [])


class AlwaysTied(transformers.GPT2Config):
    """Overwrites the key, as classes do whose checkpoints say False but store one matrix."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.tie_word_embeddings = True


def always_tied() -> tuple[Any, torch.nn.Module]:
    config = AlwaysTied(n_layer=1, n_embd=32, n_head=2, vocab_size=100)
    return config, transformers.GPT2LMHeadModel(config)


def seq2seq(name: str) -> tuple[Any, torch.nn.Module]:
    config_class = getattr(transformers, f"{name}Config")
    config = config_class(**T5, tie_word_embeddings=False, feed_forward_proj="gated-gelu")
    with torch.device("meta"):
        return config, getattr(transformers, f"{name}ForConditionalGeneration")(config)


@pytest.mark.parametrize("keys", [None, {"tie_word_embeddings": False}])
@pytest.mark.parametrize("name", ["a new class", "LongT5", "Udop"])
def test_a_class_that_ties_always_is_believed(name: str, keys: dict[str, Any] | None) -> None:
    config, model = always_tied() if name == "a new class" else seq2seq(name)
    if not config.tie_word_embeddings:
        pytest.skip("this version of transformers does not overwrite the key")
    checkpoint = None if keys is None else Checkpoint(keys, tensors=None, is_checked=False)
    assert separate_head(model, config, checkpoint) == ()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight  # type: ignore[operator]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "published"),
    [("google/flan-t5-base", 247_577_856), ("tiiuae/falcon-7b", 7_217_189_760)],
)
def test_models_of_the_catalogue_have_their_published_head(name: str, published: int) -> None:
    assert report(name)[0] == published


@pytest.mark.slow
def test_mt5_base_has_its_published_number_of_parameters() -> None:
    config = transformers.MT5Config(
        d_model=768,
        d_kv=64,
        d_ff=2048,
        num_layers=12,
        num_heads=12,
        vocab_size=250112,
        tie_word_embeddings=False,
        architectures=["MT5ForConditionalGeneration"],
    )
    assert report(config)[0] == 582_401_280
