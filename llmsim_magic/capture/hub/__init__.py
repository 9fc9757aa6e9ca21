"""Find the files of a model's repository: in a folder, the local cache or the HuggingFace hub."""
