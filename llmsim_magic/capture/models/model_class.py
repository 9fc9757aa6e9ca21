"""Choose the class of transformers that a config's model is built with."""

import importlib
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from llmsim_magic.capture.configs.remote_code import MODEL_CLASSES
from llmsim_magic.capture.configs.resolve import declared_classes
from llmsim_magic.capture.inputs.trial import can_run
from llmsim_magic.records.errors import CannotTrace, describe, shorten

# The last two list vision towers, and models of several parts, that no other class lists.
_AUTO_CLASSES = (*MODEL_CLASSES, "AutoBackbone", "AutoModelForMultimodalLM")
_TASK = re.compile("For[A-Z].*")  # `ForCausalLM`, and not the `Former` of a name
_LANGUAGE_MODEL = re.compile(
    "LM(?![a-z])|LanguageModel|(Conditional|Text|For)Generation|Pre[Tt]raining|Seq2Seq|(To|2)Text"
)
_SCORES = re.compile("[Cc]lassif|[Rr]eward|[Rr]erank|Rank|Regression")
_OF_A_WHOLE_INPUT = (
    "AutoModelForSequenceClassification",
    "AutoModelForImageClassification",
    "AutoModelForVideoClassification",
    "AutoModelForAudioClassification",
)
_WITH_HEAD = tuple(name for name in MODEL_CLASSES if name != "AutoModel")


@dataclass(frozen=True, slots=True)
class Constructor:
    """What builds a model from its config and options.

    `instead_of` describes the declared class that transformers does not have; empty if it has it.
    """

    build: Callable[..., Any]
    instead_of: str = ""


def model_constructor(config: Any, name: str, *, base: bool, has_remote_code: bool) -> Constructor:
    """Choose what builds a model: its declared class, or the one that transformers has for it.

    Args:
        config: The config; its `auto_map` is present only if its code is trusted.
        name: The model's name, for error messages.
        base: Choose the class without a head.
        has_remote_code: Whether the model's repository has code of its own.

    Returns:
        The constructor.

    Raises:
        CannotTrace: If transformers has no class for the config, or cannot load it; the message
            says what to do.
    """
    try:
        return _chosen(config, name, base=base, has_remote_code=has_remote_code)
    except CannotTrace:
        raise
    except Exception as error:  # of the module of transformers that is imported
        raise CannotTrace(
            f"{name}: transformers cannot load its class: {describe(error)}"
        ) from error


def _chosen(config: Any, name: str, *, base: bool, has_remote_code: bool) -> Constructor:
    transformers = importlib.import_module("transformers")
    declared = declared_classes(getattr(config, "architectures", None))
    if base:
        return Constructor(_headless(config) or _refuse_part(config, name))
    for class_name in declared:
        model_class = getattr(transformers, class_name, None)
        if model_class is not None and hasattr(model_class, "_from_config"):
            return Constructor(model_class._from_config)
    if (remote := _remote(config, _AUTO_CLASSES)) is not None:
        return Constructor(remote)
    if not declared:
        unlisted = (found._from_config for found in _unlisted_classes(type(config)))
        found = _first_auto(config, _AUTO_CLASSES) or next(unlisted, None)
        return Constructor(found or _refuse_part(config, name))
    unknown = f"{shorten(', '.join(declared))}, which transformers {transformers.__version__} lacks"
    runs_code = "--trust-remote-code runs the code of its repository"
    note = f"{unknown}; {runs_code}" if has_remote_code else unknown
    if (found := next(filter(None, map(partial(_successor, config), declared)), None)) is not None:
        return Constructor(found, note)
    if not any(map(_is_language_model, declared)) and (found := _headless(config)) is not None:
        has_head = any(_TASK.search(name) or "Head" in name for name in declared)
        return Constructor(found, f"{note}; its head is not counted" if has_head else note)
    remedies = [runs_code] if has_remote_code else []
    if _headless(config) is not None:
        remedies.append("--base builds the model without that head, for inference")
    raise CannotTrace(
        f"{name}: its config declares {unknown}; "
        f"{', '.join(remedies) or 'a newer transformers may have it'}"
    )


def check_has_forward(module: Any, name: str) -> None:
    """Refuse a model without a forward, whose parts generate one after the other.

    Args:
        module: The model as built.
        name: Its name, for the error message.

    Raises:
        CannotTrace: If it has no forward; the message names the parts that can be traced.
    """
    if type(module).forward is not torch.nn.Module.forward:
        return
    parts = [
        f"trace(config.{key})"
        for child in module.children()
        for key, value in vars(module.config).items()
        if type(value) is type(getattr(child, "config", None)) and can_run(child, most=4)
    ]
    advice = f"; trace one of them in Python: {', '.join(dict.fromkeys(parts))}" if parts else ""
    raise CannotTrace(
        f"{name}: {type(module).__name__} has no forward, because its parts run one after the "
        f"other{advice}"
    )


