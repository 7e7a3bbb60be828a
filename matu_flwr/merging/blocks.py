"""Long vectors block by block: some parameters of every task at a time, so that no temporary is of length d."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# A multiple of 8 (bit packing), and no more than PyTorch sums on one thread: a sum over a block has one order of
# additions whatever the number of threads, so rescalers are the same bits on any machine.
BLOCK = 1 << 15
# A GPU works on so many at once, and each call costs a launch. Below 2^24: float32 still counts signs exactly.
GPU_BLOCK = 1 << 22


def blocks(d: int, size: int | None = None) -> Iterator[tuple[int, int]]:
    """Ranges (start, stop) of at most `size` parameters, or BLOCK, that cover 0..d."""
    size = size or BLOCK
    for start in range(0, d, size):
        yield start, min(start + size, d)


@dataclass
class Norms:
    """L1 norms of one task's vector and of the elected one, over set and over cleared bits, added up in float64.

    They are what rescalers are made of. A bit is cleared where τ ≠ 0 and the task does not agree.
    """

    own: float = 0.0  # ‖τ^t‖₁
    set: float = 0.0  # ‖m^t ⊙ τ‖₁
    own_set: float = 0.0  # ‖m^t ⊙ τ^t‖₁
    own_cleared: float = 0.0  # ‖(1 − m^t) ⊙ τ^t‖₁ where τ ≠ 0
    cleared: float = 0.0  # ‖(1 − m^t) ⊙ τ‖₁
