"""Read the files of a model's repository: from the local cache, from the hub, or in a folder."""

import importlib
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from llmsim_magic.capture.hub import local_cache
from llmsim_magic.capture.hub.config_file import (
    decode_config,
    parse_config,
    parse_json,
    read_content,
)
from llmsim_magic.capture.hub.failures import (
    FileMissing,
    missing_or_private,
    offline,
    raise_for_status,
    unreachable,
)
from llmsim_magic.capture.hub.repository_name import RepositoryName
from llmsim_magic.capture.hub.request import Answer, HubWait, get
from llmsim_magic.capture.hub.settings import import_hub
from llmsim_magic.records.errors import Cancelled


class Repository(Protocol):
    """The files of a model, wherever they are."""

    @property
    def label(self) -> str:
        """The name of the repository, for messages."""

    @property
    def location(self) -> str:
        """The folder or the hub id that finds it again."""

    @property
    def origin(self) -> str:
        """Where the files come from, for the report."""

    def read(self, file: str, *, recheck: bool = False) -> bytes | None:
        """The content of a small file; None if there is no such file."""

    def is_cached(self, file: str) -> bool:
        """Whether a file can be read without the hub."""

    def subfolder(self, folder: str) -> "Repository":
        """The files in a folder inside it."""

    def about(self) -> "About":
        """The names of its files, and what it says about itself."""

    def check_exists(self) -> None:
        """Raise `UnknownModel` if nothing shows that the repository exists."""


@dataclass(frozen=True, slots=True)
class About:
    """What a repository says about itself: the names of its files, and its base models."""

    files: tuple[str, ...] = ()
    base_models: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing."""
        return not self.files and not self.base_models


def read_config(
    repository: Repository, file: str, *, recheck: bool = False
) -> dict[str, Any] | None:
    """The keys of a config file; None if there is no such file.

    Raises:
        UnknownModel: If the file cannot be read or is not a JSON object.
    """
    content = repository.read(file, recheck=recheck)
    if content is None:
        return None
    return parse_config(decode_config(content, file, repository.label), repository.label, file)


@dataclass(slots=True)
class HubRepository:
    """A repository of the hub, whose files are read from the local cache first.

    Attributes:
        name: The repository, its revision and the folder in it.
        wait: How long to wait for the hub.
        refresh: Ask the hub even if the local cache has the file.
        origin: `hub`, or `local cache` if no file had to be fetched.
    """

    name: RepositoryName
    wait: HubWait = field(default_factory=HubWait)
    refresh: bool = False
    origin: str = "local cache"
    _missing_status: int | None = None  # an answer 404 without a reason
    _sent_token: bool = False

    @property
    def label(self) -> str:
        return str(self.name)

    @property
    def location(self) -> str:
        return str(self.name)

    def read(self, file: str, *, recheck: bool = False) -> bytes | None:
        """The content of a file, from the local cache or with one GET; None if there is none.

        Args:
            file: Its path in the folder of `name`.
            recheck: Ask the hub also if the cache knows that there was no such file.

        Raises:
            UnknownModel: The file is in no cache, and the hub does not give it; says why.
            Cancelled: Cancelled while waiting for the hub.
        """
        if not self.refresh:
            cached = local_cache.cached_content(self.name, file)
            if cached is not None:
                return read_content(cached, self.label) if isinstance(cached, Path) else cached
            if not recheck and local_cache.is_known_missing(self.name, file):
                return None
        answer = self._ask(self.name.path(file))
        try:
            raise_for_status(self.name, answer)
        except FileMissing as missing:
            if missing.is_certain:
                local_cache.keep(self.name, file, None, answer.headers)
            else:
                self._missing_status, self._sent_token = answer.status, answer.sent_token
            return None
        self.origin = "hub"
        if file.endswith(".json"):  # a login page of the network is not kept
            parse_json(decode_config(answer.content, file, self.label), self.label, file)
        local_cache.keep(self.name, file, answer.content, answer.headers)
        return answer.content

    def is_cached(self, file: str) -> bool:
        """Whether the local cache has a file."""
        return local_cache.cached_content(self.name, file) is not None

    def subfolder(self, folder: str) -> "HubRepository":
        return replace(self, name=replace(self.name, folder=self.name.path(folder)))

    def about(self) -> About:
        """The hub's own description of the repository, or else that in its README."""
        address = f"api/models/{self.name.repo}/revision/{quote(self.name.revision, safe='')}"
        answer = self._get(address)
        if answer.status != 200:
            return About(base_models=self._base_models_of_readme())
        keys = parse_config(
            decode_config(answer.content, "its description", self.label), self.label
        )
        siblings = keys.get("siblings")
        files = [
            each["rfilename"]
            for each in (siblings if isinstance(siblings, list) else [])
            if isinstance(each, dict) and isinstance(each.get("rfilename"), str)
        ]
        card = keys.get("cardData")
        base = card.get("base_model") if isinstance(card, dict) else None
        return About(tuple(files), _texts(base) or self._base_models_of_readme())

    def check_exists(self) -> None:
        """Raise `UnknownModel` if the hub did not say that the repository exists."""
        if self._missing_status is not None:
            raise missing_or_private(self.name, self._missing_status, has_token=self._sent_token)

    def _base_models_of_readme(self) -> tuple[str, ...]:
        content = self.read("README.md")
        return () if content is None else base_models_of_card(content)

    def _ask(self, path: str) -> Answer:
        hub = importlib.import_module("huggingface_hub")
        url = hub.hf_hub_url(self.name.repo, path, revision=self.name.revision)
        return self._request(url)

    def _get(self, path: str) -> Answer:
        constants = importlib.import_module("huggingface_hub.constants")
        return self._request(f"{constants.ENDPOINT}/{path}")

    def _request(self, url: str) -> Answer:
        """GET an address of the hub; every failure is one line."""
        import_hub()
        constants = importlib.import_module("huggingface_hub.constants")
        if constants.HF_HUB_OFFLINE:
            raise offline(self.name, refresh=self.refresh)
        try:
            return get(url, self.wait)
        except Cancelled:
            raise
        except Exception as error:
            raise unreachable(
                self.name, error, self.wait.timeout_s, refresh=self.refresh
            ) from error


