"""Times, memory and capacity of a model on devices."""
