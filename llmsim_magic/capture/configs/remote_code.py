"""Load a config with code of the model's own repository, which the user trusts."""

import ast
import copy
import hashlib
import importlib
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmsim_magic.capture.checkpoint.found_config import LOCAL_FILE, FoundConfig
from llmsim_magic.capture.hub.local_cache import cached_content
from llmsim_magic.capture.hub.repository import HubRepository
from llmsim_magic.capture.hub.repository_name import RepositoryName, parse_name
from llmsim_magic.capture.hub.request import HubWait
from llmsim_magic.records.errors import CannotTrace, LlmsimError, describe, shorten

# The classes of an `auto_map` that build a model, in order of preference: an encoder-decoder
# class before a decoder alone.
MODEL_CLASSES = (
    "AutoModelForSeq2SeqLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForImageTextToText",
    "AutoModelForMaskedLM",
    "AutoModelForCausalLM",
    "AutoModel",
)
_REFERENCE = re.compile(r"(?:(?P<repo>[^\s]+)--)?(?P<module>\w+)\.(?P<name>\w+)")
_MAX_MODULES = 64


def config_with_code(found: FoundConfig, config_class: Any, wait: HubWait) -> Any:
    """Run the code that a config's `auto_map` names, and build the config object with it.

    The modules are fetched as a config is, and given to transformers as a folder, so that nothing
    else is fetched.

    Args:
        found: The keys of the config and their location.
        config_class: The class of transformers for its `model_type`, or None.
        wait: How long to wait for the hub.

    Returns:
        The config. Its `auto_map` and `name_or_path` lead to the code as long as it lives.

    Raises:
        CannotTrace: If a module is missing or fails.
        UnknownModel: If the hub does not give a module.
    """
    references = _references(found)
    if config_class is None and "AutoConfig" not in references:
        raise CannotTrace(f"{found.name}: auto_map in its config names no config class")
    root = Path(tempfile.mkdtemp(prefix="llmsim_"))
    try:
        folder, fetched = _with_modules(found, references, root, wait)
        if reference := fetched.pop("AutoConfig", None):
            dynamic = importlib.import_module("transformers.dynamic_module_utils")
            config_class = dynamic.get_class_from_dynamic_module(reference, str(folder))
        config = config_class.from_dict(copy.deepcopy(found.keys))
        config.auto_map = fetched
        config.name_or_path = str(folder)
    except LlmsimError:
        shutil.rmtree(root, ignore_errors=True)
        raise
    except Exception as error:
        shutil.rmtree(root, ignore_errors=True)
        raise CannotTrace(
            f"{found.name}: the code of its repository fails: {describe(error)}"
        ) from error
    weakref.finalize(config, shutil.rmtree, root, ignore_errors=True)
    return config


def code_digest(found: FoundConfig) -> str | None:
    """A digest of the code that a config names; None if some of it is not on this machine.

    Nothing is run, nor asked of the hub.
    """
    digest = hashlib.sha256()
    try:
        for match in _references(found).values():
            files = {f"{match['module']}.py"}
            waiting = [*files]
            while waiting:
                content = _local_content(found, match["repo"], waiting.pop())
                if content is None or len(files) > _MAX_MODULES:
                    return None
                digest.update(len(content).to_bytes(8, "big") + content)
                new = {f"{module}.py" for module in _relative_imports(content)} - files
                files |= new
                waiting += sorted(new)
    except (LlmsimError, SyntaxError, ValueError, OSError):
        return None
    return digest.hexdigest()


def _local_content(found: FoundConfig, repository: str | None, file: str) -> bytes | None:
    """The content of a module in a local folder or the local cache."""
    if repository is None and found.origin == LOCAL_FILE:
        path = Path(found.location) / file
        return path.read_bytes() if path.is_file() else None
    content = cached_content(parse_name(repository or found.location), file)
    return content.read_bytes() if isinstance(content, Path) else content


def _relative_imports(content: bytes) -> Iterator[str]:
    """The modules of its own package that a module imports."""
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield from [node.module] if node.module else (name.name for name in node.names)


def _references(found: FoundConfig) -> "dict[str, re.Match[str]]":
    """The references to the config class and to the model classes: `module.Class`."""
    auto_map = found.keys.get("auto_map")
    references = {}
    for auto in ("AutoConfig", *MODEL_CLASSES):
        value = auto_map.get(auto) if isinstance(auto_map, Mapping) else None
        if value is None:
            continue
        match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise CannotTrace(
                f"{found.name}: {auto} in its auto_map must be a module and a class, as in "
                f"modeling_x.Model, not {shorten(value)}"
            )
        references[auto] = match
    return references


def _with_modules(
    found: FoundConfig, references: "Mapping[str, re.Match[str]]", root: Path, wait: HubWait
) -> tuple[Path, dict[str, str]]:
    """Fetch the modules below a folder.

    Returns:
        The folder of the model's own code, and the references; code of another repository is
        referred to by its folder.
    """
    own = None if found.origin == LOCAL_FILE else parse_name(found.location)
    own_folder = Path(found.location) if own is None else root / _folder_name(own)
    fetched: dict[str, str] = {}
    for auto, match in references.items():
        name = parse_name(match["repo"]) if match["repo"] else None
        if name is None or (own is not None and name.repo == own.repo):
            name, folder, prefix = own, own_folder, ""
        else:
            folder = root / _folder_name(name)
            prefix = f"{folder}--"
        if name is not None:
            _fetch_modules(name, f"{match['module']}.py", folder, wait)
        fetched[auto] = f"{prefix}{match['module']}.{match['name']}"
    return own_folder, fetched


def _fetch_modules(name: RepositoryName, file: str, folder: Path, wait: HubWait) -> None:
    """Copy a module, and those that it imports from its package, from the hub into a folder."""
    dynamic = importlib.import_module("transformers.dynamic_module_utils")
    repository = HubRepository(name, wait)
    folder.mkdir(parents=True, exist_ok=True)
    waiting = [file]
    while waiting:
        file = waiting.pop()
        if (folder / file).exists():
            continue
        if len(list(folder.iterdir())) >= _MAX_MODULES:
            raise CannotTrace(f"{name}: its code has over {_MAX_MODULES} modules")
        content = repository.read(file)
        if content is None:
            raise CannotTrace(f"{name}: its repository has no {file}, which its code needs")
        (folder / file).write_bytes(content)
        imported = dynamic.get_relative_imports(folder / file)
        waiting += [f"{module}.py" for module in imported if re.fullmatch(r"\w+", module)]


def _folder_name(name: RepositoryName) -> str:
    return re.sub(r"\W", "_", str(name))
