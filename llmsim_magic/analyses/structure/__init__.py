"""Which module of one model is which of another, and what differs in them."""
