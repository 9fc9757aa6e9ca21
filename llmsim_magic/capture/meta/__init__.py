"""Running modelling code on `meta`: partial evaluation, isolation, and undoing side effects."""
