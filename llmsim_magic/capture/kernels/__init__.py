"""ATen kernels and the tensors they touch: facts, FLOPs, a cache, random numbers, collectives."""
