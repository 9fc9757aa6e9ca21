"""Find and build models, and cache them for the session."""
