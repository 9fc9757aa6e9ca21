"""From a model's name, config or live module to the same model without weights."""
