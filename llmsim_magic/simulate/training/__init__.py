"""Training steps under other options: what they need, how long they take, what fits."""
