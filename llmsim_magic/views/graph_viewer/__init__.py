"""The interactive graph of a page: its data, its scripts, and the same data for other viewers."""
