"""Several methods on the same tasks: one run per method and seed, and what they say together."""
