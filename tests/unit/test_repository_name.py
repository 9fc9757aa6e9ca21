"""A repository's name is understood as it is written, pinned to a revision, or pasted."""

import pytest

from llmsim_magic.capture.hub.repository_name import RepositoryName, is_address, parse_name
from llmsim_magic.records.errors import UnknownModel

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "repo", "revision", "folder"),
    [
        ("gpt2", "gpt2", "main", ""),
        ("owner/name", "owner/name", "main", ""),
        ("owner/name@v1.0", "owner/name", "v1.0", ""),
        (f"owner/name@{COMMIT}", "owner/name", COMMIT, ""),
        ("gpt2@refs/pr/3", "gpt2", "refs/pr/3", ""),
        ("owner/name@feature%2Fx", "owner/name", "feature/x", ""),
        ("owner/name@main/text_encoder", "owner/name", "main", "text_encoder"),
        ("hf://owner/name", "owner/name", "main", ""),
        ("hf://models/owner/name@v1/part", "owner/name", "v1", "part"),
        ("https://huggingface.co/gpt2", "gpt2", "main", ""),
        ("https://huggingface.co/owner/name/", "owner/name", "main", ""),
        ("http://hf.co/owner/name", "owner/name", "main", ""),
        ("huggingface.co/owner/name", "owner/name", "main", ""),
        ("https://HuggingFace.co/owner/name?library=transformers#usage", "owner/name", "main", ""),
        ("https://huggingface.co/owner/name.git", "owner/name", "main", ""),
        ("https://huggingface.co/owner/name/tree/v2", "owner/name", "v2", ""),
        ("https://huggingface.co/gpt2/tree/v2/onnx", "gpt2", "v2", "onnx"),
        ("https://huggingface.co/owner/name/blob/main/config.json", "owner/name", "main", ""),
        ("https://huggingface.co/o/n/resolve/v2/a/b/config.json?download=true", "o/n", "v2", "a/b"),
        ("https://huggingface.co/owner/name/tree/refs%2Fpr%2F1", "owner/name", "refs/pr/1", ""),
        (f"https://huggingface.co/owner/name/commit/{COMMIT}", "owner/name", COMMIT, ""),
        ("https://huggingface.co/owner/name/discussions/5", "owner/name", "main", ""),
        ("https://huggingface.co/api/models/owner/name", "owner/name", "main", ""),
    ],
)
def test_a_name_says_the_repository_the_revision_and_the_folder(
    text: str, repo: str, revision: str, folder: str
) -> None:
    name = parse_name(text)
    assert name == RepositoryName(repo, revision, folder)
    assert parse_name(str(name)) == name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("https://example.com/owner/name", "not an address of the hub"),
        ("https://huggingface.co.example.com/owner/name", "not an address of the hub"),
        ("ftp://huggingface.co/owner/name", "not an address of the hub"),
        ("http://[", "not an address of the hub"),
        ("https://huggingface.co/datasets/owner/name", "a dataset on the hub, not a model"),
        ("https://huggingface.co/spaces/owner/name", "a space on the hub, not a model"),
        ("https://huggingface.co/", "names no model"),
        ("a/b/c", "is not a hub id"),
        ("a b", "is not a hub id"),
        ("owner/name@", "is no revision"),
        ("owner/name@../../etc", "is no revision"),
        ("owner/name@a b", "is no revision"),
        ("owner/name@main/../x", "is not a hub id"),
        ("owner/name@refs%2F..%2F..%2Fx", "is no revision"),
    ],
)
def test_what_names_no_model_of_the_hub_is_refused(text: str, said: str) -> None:
    with pytest.raises(UnknownModel, match=said):
        parse_name(text)


@pytest.mark.parametrize("text", ["owner/name", "gpt2@main", "a/b/c", "./x", "/x", "~", "x.json"])
def test_an_id_or_a_path_is_no_address(text: str) -> None:
    assert not is_address(text)
