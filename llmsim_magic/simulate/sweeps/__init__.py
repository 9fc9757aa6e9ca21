"""Many workloads of one model, and the formulas found from them."""
