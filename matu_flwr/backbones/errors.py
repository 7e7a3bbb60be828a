"""The error for backbones and heads."""

from matu_flwr.texts import Brief


class BackboneError(Brief, ValueError):
    """A backbone or a head cannot be built: its name is unknown, its weights are missing or those of another model."""


def first_line(error: Exception) -> str:
    """First line of the text of another library's exception; the exception's type if it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
