"""Which model the words in the panel stand for, and how it is come by: once for all questions."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmsim_magic.capture.models.hub import cached_models
from llmsim_magic.catalog import models
from llmsim_magic.notebook.variables import holding_models, model_named
from llmsim_magic.records.errors import type_name
from llmsim_magic.simulate.models.recipes import ModelRecipe, Progress, model_recipe
from llmsim_magic.simulate.request import Build, Request


@dataclass(frozen=True, eq=False)
class PanelQuestion:
    """A request, and the model that its words stood for when it was made."""

    request: Request
    model: Any

    @property
    def key(self) -> tuple[Hashable, Request]:
        """Equal for what has the same answer."""
        return self.which, replace(self.request, model=None)

    @property
    def which(self) -> Hashable:
        """Equal for the same model."""
        return self.model if isinstance(self.model, str) else id(self.model)

    @property
    def is_variable(self) -> bool:
        return self.model is not self.request.model


class PanelModels:
    """The models that can be named: the user's variables, the catalogue, the local cache."""

    def __init__(self, variables: Mapping[str, Any]) -> None:
        self._variables = variables
        self._objects: dict[str, Any] = {}  # given as they are, by what they are called
        self._recipes: dict[tuple[Hashable, Build], tuple[Any, ModelRecipe]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        known = (*holding_models(self._variables), *models.entries(), *cached_models())
        return tuple(dict.fromkeys(known))

    def called(self, model: Any) -> str:
        """The variable that holds a model, or what else it goes by."""
        holders = (name for name, value in self._variables.items() if value is model)
        name = next((name for name in holders if not name.startswith("_")), None)
        if name is None:
            name = type_name(model)
            self._objects[name] = model
        return name

    def asked(self, request: Request) -> PanelQuestion:
        """The request with its model; `InvalidValue` for a variable that holds something else."""
        words = request.model
        if words in self._objects:
            return PanelQuestion(request, self._objects[words])
        return PanelQuestion(request, model_named(words, self._variables))

    def recipe(self, asked: PanelQuestion, progress: Progress) -> ModelRecipe:
        """Of a live model the same one for each question: it is copied once."""
        key = asked.which, asked.request.build
        if key not in self._recipes:
            recipe = model_recipe(asked.model, asked.request.build, progress)
            self._recipes[key] = asked.model, recipe
        return self._recipes[key][1]

    def forget(self, asked: PanelQuestion) -> None:
        """Look at a model anew: it may have changed."""
        for key in [key for key in self._recipes if key[0] == asked.which]:
            del self._recipes[key]
