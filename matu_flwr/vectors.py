"""Turning named tensors into one flat vector, and back.

A task vector τ = θ − θ_p is the change of the *trainable* parameters during training, as one flat vector of length d:
θ_p are the pre-trained weights and θ the trained ones. The layout says where each tensor lies in that vector. The
server and the clients build it from the same backbone and compare its fingerprint.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from matu_flwr.texts import Brief


class LayoutError(Brief, ValueError):
    """Tensors or a vector do not have the names or shapes that a layout requires."""


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
        """Make the layout of `tensors`, in the order in which they are given."""
        return cls({name: tuple(tensor.shape) for name, tensor in tensors.items()})

    @cached_property
    def slices(self) -> dict[str, slice]:
        """The part of the flat vector that each tensor takes, by name."""
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
            A tensor is missing, unknown to the layout, or has another shape.
        """
        self._check(tensors)
        device = next((tensor.device for tensor in tensors.values()), None)
        flat = torch.empty(self.d, dtype=torch.float32, device=device)
        for name, where in self.slices.items():
            flat[where] = tensors[name].detach().reshape(-1)
        return flat

    def views(self, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the name of each tensor and its part of `flat` as a view in the tensor's shape. Nothing is copied.

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
        """Return views of `flat` (d,) in the shapes of the tensors, by name. Nothing is copied."""
        return dict(self.views(flat))

    @torch.no_grad()
    def write(self, flat: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Copy `flat` (d,) into `tensors`, in place; LayoutError if they do not fit the layout."""
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
        """Return the SHA-256 (hexadecimal) of the names, the shapes and the values of `theta`, (d,) float32.

        Two nodes with the same fingerprint start from the same pre-trained weights.

        Raises
        ------
        LayoutError
            `theta` is not of shape (d,).
        """
        if theta.shape != (self.d,):
            raise LayoutError(f"θ has shape {tuple(theta.shape)}; this layout needs ({self.d},)")
        digest = hashlib.sha256()
        for name, shape in self.shapes.items():
            digest.update(f"{name!r}:{shape};".encode())
        digest.update(theta.detach().to(torch.float32).contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()
