"""What can be set: every setting with its range, presets, experiment files, and where things lie. Computes nothing."""