def _refuse_part(config: Any, name: str) -> Callable[..., Any]:
    version = importlib.import_module("transformers").__version__
    raise CannotTrace(
        f"{name}: transformers {version} has no model class for {shorten(type(config).__name__)}, "
        "which describes a part of a larger model; trace the larger model instead"
    )


def _headless(config: Any) -> Callable[..., Any] | None:
    """The constructor of the model without a head; None where transformers has none."""
    if (remote := _remote(config, ("AutoModel",))) is not None:
        return remote
    unlisted = (
        found._from_config
        for found in _unlisted_classes(type(config))
        if found.__name__.endswith("Model")
    )
    return _first_auto(config, ("AutoModel",)) or next(unlisted, None)


def _remote(config: Any, names: tuple[str, ...]) -> Callable[..., Any] | None:
    """The constructor of the first of these auto classes that the repository's own code has.

    An auto class would register what it loads for the whole process, and build the registered
    class where the code has changed since.
    """
    references = getattr(config, "auto_map", None) or {}
    for name in names:
        if name in references:
            dynamic = importlib.import_module("transformers.dynamic_module_utils")
            factory = importlib.import_module("transformers.models.auto.auto_factory")
            found = dynamic.get_class_from_dynamic_module(references[name], config.name_or_path)
            model_class = factory.add_generation_mixin_to_remote_model(found)
            constructor: Callable[..., Any] = model_class._from_config
            return constructor
    return None


def _successor(config: Any, declared: str) -> Callable[..., Any] | None:
    """The constructor of the class with a head that replaces a declared one, or None.

    Its name differs only in case and underscores, or else it has the same task. Only a language
    model is replaced by the one that transformers prefers.
    """
    for found in package_classes(type(config)):
        if _simplified(found.__name__) == _simplified(declared):
            return found._from_config
    if not _is_language_model(declared):
        return _first_auto(config, _auto_classes_of_task(declared))
    return _first_auto(config, (f"AutoModel{_task(declared)}", *_WITH_HEAD))


def _task(class_name: str) -> str:
    """The part of a name that tells the task, such as `ForCausalLM`; the whole name without one."""
    found = _TASK.search(class_name)
    return class_name if found is None else found[0]


def _is_language_model(class_name: str) -> bool:
    task = _task(class_name)
    return "LMHead" in task or (task.startswith("For") and bool(_LANGUAGE_MODEL.search(task)))


def _auto_classes_of_task(declared: str) -> tuple[str, ...]:
    """The auto classes of the tasks that a class name contains, the longest name first.

    A class that scores its whole input, such as a reward model, is one of classification.
    """
    task = _task(declared)
    prefix = "AutoModelFor"
    names = [
        name
        for name in dir(importlib.import_module("transformers"))
        if name.startswith(prefix) and not _is_language_model(name)
    ]
    named = [name for name in names if name.removeprefix(prefix) in task]
    whole = _OF_A_WHOLE_INPUT if _SCORES.search(task) else ()
    return (*sorted(named, key=len, reverse=True), *whole)


def _simplified(class_name: str) -> str:
    return class_name.replace("_", "").lower()


def _first_auto(config: Any, names: tuple[str, ...]) -> Callable[..., Any] | None:
    """The constructor of the first of these auto classes that lists the config."""
    transformers = importlib.import_module("transformers")
    for name in names:
        auto = getattr(transformers, name, None)
        if auto is not None and type(config) in auto._model_mapping:
            return auto.from_config
    return None


def _unlisted_classes(config_class: type[Any]) -> list[Any]:
    """Model classes of a config that no auto class lists, such as a tower of a larger model.

    A model comes first, then models for a task, then their parts.
    """
    return sorted(
        package_classes(config_class),
        key=lambda found: (not found.__name__.endswith("Model"), "For" not in found.__name__),
    )


def package_classes(config_class: type[Any]) -> list[Any]:
    """Model classes of a config in the `modeling_*.py` files of its package."""
    package = importlib.import_module(config_class.__module__.rpartition(".")[0])
    found = []
    for file in pkgutil.iter_modules(getattr(package, "__path__", ())):
        if not file.name.startswith("modeling_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{file.name}")
        found += [
            value
            for value in vars(module).values()
            if isinstance(value, type)
            and issubclass(value, torch.nn.Module)
            and value.__module__ == module.__name__
            and getattr(value, "config_class", None) is config_class
            and value.forward is not torch.nn.Module.forward
        ]
    return found
