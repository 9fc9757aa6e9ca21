"""Inputs of a forward pass for every kind of model, made from its config and signature."""
