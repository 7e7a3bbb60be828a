"""What can be set: every setting with its range, presets, experiment files, and folders. Nothing is computed here."""
