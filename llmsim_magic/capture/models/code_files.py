"""The files of transformers whose code builds and runs a model."""

import sys

import torch

_ROOT, _MODELS = "transformers.", "transformers.models."
_EVERY_MODEL = (f"{_MODELS}auto.",)


def code_files(model: torch.nn.Module | None) -> tuple[str, ...]:
    """The loaded modules of transformers that a model depends on, as paths of files.

    They are those of the model's classes, and all that are not of one architecture alone.

    Args:
        model: the model; None for the modules of every architecture that is loaded.
    """
    own = _EVERY_MODEL if model is None else (*_EVERY_MODEL, *_architectures(model))
    found = []
    for name, module in sys.modules.copy().items():
        is_of_architecture = name.startswith(_MODELS)
        if not name.startswith(_ROOT) or (
            model is not None and is_of_architecture and not f"{name}.".startswith(own)
        ):
            continue
        file = getattr(module, "__file__", None)
        if isinstance(file, str):
            found.append(file)
    return tuple(sorted(found))


def _architectures(model: torch.nn.Module) -> tuple[str, ...]:
    """The packages of transformers that define the classes of a model, such as `….llama.`."""
    classes = {base for module in model.modules() for base in type(module).__mro__}
    names = {cls.__module__ for cls in classes if cls.__module__.startswith(_MODELS)}
    return tuple({".".join(name.split(".")[:3]) + "." for name in names})
