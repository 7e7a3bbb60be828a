"""A federation on several machines: keys, certificates, and how it stands."""
