"""Who holds what of a suite."""
