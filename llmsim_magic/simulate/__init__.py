"""The library behind the magic, the panel, the terminal and Python: a request in, a report out."""
