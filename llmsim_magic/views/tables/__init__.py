"""Traces and predictions as pandas DataFrames."""
