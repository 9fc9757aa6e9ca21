"""The dependency and topological graphs, drawn with Graphviz."""
