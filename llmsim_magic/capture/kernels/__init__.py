"""ATen kernels and their tensors: schemas, FLOPs, cached results, random numbers, collectives."""
