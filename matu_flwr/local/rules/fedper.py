"""FedPer's client (Arivazhagan et al., 2019): the last blocks and the heads are its own."""

from __future__ import annotations

import torch
from torch import Tensor

from matu_flwr.backbones.trainable import length_before_last_blocks
from matu_flwr.local.fit import Span
from matu_flwr.local.rules.base import Fitted
from matu_flwr.local.rules.joint import Joint
from matu_flwr.settings import Settings
from matu_flwr.vectors import ParameterLayout


class FedPer(Joint):
    """Sends and receives the first parameters only; the last K blocks, and what follows them, stay.

    A client has one personal part for all of its tasks, as the one backbone has, and a head per task. With K = 0
    nothing stays, the heads included.
    """

    @classmethod
    def keeps_state(cls, settings: Settings) -> bool:
        """The last blocks."""
        return True

    @classmethod
    def keeps_heads(cls, settings: Settings) -> bool:
        """Heads are personal, as the blocks before them."""
        return settings.fedper.blocks > 0 or super().keeps_heads(settings)

    @classmethod
    def shared_length(cls, layout: ParameterLayout, settings: Settings) -> int:
        """Parameters before the last K blocks."""
        return length_before_last_blocks(layout, settings.fedper.blocks)

    def common_start(self) -> Tensor | None:
        """What was received, followed by the client's own part."""
        shared, own = super().common_start(), self.work.own.get("personal")
        if shared is None and own is None:
            return None
        layout = self.work.backbone.layout
        start = torch.zeros(layout.d)
        cut = self.shared_length(layout, self.work.settings)
        if shared is not None:
            start[:cut] = shared
        if own is not None:
            start[cut:] = own
        return start

    def train(self, span: Span) -> Fitted:
        """Train everything; cut the result in two."""
        fitted = super().train(span)
        vector = next(iter(fitted.vectors.values()))
        cut = self.shared_length(self.work.backbone.layout, self.work.settings)
        shared = dict.fromkeys(fitted.vectors, vector[:cut].contiguous())
        return Fitted(shared, fitted.heads, fitted.losses, {"personal": vector[cut:].contiguous()})
