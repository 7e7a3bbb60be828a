"""Get a suite's data sets, and look them over."""
