"""Build the models to trace: from a config or a live module, always without weights."""
