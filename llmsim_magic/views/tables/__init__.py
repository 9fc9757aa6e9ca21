"""The record as pandas DataFrames."""
