"""One training step of a model on `meta`: forward, backward and the optimizer."""
