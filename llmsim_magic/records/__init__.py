"""What was recorded: frozen, typed, free of any framework."""
