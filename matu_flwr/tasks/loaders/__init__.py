"""Where images come from: one loader per kind of source."""
