"""Parameters that each rank holds, and the collectives between ranks."""
