"""The model that is fine-tuned: backbones by name, which of their parameters are trained, and classification heads."""

from matu_flwr.backbones.errors import BackboneError
from matu_flwr.backbones.factory import Backbone, backbone_arguments, create_backbone
from matu_flwr.backbones.heads import LinearHead, zero_head
from matu_flwr.backbones.zero_shot import Prompts, ZeroShotHeads, zero_shot_heads

__all__ = [
    "Backbone",
    "BackboneError",
    "LinearHead",
    "Prompts",
    "ZeroShotHeads",
    "backbone_arguments",
    "create_backbone",
    "zero_head",
    "zero_shot_heads",
]
