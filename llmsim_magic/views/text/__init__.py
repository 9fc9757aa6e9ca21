"""Reports as text for a terminal: folded layers, people's units, columns that fit the width."""
