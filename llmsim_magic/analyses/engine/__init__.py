"""What an inference engine runs in place of the model's own kernels."""
