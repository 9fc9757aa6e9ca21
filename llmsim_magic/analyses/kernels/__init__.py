"""Facts about single kernels: what they read, where tensors overlap, elementwise work."""
