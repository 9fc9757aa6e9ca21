"""Memory of a device: weights, quantization, cache, activations, and what fits."""
