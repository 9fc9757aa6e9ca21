"""What was recorded before: in this session, and on disk for every process of the user."""
