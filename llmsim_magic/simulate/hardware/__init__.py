"""Times, memory and sizing on devices."""
