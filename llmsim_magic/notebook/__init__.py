"""The front doors in a notebook. IPython and ipywidgets live here alone."""
