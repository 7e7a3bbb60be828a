"""A federation on several machines: keys, certificates, and the status of runs and nodes."""
