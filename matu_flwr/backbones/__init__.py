"""The model that is fine-tuned: backbones by name, and heads."""

from matu_flwr.backbones.factory import Backbone, BackboneError, create_backbone
from matu_flwr.backbones.heads import LinearHead, zero_head

__all__ = ["Backbone", "BackboneError", "LinearHead", "create_backbone", "zero_head"]
