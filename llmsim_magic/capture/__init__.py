"""Run a model's own code without its weights and record what happens. torch lives here alone."""
