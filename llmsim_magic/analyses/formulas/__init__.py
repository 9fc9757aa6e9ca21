"""Shapes and costs as exact polynomials in batch and context."""
