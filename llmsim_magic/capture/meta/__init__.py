"""Running model code on `meta`: partial evaluation, isolation from the caller, restored state."""
