"""Shapes and costs as exact formulas of batch and context."""
