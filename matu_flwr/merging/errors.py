"""What `merging` refuses, by name."""

from matu_flwr.texts import Brief


class MergeError(Brief, ValueError):
    """Task vectors or replies that cannot be merged; the text names the task or client, what was found and expected."""
