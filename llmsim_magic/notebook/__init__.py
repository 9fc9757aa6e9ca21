"""The magic and the panel. Only this package imports IPython and ipywidgets."""
