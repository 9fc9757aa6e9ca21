"""The optimizers of a training step, torch's own and published ones, on `meta`."""
