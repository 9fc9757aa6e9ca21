"""Charts and cards as data: what each shows of a trace, and nothing of how it is drawn."""
