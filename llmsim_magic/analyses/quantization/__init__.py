"""How quantised weights and caches are stored: codes, scales and zero points."""
