"""`check` of this engine: the file, its volume and its schema."""
