"""What a run may be: every key of a config, its type, its range and its default."""
