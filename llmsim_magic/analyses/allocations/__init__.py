"""What a pass or a training step allocates: by kernel, by pass and over time."""
