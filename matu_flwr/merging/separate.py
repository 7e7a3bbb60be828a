"""One vector per task, uncompressed: what a unified task vector is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from matu_flwr.merging.errors import MergeError
from matu_flwr.merging.unify import UnifiedTaskVector


@dataclass(frozen=True)
class SeparateTaskVectors:
    """Task vectors side by side; read like a `UnifiedTaskVector`.

    Attributes
    ----------
    vectors : mapping of str to Tensor
        τ^t by task, (d,) float32; bfloat16 where the wire carried that.
    """

    vectors: Mapping[str, Tensor]

    @property
    def tasks(self) -> list[str]:
        """Task names, sorted."""
        return sorted(self.vectors)

    @property
    def rescalers(self) -> dict[str, float]:
        """1 for every task: nothing was scaled."""
        return dict.fromkeys(self.tasks, 1.0)

    def reconstruct(self, task: str) -> Tensor:
        """τ^t as a new (d,) float32 vector."""
        if task not in self.vectors:
            raise MergeError(f"no task {task!r} among these task vectors; they are of {self.tasks}")
        return self.vectors[task].float().clone()

    def reconstruct_block(self, task: str, start: int, stop: int) -> Tensor:
        """Parameters start..stop of `reconstruct`, (stop - start,) float32."""
        return self.vectors[task][start:stop].float()


PayloadKind = Literal["unified", "separate", "nothing"]
"""What a client sends of its vectors in a round."""

TaskVectors = UnifiedTaskVector | SeparateTaskVectors
