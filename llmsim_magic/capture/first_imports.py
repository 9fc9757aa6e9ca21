"""What the first trace of a process imports, whichever model it is of."""

import ctypes
import importlib.util
import os
from pathlib import Path

# Of torch and transformers, which need not import them then: whoever needs these waits less.
DEPENDENCIES = ("numpy", "jinja2", "sympy", "huggingface_hub", "huggingface_hub.hf_api")
# In the order in which a modelling file of transformers imports them.
MODULES = (
    "torch",
    "transformers",
    "transformers.modeling_utils",
    "transformers.masking_utils",
    "transformers.modeling_layers",
    "transformers.models.auto.modeling_auto",
    "llmsim_magic.capture.configs.resolve",
    "llmsim_magic.capture.models.live_model_copy",
    "llmsim_magic.capture.models.meta_model",
    "llmsim_magic.capture.parallel.sharding",
    "llmsim_magic.capture.run",
)
# As `import torch` loads them, before its own module of C++.
_LIBRARIES = (("libtorch_global_deps.so", "RTLD_GLOBAL"), ("libtorch.so", "RTLD_LOCAL"))


def load_libraries() -> None:
    """Load torch's shared libraries, as its import does, without stopping other threads.

    Python loads an extension module under its global lock, torch's for a third of a second. These
    libraries know nothing of Python. Where one cannot be loaded so, the import does it.
    """
    spec = importlib.util.find_spec("torch")
    places = spec.submodule_search_locations if spec is not None else None
    if not places or not hasattr(os, "RTLD_GLOBAL"):
        return
    load = ctypes.CDLL(None).dlopen  # unlike ctypes' own loading, a call releases the lock
    load.argtypes, load.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
    for name, scope in _LIBRARIES:
        file = Path(places[0]) / "lib" / name
        if not file.is_file() or not load(os.fsencode(file), os.RTLD_NOW | getattr(os, scope)):
            return
