"""The words that the switches of the mathematics may have.

They stand apart from `merging`, because the settings need them too: who reads settings need not wait for PyTorch.
"""

from __future__ import annotations

from typing import Literal

Magnitude = Literal["max", "mean"]
Reconstruction = Literal["masked", "complete"]
PayloadKind = Literal["unified", "separate", "nothing"]
"""What a client sends of its vectors in a round."""
VectorDtype = Literal["float32", "bfloat16", "int8", "int4"]
"""How a vector travels."""
MeanKind = Literal["weighted", "median", "trimmed"]
Agreement = Literal["threshold-or-soft", "hard", "soft", "none"]
Similarity = Literal["all", "support"]
Signs = Literal["masked", "complete"]
RelationWeight = Literal["similarity", "excess"]
Combine = Literal["mean", "sum"]
EpsilonUnit = Literal["similarity", "z"]
