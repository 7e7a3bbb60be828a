"""What goes wrong with backbones and heads, in words a user can act on."""


class BackboneError(ValueError):
    """A backbone or a head that cannot be built: unknown name, missing or foreign weights, impossible options."""


def first_line(error: Exception) -> str:
    """What an exception of another library says, as far as it fits into one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
