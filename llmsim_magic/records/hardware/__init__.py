"""Devices, runtimes, and the shapes of the kernels they run."""
