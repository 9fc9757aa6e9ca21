"""Splitting a model over devices by the plans it carries."""
