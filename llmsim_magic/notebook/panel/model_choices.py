"""The models that the panel offers, and the model that its text field names."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmsim_magic.capture.hub.local_cache import cached_models
from llmsim_magic.catalog import models
from llmsim_magic.notebook.variables import find_model, model_variables
from llmsim_magic.records.errors import type_name
from llmsim_magic.records.trace.workload import IsCancelled
from llmsim_magic.simulate.models.frameworks import code_state
from llmsim_magic.simulate.models.recipes import ModelRecipe, Progress, model_recipe
from llmsim_magic.simulate.request import Build, Request


@dataclass(frozen=True, eq=False)
class PanelQuestion:
    """A request, and the model that its text named when it was made."""

    request: Request
    model: Any

    @property
    def key(self) -> tuple[Hashable, Request]:
        """Equal for questions with the same report."""
        return self.model_key, replace(self.request, model=None)

    @property
    def model_key(self) -> Hashable:
        """Equal for the same model."""
        return self.model if isinstance(self.model, str) else id(self.model)

    @property
    def is_variable(self) -> bool:
        """Whether the text names a variable of the user."""
        return self.model is not self.request.model


class ModelChoices:
    """Models that the panel offers: the user's variables, the catalogue, the local hub cache."""

    def __init__(self, variables: Mapping[str, Any]) -> None:
        self._variables = variables
        self._objects: dict[str, Any] = {}  # models without a variable, by class name
        self._recipes: dict[tuple[Hashable, Build], tuple[Any, ModelRecipe]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names that complete the text field."""
        known = (*model_variables(self._variables), *models.entries(), *cached_models())
        return tuple(dict.fromkeys(known))

    def name_of(self, model: Any) -> str:
        """The name of the variable that holds a model, or its class name."""
        holders = (name for name, value in self._variables.items() if value is model)
        name = next((name for name in holders if not name.startswith("_")), None)
        if name is None:
            name = type_name(model)
            self._objects[name] = model
        return name

    def question(self, request: Request) -> PanelQuestion:
        """The request with the model that its text names.

        Raises:
            InvalidValue: the text names a variable that holds no model.
        """
        name = request.model
        if name in self._objects:
            return PanelQuestion(request, self._objects[name])
        return PanelQuestion(request, find_model(name, self._variables))

    def recipe(
        self, question: PanelQuestion, progress: Progress, cancelled: IsCancelled
    ) -> ModelRecipe:
        """The recipe of a model, cached so that a live model is copied only once."""
        key = question.model_key, question.request.build
        known = self._recipes.get(key)
        if known is None or known[1].code not in (None, code_state()):
            recipe = model_recipe(question.model, question.request.build, progress, cancelled)
            self._recipes[key] = question.model, recipe
        return self._recipes[key][1]

    def forget(self, question: PanelQuestion) -> None:
        """Drop the recipes of a model, because the model may have changed."""
        for key in [key for key in self._recipes if key[0] == question.model_key]:
            del self._recipes[key]
