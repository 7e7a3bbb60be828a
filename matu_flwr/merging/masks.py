"""Masks as bits: one bit per parameter and task, instead of PyTorch's one byte."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from matu_flwr.merging.errors import MergeError


def packed_length(d: int) -> int:
    """Bytes that the mask of d parameters takes."""
    return -(-d // 8)


def pack(mask: Tensor) -> Tensor:
    """Pack a boolean mask: (d,) bool -> (ceil(d / 8),) uint8.

    Parameter i is bit i % 8 (least significant first) of byte i // 8; the unused bits of the last byte are zero.
    """
    if mask.device.type != "cpu":
        return pack_in_torch(mask)
    return torch.from_numpy(np.packbits(mask.numpy(), bitorder="little"))


def unpack(bits: Tensor, d: int) -> Tensor:
    """Inverse of `pack`: (ceil(d / 8),) uint8 -> (d,) bool."""
    if bits.device.type != "cpu":
        return unpack_in_torch(bits, d)
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=d, bitorder="little").view(np.bool_))


def pack_in_torch(mask: Tensor) -> Tensor:
    """`pack` in torch's operations, on whatever device the mask is on."""
    d = mask.shape[0]
    padded = torch.zeros(8 * packed_length(d), dtype=torch.uint8, device=mask.device)
    padded[:d] = mask
    return (padded.view(-1, 8) << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(dim=1, dtype=torch.uint8)


def unpack_in_torch(bits: Tensor, d: int) -> Tensor:
    """`unpack` in torch's operations, on whatever device the bits are on."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits[:, None] >> places & 1).bool().view(-1)[:d]


class PackedMasks(Mapping[str, Tensor]):
    """Masks by task, held as bits and unpacked when looked at.

    Behaves as `dict[str, Tensor]` with values (d,) bool. The server holds every client's reply in this form:
    d / 8 bytes per task.

    Parameters
    ----------
    bits : mapping of str to Tensor
        Per task (ceil(d / 8),) uint8 as made by `pack`.
    d : int
        Number of parameters.

    Raises
    ------
    MergeError
        A task's bits are not uint8 of the length that d needs, or have ones beyond d.
    """

    def __init__(self, bits: Mapping[str, Tensor], d: int) -> None:
        self.bits = dict(bits)
        self.d = d
        for task, packed in self.bits.items():
            if packed.dtype != torch.uint8 or packed.shape != (packed_length(d),):
                raise MergeError(
                    f"mask of task {task!r}: {tuple(packed.shape)} of {packed.dtype}, expected "
                    f"({packed_length(d)},) of torch.uint8 for {d} parameters"
                )
            if d % 8 and int(packed[-1]) >> (d % 8):
                raise MergeError(f"mask of task {task!r} has bits set beyond parameter {d - 1}")

    @classmethod
    def of(cls, masks: Mapping[str, Tensor], d: int) -> PackedMasks:
        """Pack boolean masks (d,) by task."""
        return cls({task: pack(mask) for task, mask in masks.items()}, d)

    def __getitem__(self, task: str) -> Tensor:
        return unpack(self.bits[task], self.d)

    def __iter__(self) -> Iterator[str]:
        return iter(self.bits)

    def __len__(self) -> int:
        return len(self.bits)

    def block(self, task: str, start: int, stop: int) -> Tensor:
        """Parameters start..stop of one mask: (stop - start,) bool. `start` must be a multiple of 8."""
        return unpack(self.bits[task][start // 8 : packed_length(stop)], stop - start)


def mask_block(masks: Mapping[str, Tensor], task: str, start: int, stop: int) -> Tensor:
    """Parameters start..stop of one task's mask, whether packed or not: (stop - start,) bool."""
    if isinstance(masks, PackedMasks):
        return masks.block(task, start, stop)
    return masks[task][start:stop]


def check_masks(masks: Mapping[str, Tensor], d: int, who: str) -> None:
    """Refuse masks that are not (d,) bool; `who` names their owner in the error."""
    if isinstance(masks, PackedMasks):
        if masks.d != d:
            raise MergeError(f"{who}: masks of {masks.d} parameters, expected {d}")
        return
    for task, mask in masks.items():
        if mask.dtype != torch.bool or mask.shape != (d,):
            raise MergeError(
                f"{who}: mask of task {task!r} is {tuple(mask.shape)} of {mask.dtype}, expected ({d},) torch.bool"
            )


def bits_of(masks: Mapping[str, Tensor], task: str) -> Tensor:
    """One task's mask as (ceil(d / 8),) uint8, whether packed or not."""
    return masks.bits[task] if isinstance(masks, PackedMasks) else pack(masks[task])


def masks_of(masks: Mapping[str, Tensor], tasks: Iterable[str], d: int) -> Mapping[str, Tensor]:
    """Masks of some of the tasks, packed if they were."""
    if isinstance(masks, PackedMasks):
        return PackedMasks({task: masks.bits[task] for task in tasks}, d)
    return {task: masks[task] for task in tasks}
