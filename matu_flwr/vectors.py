"""Named tensors <-> one flat vector.

A task vector is the change of the *trainable* parameters, flattened: τ = θ − θ_p ∈ R^d. The layout says which tensor
lies where in that vector; both sides of the federation build it from the same backbone and compare its fingerprint.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


class LayoutError(ValueError):
    """Tensors that do not have the names or shapes of a layout."""


@dataclass(frozen=True)
class ParameterLayout:
    """Where each named tensor lies in the flat vector of length `d`.

    Attributes
    ----------
    shapes : dict of str to tuple of int
        Shape of each tensor, in the order in which they are laid one after another.
    """

    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> ParameterLayout:
        """Layout of `tensors` in their own order."""
        return cls({name: tuple(tensor.shape) for name, tensor in tensors.items()})

    @cached_property
    def slices(self) -> dict[str, slice]:
        """The range of the flat vector that each tensor takes."""
        ranges, start = {}, 0
        for name, shape in self.shapes.items():
            stop = start + math.prod(shape)
            ranges[name] = slice(start, stop)
            start = stop
        return ranges

    @property
    def d(self) -> int:
        """Length of the flat vector: the number of trainable parameters."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Copy `tensors` into one new (d,) float32 vector on their device.

        Raises
        ------
        LayoutError
            A tensor is missing, superfluous or of another shape.
        """
        self._check(tensors)
        device = next((tensor.device for tensor in tensors.values()), None)
        flat = torch.empty(self.d, dtype=torch.float32, device=device)
        for name, where in self.slices.items():
            flat[where] = tensors[name].detach().reshape(-1)
        return flat

    def views(self, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, view of `flat` in that tensor's shape); no copy.

        Raises
        ------
        LayoutError
            `flat` is not of shape (d,).
        """
        if flat.shape != (self.d,):
            raise LayoutError(f"the flat vector has shape {tuple(flat.shape)}; this layout needs ({self.d},)")
        for name, where in self.slices.items():
            yield name, flat[where].view(self.shapes[name])

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of `flat` (d,) by name; no copy."""
        return dict(self.views(flat))

    @torch.no_grad()
    def write(self, flat: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Copy `flat` (d,) into `tensors` in place."""
        self._check(tensors)
        for name, view in self.views(flat):
            tensors[name].copy_(view)

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        missing = sorted(self.shapes.keys() - tensors.keys())
        extra = sorted(tensors.keys() - self.shapes.keys())
        if missing or extra:
            raise LayoutError(f"tensors do not fit the layout: missing {missing}, superfluous {extra}")
        for name, shape in self.shapes.items():
            if tuple(tensors[name].shape) != shape:
                raise LayoutError(f"tensor {name!r} has shape {tuple(tensors[name].shape)}; the layout has {shape}")

    def fingerprint(self, theta: Tensor) -> str:
        """SHA-256 (hex) over names, shapes and the values of `theta` (d,) float32: tells one θ_p from another."""
        if theta.shape != (self.d,):
            raise LayoutError(f"θ has shape {tuple(theta.shape)}; this layout needs ({self.d},)")
        digest = hashlib.sha256()
        for name, shape in self.shapes.items():
            digest.update(f"{name!r}:{shape};".encode())
        digest.update(theta.detach().to(torch.float32).contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()
