"""Task vectors of one client: compressed into one unified vector, or side by side; and what a client sends of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from matu_flwr.merging.blocks import blocks
from matu_flwr.merging.errors import MergeError
from matu_flwr.merging.inputs import as_mask, as_rescalers, as_vector, check_names
from matu_flwr.merging.masks import PackedMasks, check_masks, mask_block
from matu_flwr.merging.options import MAX_MAGNITUDE
from matu_flwr.texts import short


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
        λ^t by task, at most `MAX_RESCALER`; 0 for a task whose mask is empty: its vector is all zero, or (possible only
        for tiny d) loses the election at every parameter. λ · τ is computed in float32: what is smaller than its
        smallest number, 1.4e-45, becomes 0.
    opposites : mapping of str to float
        λ₋^t by task: what a cleared bit stands for, times −τ. Empty: nothing, as published.
    """

    vector: Tensor
    masks: Mapping[str, Tensor]
    rescalers: Mapping[str, float]
    opposites: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Made by hand, it may hold arrays or lists. Tensors of whatever form stay, and are checked where they are used.
        vector: Any = self.vector
        if not isinstance(vector, Tensor) or vector.layout != torch.strided or vector.requires_grad:
            object.__setattr__(self, "vector", as_vector(vector, "unified vector"))
        for name in ("rescalers", "opposites"):
            object.__setattr__(self, name, as_rescalers(getattr(self, name), f"{name} of a unified vector"))
        if not isinstance(self.masks, PackedMasks):
            check_names(self.masks, "masks of a unified vector")
            found = {task: as_mask(mask, f"mask of task {task!r}") for task, mask in self.masks.items()}
            object.__setattr__(self, "masks", found)

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
        both: tuple[Any, ...] = (self.rescalers[task], self.opposites.get(task, 0.0))
        for value in both:
            if not isinstance(value, Real):
                raise MergeError(f"rescaler of task {task!r} is {short(value)}, expected a number")
        if self.vector.ndim != 1:
            raise MergeError(f"unified vector has shape {tuple(self.vector.shape)}, expected (d,)")
        # A mask of another length might fit every parameter, as one of length 1 does.
        masks = self.masks if isinstance(self.masks, PackedMasks) else {task: self.masks[task]}
        check_masks(masks, self.d, "this unified task vector")
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
        if not isinstance(self.vectors, UnifiedTaskVector | SeparateTaskVectors):
            raise MergeError(
                f"client {self.client!r}: vectors is a {type(self.vectors).__name__}, expected one unified task "
                "vector: what `unify` gives for its task vectors"
            )
        if not isinstance(self.vectors, UnifiedTaskVector):
            raise MergeError(f"client {self.client!r} sent separate task vectors, expected one unified task vector")
        return self.vectors


def without_modulators(unified: UnifiedTaskVector) -> UnifiedTaskVector:
    """The unified vector alone, for every task: an ablation. Masks are its support and rescalers 1; none travels."""
    support = unified.vector != 0
    return UnifiedTaskVector(unified.vector, dict.fromkeys(unified.tasks, support), dict.fromkeys(unified.tasks, 1.0))


def first_non_finite(vector: Tensor, most: float = torch.inf) -> int | None:
    """Where a (d,) vector first has NaN, infinity, or a magnitude above `most`; None if nowhere.

    Block by block: no temporary of length d.
    """
    for start, stop in blocks(vector.shape[0]):
        block = vector[start:stop].abs()
        fit = torch.isfinite(block) & (block <= most)
        if not bool(fit.all()):
            return start + int(torch.nonzero(~fit)[0, 0])
    return None


def as_task_vectors(task_vectors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Turn what a caller gave for task vectors into (d,) float32 tensors by task; see `as_vector` for what is taken.

    Raises
    ------
    MergeError
        No tasks; a vector that is not 1-dimensional, of the common length and of floating-point numbers, or is on
        another device.
    """
    check_names(task_vectors, "task_vectors")
    if not task_vectors:
        raise MergeError("no tasks: unify needs at least one task vector")
    taus = {task: as_vector(tau, f"task vector {task!r}") for task, tau in task_vectors.items()}
    first = next(iter(taus))
    d, device = taus[first].shape[0], taus[first].device
    for task, tau in taus.items():
        if tau.shape != (d,):
            raise MergeError(
                f"task vector {task!r} has shape {tuple(tau.shape)}, expected ({d},) as task {first!r}: "
                "flatten both with the same ParameterLayout"
            )
        if tau.device != device:
            raise MergeError(
                f"task vector {task!r} is on {tau.device}, expected {device} as task {first!r}: move it with .to()"
            )
    if device.type == "meta":
        raise MergeError(f"task vector {first!r} is on the device meta, which holds no numbers")
    return taus


def check_magnitudes(taus: Mapping[str, Tensor]) -> None:
    """Raise MergeError if a vector has NaN, infinity, or a number beyond `MAX_MAGNITUDE`; the text says where."""
    for task, tau in taus.items():
        at = first_non_finite(tau, MAX_MAGNITUDE)
        if at is not None:
            value = float(tau[at])
            limit = f", expected at most {MAX_MAGNITUDE:g} in magnitude" if math.isfinite(value) else ""
            raise MergeError(f"task vector {task!r} has {value} at parameter {at}{limit}: the training diverged")


def check_task_vectors(task_vectors: Mapping[str, Any]) -> int:
    """Refuse, by name, what cannot be a set of task vectors; returns their common length d.

    Raises
    ------
    MergeError
        See `as_task_vectors` and `check_magnitudes`.
    """
    taus = as_task_vectors(task_vectors)
    check_magnitudes(taus)
    return next(iter(taus.values())).shape[0]