@dataclass(frozen=True, slots=True)
class FolderRepository:
    """A folder of this machine."""

    folder: Path
    label: str
    origin: str = "local file"

    @property
    def location(self) -> str:
        return str(self.folder)

    def read(self, file: str, *, recheck: bool = False) -> bytes | None:
        """The content of a small file; None if there is no such file.

        Raises:
            UnknownModel: It cannot be read, or is too large.
        """
        path = self.folder / file
        return read_content(path, self.label) if self.is_cached(file) else None

    def is_cached(self, file: str) -> bool:
        """Whether there is such a file."""
        return os.path.isfile(self.folder / file)

    def subfolder(self, folder: str) -> "FolderRepository":
        return replace(self, folder=self.folder / folder)

    def about(self) -> About:
        try:
            files = tuple(sorted(os.listdir(self.folder)))
        except OSError:
            files = ()
        card = self.read("README.md")
        return About(files, () if card is None else base_models_of_card(card))

    def check_exists(self) -> None:
        """A folder exists."""


def base_models_of_card(content: bytes) -> tuple[str, ...]:
    """The base models that the YAML header of a model card names."""
    hub = importlib.import_module("huggingface_hub")
    text = content.decode("utf-8", "replace")
    try:
        with _silenced("huggingface_hub.repocard", "huggingface_hub.repocard_data"):
            data = hub.ModelCard(text, ignore_metadata_errors=True).data
    except Exception:  # YAML of any kind
        return ()
    return _texts(data.get("base_model"))


@contextmanager
def _silenced(*names: str) -> Iterator[None]:
    """Drop what this thread logs by these loggers: a card without metadata is no fault here."""
    own = threading.get_ident()

    def is_of_another_thread(record: logging.LogRecord) -> bool:
        return record.thread != own

    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(is_of_another_thread)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_of_another_thread)


def _texts(value: Any) -> tuple[str, ...]:
    """A string, or the strings of a list; none for anything else."""
    values = value if isinstance(value, list) else [value]
    return tuple(each for each in values if isinstance(each, str) and each)
