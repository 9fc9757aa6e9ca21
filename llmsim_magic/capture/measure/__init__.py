"""Measure this machine: the rates and the kernel times of its CPU or its GPU."""
