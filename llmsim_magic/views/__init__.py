"""Draw the record: tables, graphs, prose. Nothing here runs a model."""
