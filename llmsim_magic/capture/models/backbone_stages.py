"""Let a backbone return the stages that the model around it reads, where its config names none."""

from collections.abc import Callable, Iterator
from typing import Any

from llmsim_magic.capture.inputs.trial import can_run
from llmsim_magic.capture.modalities.signature import nested_configs


def with_all_stages(module: Any, config: Any, build: Callable[[Any], Any]) -> tuple[Any, list[str]]:
    """Build a model again whose backbone returns fewer stages than the model reads.

    A backbone returns its last stage unless its config has `out_features`. Some models read all
    stages and cannot run on their default config.

    Args:
        module: The model as built, on the meta device.
        config: Its config, whose `out_features` are changed if that makes the model run.
        build: Builds the model from the config.

    Returns:
        The model that runs, else the one that was given; and a note on the stages.
    """
    for backbone in list(_unnamed_backbones(config)):
        if can_run(module):
            break
        last, stages = backbone.out_features, list(backbone.stage_names)
        for features in (stages[1:], stages):
            backbone.out_features = features
            larger = build(config)
            if can_run(larger):
                note = f"the config names no out_features; {', '.join(features)} are read"
                return larger, [note]
        backbone.out_features = last
    return module, []


def _unnamed_backbones(config: Any) -> Iterator[Any]:
    """Yield the configs of backbones inside a config that return their last stage alone."""
    for path, nested in nested_configs(config):
        stages = getattr(nested, "stage_names", None)
        if path and stages and getattr(nested, "out_features", None) == [stages[-1]]:
            yield nested
