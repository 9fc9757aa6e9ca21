"""Tensor, pipeline and expert parallelism, by the plans that a model has in transformers."""
