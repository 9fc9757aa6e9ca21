"""The record of one forward pass, and the workload it ran."""
