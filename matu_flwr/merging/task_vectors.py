"""Task vectors of one client: compressed into one unified vector, or side by side; and what a client sends of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from matu_flwr.merging.blocks import blocks
from matu_flwr.merging.errors import MergeError
from matu_flwr.merging.masks import mask_block


@dataclass(frozen=True)
class UnifiedTaskVector:
    """One vector for all tasks of a client, and the modulators that give each task's own vector back.

    Attributes
    ----------
    vector : Tensor
        τ, (d,) float32; bfloat16 where the wire carried that.
    masks : mapping of str to Tensor
        m^t by task, (d,) bool. `PackedMasks` holds the same as bits.
    rescalers : mapping of str to float
        λ^t by task; 0 for a task whose mask is empty: its vector is all zero, or (possible only for tiny d) loses the
        election at every parameter.
    opposites : mapping of str to float
        λ₋^t by task: what a cleared bit stands for, times −τ. Empty: nothing, as published.
    """

    vector: Tensor
    masks: Mapping[str, Tensor]
    rescalers: Mapping[str, float]
    opposites: Mapping[str, float] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        """Task names, sorted."""
        return sorted(self.rescalers)

    @property
    def d(self) -> int:
        """Number of parameters."""
        return self.vector.shape[0]

    def reconstruct(self, task: str) -> Tensor:
        """τ̄^t = λ^t · m^t ⊙ τ, less λ₋^t · (1 − m^t) ⊙ τ, as a new (d,) float32 vector (method, client step 4)."""
        if task not in self.rescalers:
            raise MergeError(f"no task {task!r} in this unified task vector; it holds {self.tasks}")
        return self.reconstruct_block(task, 0, self.d)

    def reconstruct_block(self, task: str, start: int, stop: int) -> Tensor:
        """Parameters start..stop of `reconstruct`, (stop - start,) float32; `start` a multiple of 8."""
        mask = mask_block(self.masks, task, start, stop)
        vector = self.vector[start:stop].float()
        # Not in place on `.float()`: for float32 that is the vector itself.
        if not self.opposites:
            return (vector * mask).mul_(self.rescalers[task])
        return vector * torch.where(mask, self.rescalers[task], -self.opposites[task])


@dataclass(frozen=True)
class SeparateTaskVectors:
    """One vector per task, uncompressed: what a unified task vector is measured against. Read like one.

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


TaskVectors = UnifiedTaskVector | SeparateTaskVectors


@dataclass(frozen=True)
class ClientUpdate:
    """What one client sent for one round.

    Attributes
    ----------
    vectors : UnifiedTaskVector or SeparateTaskVectors
        Of the client's task vectors, or of this round's updates (payload = "update"). MaTU merges unified ones.
    num_examples : dict of str to int
        |D_n^t| by task: training examples, at least 1.
    client : str
        The client's name: replies are merged in the order of names, so their order of arrival does not matter.
    """

    vectors: TaskVectors
    num_examples: dict[str, int]
    client: str

    @property
    def modulated(self) -> UnifiedTaskVector:
        """The unified vector with its masks and rescalers, where the method needs one.

        Raises
        ------
        MergeError
            The client sent separate vectors.
        """
        if not isinstance(self.vectors, UnifiedTaskVector):
            raise MergeError(f"client {self.client!r} sent separate task vectors, expected one unified task vector")
        return self.vectors


def without_modulators(unified: UnifiedTaskVector) -> UnifiedTaskVector:
    """The unified vector alone, for every task: an ablation. Masks are its support and rescalers 1; none travels."""
    support = unified.vector != 0
    return UnifiedTaskVector(unified.vector, dict.fromkeys(unified.tasks, support), dict.fromkeys(unified.tasks, 1.0))


def first_non_finite(vector: Tensor) -> int | None:
    """Where a (d,) vector first has NaN or infinity; None if nowhere. Block by block: no temporary of length d."""
    for start, stop in blocks(vector.shape[0]):
        finite = torch.isfinite(vector[start:stop])
        if not bool(finite.all()):
            return start + int(torch.nonzero(~finite)[0, 0])
    return None


def check_shapes(task_vectors: Mapping[str, Tensor]) -> int:
    """Refuse, by name, what cannot be a set of task vectors for its form; returns their common length d.

    Raises
    ------
    MergeError
        No tasks; a vector that is not 1-dimensional float32 of the common length, or is on another device.
    """
    if not task_vectors:
        raise MergeError("no tasks: unify needs at least one task vector")
    first = next(iter(task_vectors))
    d = task_vectors[first].numel()
    for task, tau in task_vectors.items():
        if tau.dtype != torch.float32:
            raise MergeError(f"task vector {task!r} is {tau.dtype}, expected torch.float32: convert it with .float()")
        if tau.shape != (d,):
            raise MergeError(
                f"task vector {task!r} has shape {tuple(tau.shape)}, expected ({d},) as task {first!r}: "
                "flatten both with the same ParameterLayout"
            )
        if tau.device != task_vectors[first].device:
            raise MergeError(
                f"task vector {task!r} is on {tau.device}, expected {task_vectors[first].device} as task {first!r}: "
                "move it with .to()"
            )
    return d


def check_task_vectors(task_vectors: Mapping[str, Tensor]) -> int:
    """Refuse, by name, what cannot be a set of task vectors; returns their common length d.

    Raises
    ------
    MergeError
        See `check_shapes`; NaN or infinity in a vector.
    """
    d = check_shapes(task_vectors)
    for task, tau in task_vectors.items():
        at = first_non_finite(tau)
        if at is not None:
            raise MergeError(f"task vector {task!r} has {float(tau[at])} at parameter {at}: the training diverged")
    return d
