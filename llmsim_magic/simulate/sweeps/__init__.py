"""Trace many workloads of one model, and derive formulas from them."""
