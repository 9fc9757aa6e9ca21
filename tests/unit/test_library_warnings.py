"""What a training step of ours keeps from being shown, and what is heard as before."""

import logging
import warnings
from typing import Any

import pytest
import torch
from torch.nn import Linear, Module
from transformers.utils import logging as transformers_logging

import llmsim_magic as llmsim
from llmsim_magic.capture.train.library_warnings import without_library_warnings
from tests.helpers import small_models

LIBRARY = transformers_logging.get_logger("transformers.of_a_test")
OWN = logging.getLogger("own_code_of_a_test")


class Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the process's handlers receive, each message once wherever the test runs.

    ``transformers`` passes its messages on to them only where ``CI`` is set."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    handler = Heard()
    logging.root.addHandler(handler)
    yield handler.messages
    logging.root.removeHandler(handler)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
@pytest.mark.parametrize("options", [{}, {"checkpointing": True}])
def test_transformers_says_nothing_about_a_step(
    name: str, options: dict[str, Any], heard: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    transformers_logging.warning_once.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llmsim.trace(
            small_models.CONFIGS[name](), phase="train", context=4, hardware="H100", **options
        )
    assert heard == []
    assert capfd.readouterr().err == ""


class Loud(Module):
    """A module whose own code warns, and which calls code of transformers that does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        OWN.warning("logged by the module")
        LIBRARY.warning("logged by transformers")
        warnings.warn("warned of by the module", stacklevel=1)
        return self.layer(x).sum()


def test_code_of_a_live_module_is_heard(heard: list[str]) -> None:
    with pytest.warns(UserWarning, match="warned of by the module"):
        llmsim.trace(Loud(), inputs=torch.zeros(2, 4), phase="train")
    assert "logged by the module" in heard
    assert "logged by transformers" not in heard


def test_what_is_said_once_is_said_when_the_user_causes_it(heard: list[str]) -> None:
    with without_library_warnings():
        LIBRARY.warning_once("once in a process")
    assert heard == []
    LIBRARY.warning_once("once in a process")
    assert heard == ["once in a process"]


def test_packages_of_similar_names_are_heard(heard: list[str]) -> None:
    with without_library_warnings():
        logging.getLogger("transformers_modules.of_a_test").warning("of a repository")
    assert heard == ["of a repository"]
