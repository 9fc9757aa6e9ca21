"""The dependency and topological views as Graphviz drawings."""
