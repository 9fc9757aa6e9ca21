"""The graph of a pass: dataflow, layers, and the outline that graphs draw."""
