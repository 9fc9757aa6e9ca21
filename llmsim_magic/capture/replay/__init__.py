"""Replay a layer that provably repeats an earlier one, instead of running it."""
