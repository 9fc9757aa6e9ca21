"""A report as a page: HTML for notebooks and browsers, text for terminals."""
