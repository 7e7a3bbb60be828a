"""Starting a simulated run on this machine."""
