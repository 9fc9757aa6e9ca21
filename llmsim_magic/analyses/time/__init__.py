"""Time on a device: the roofline, its calibration, and the latency of a pass."""
