"""Tables as a screen shows them: people's units, folded layers, columns by importance."""
