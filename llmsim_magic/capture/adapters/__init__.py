"""Adapters that peft adds to a model on `meta`, and the quantised weights under them."""
