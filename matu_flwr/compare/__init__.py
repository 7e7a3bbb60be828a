"""Comparing methods on the same tasks: one run per method and seed, and tables and pictures of all results."""
