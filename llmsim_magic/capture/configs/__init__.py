"""Find the config of a model: in the catalogue, a folder, the local cache or on the hub."""
