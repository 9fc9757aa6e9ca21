"""The training step of one of several devices that share it by sequences (ZeRO)."""
