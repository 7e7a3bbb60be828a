"""What goes wrong with backbones and heads, in words a user can act on."""


class BackboneError(ValueError):
    """A backbone or a head that cannot be built: unknown name, missing or foreign weights, impossible options."""
