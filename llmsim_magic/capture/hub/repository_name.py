"""Parse the name of a repository of the hub: an id, `id@revision`, or an address pasted from it."""

import importlib
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, unquote, urlsplit

from llmsim_magic.capture.hub.suggest_names import unknown_model
from llmsim_magic.records.errors import UnknownModel, shorten

DEFAULT_REVISION = "main"
_NOT_AN_ID = "is not a hub id (owner/name), a folder or a file"
_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co", "www.hf.co"})
# The first part of an address that names something other than a model.
_OTHER_KINDS = {"datasets": "a dataset", "spaces": "a space", "collections": "a collection"}
_OTHER_KINDS |= {"papers": "a paper", "docs": "documentation", "blog": "a blog post"}
# Pages of a repository whose address continues with a revision, and others.
_FILE_PAGES = frozenset({"blob", "resolve", "raw", "blame", "edit"})
_REVISION_PAGES = _FILE_PAGES | {"tree", "commit", "commits"}
_PAGES = _REVISION_PAGES | {"discussions", "settings"}
_REVISION = re.compile(r"[\w+-][\w.+-]*(/[\w+-][\w.+-]*)*")
_FOLDER = re.compile(r"[^\W.][^/\\\0]*(/[^\W.][^/\\\0]*)*")


@dataclass(frozen=True, slots=True)
class RepositoryName:
    """A model repository of the hub at a revision, or a folder inside it."""

    repo: str
    revision: str = DEFAULT_REVISION
    folder: str = ""

    def __str__(self) -> str:
        if self.is_default and not self.folder:
            return self.repo
        slash = "/" if self.revision.startswith("refs/") else ""  # else a folder would follow
        revision = quote(self.revision, safe=slash)
        return f"{self.repo}@{revision}" + (f"/{self.folder}" if self.folder else "")

    @property
    def is_default(self) -> bool:
        """Whether it is the default branch."""
        return self.revision == DEFAULT_REVISION

    def path(self, file: str) -> str:
        """The path of a file inside the repository."""
        return f"{self.folder}/{file}" if self.folder else file


def is_address(text: str) -> bool:
    """Whether a name is a URL, or starts with the hub's host."""
    return "://" in text or text.partition("/")[0].lower() in _HOSTS


def parse_name(text: str) -> RepositoryName:
    """Parse `owner/name`, `owner/name@revision`, `owner/name@revision/folder` or an address.

    Raises:
        UnknownModel: If the text is none of these, or names a dataset or another site.
    """
    name = _of_address(text) if is_address(text) else _of_id(text)
    hub = importlib.import_module("huggingface_hub.utils")
    try:
        hub.validate_repo_id(name.repo)
    except ValueError as error:
        raise unknown_model(text, _NOT_AN_ID) from error
    if not _REVISION.fullmatch(name.revision) or ".." in name.revision:
        raise UnknownModel(
            f"{shorten(text)}: {shorten(name.revision)} is no revision; it must be a branch, a tag "
            "or a commit, as in owner/name@main"
        )
    if name.folder and not _FOLDER.fullmatch(name.folder):
        raise unknown_model(text, _NOT_AN_ID)
    return name


def _of_id(text: str) -> RepositoryName:
    repo, at, rest = text.partition("@")
    if not at:
        return RepositoryName(repo)
    revision, folder = _split_revision([unquote(part) for part in rest.rstrip("/").split("/")])
    return RepositoryName(repo, revision, folder)


def _of_address(text: str) -> RepositoryName:
    """The repository in an address; only its path counts, the endpoint is the user's own."""
    scheme, _, rest = text.partition("://")
    if scheme.lower() == "hf":
        return _of_id(rest.removeprefix("models/").rstrip("/"))
    parts = [unquote(part) for part in _path(text).split("/") if part]
    if parts[:1] in (["api"], ["models"]):
        parts = parts[1 + (parts[:2] == ["api", "models"]) :]
    if parts and parts[0] in _OTHER_KINDS:
        kind = _OTHER_KINDS[parts[0]]
        raise UnknownModel(f"{shorten(text)} is {kind} on the hub, not a model")
    if not parts:
        raise unknown_model(text, "names no model of the hub")
    length = 1 if len(parts) > 1 and parts[1] in _PAGES else 2
    repo = "/".join(parts[:length]).removesuffix(".git")
    page, rest_parts = parts[length : length + 1], parts[length + 1 :]
    if not rest_parts or page[0] not in _REVISION_PAGES:
        return RepositoryName(repo)
    revision, folder = _split_revision(rest_parts)
    if page[0] in _FILE_PAGES:
        folder = folder.rpartition("/")[0]
    return RepositoryName(repo, revision, folder)


def _path(text: str) -> str:
    """The path of an address of the hub, or of the endpoint that the user has configured.

    Raises:
        UnknownModel: If the address is of another site.
    """
    endpoint = importlib.import_module("huggingface_hub.constants").ENDPOINT
    address = text if "://" in text else f"https://{text}"
    try:
        parsed, own = urlsplit(address), urlsplit(endpoint)
        is_web = parsed.scheme in ("http", "https")
        if is_web and _host(parsed) in _HOSTS:
            return parsed.path
        if is_web and parsed.netloc.lower() == own.netloc.lower():
            return parsed.path.removeprefix(own.path)
    except ValueError:  # an address that no parser reads, such as http://[
        pass
    raise UnknownModel(
        f"{shorten(text)} is not an address of the hub ({endpoint}); name a model as owner/name"
    )


def _host(address: SplitResult) -> str:
    return (address.hostname or "").lower()


def _split_revision(parts: list[str]) -> tuple[str, str]:
    """The revision and the folder; the hub's own references have three parts: `refs/pr/1`."""
    length = 3 if parts[0] == "refs" else 1
    return "/".join(parts[:length]), "/".join(parts[length:])
