"""What a checkpoint stores: the names and tying of its parameters, what is quantised, adapters."""
