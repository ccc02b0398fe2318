"""Ways to learn from a support set."""
