"""Finding and building models, and remembering them for the session."""
