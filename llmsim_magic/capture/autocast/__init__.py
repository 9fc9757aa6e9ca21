"""`torch.autocast` for tensors on `meta`, as it acts on those of a CUDA device."""
