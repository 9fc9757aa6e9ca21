"""Time of a pass as PyTorch runs it: each kernel of the record by itself, none fused."""
