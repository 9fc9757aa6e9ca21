"""Tables, graphs, plots and text built from a trace; nothing here runs a model."""
