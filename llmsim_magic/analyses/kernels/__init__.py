"""Facts about single kernels: arguments read, overlapping tensors, elementwise work."""
