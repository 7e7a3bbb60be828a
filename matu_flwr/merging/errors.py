"""What `merging` refuses, by name."""


class MergeError(ValueError):
    """Task vectors or replies that cannot be merged; the text names the task or client, what was found and expected."""
