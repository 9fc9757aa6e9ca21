"""FLOPs and bytes of operators, modules, layers and the whole pass."""
