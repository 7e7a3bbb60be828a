"""The server's merge on a CPU: the replies of a round as tables of addresses, and `kernels_cpu` over blocks of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from matu_flwr.merging.kernels_cpu_blocks import GROUP, Addresses, addresses, in_threads, ranges
from matu_flwr.merging.options import MergeOptions
from matu_flwr.merging.packing import PackedMasks, packed_length
from matu_flwr.merging.task_aggregation import ClientUpdate
from matu_flwr.merging.task_graph import SignAgreement

# Parameters of one call of a kernel: the planes of signs of thirty tasks stay in a core's own cache until they are
# counted. What is added up over parameters are whole numbers, so no result depends on it.
MERGE_BLOCK = 1 << 17


@dataclass(frozen=True)
class Block:
    """Where the parts of the replies are that a kernel reads; owns what had to be copied for it."""

    size: int
    vectors: Addresses
    halves: NDArray[np.bool_]
    masks: Addresses
    owned: tuple[Any, ...]


class MergeOnCpu:
    """One round's replies, for `aggregate`.

    Parameters
    ----------
    updates : sequence of ClientUpdate
        Checked, in the order of clients' names.
    tasks : list of str
        Sorted.
    options : MergeOptions
        Read: rho, agreement, signs, combine.
    merged : Tensor
        (T, d) float32: τ^t is written there.
    """

    def __init__(
        self, updates: Sequence[ClientUpdate], tasks: list[str], options: MergeOptions, merged: Tensor
    ) -> None:
        from matu_flwr.merging import kernels_cpu

        self.kernels = kernels_cpu
        self.tasks, self.options, self.merged = tasks, options, merged
        self.vectors = [update.modulated.vector.contiguous() for update in updates]
        self.halves = np.array([vector.dtype == torch.bfloat16 for vector in self.vectors])
        self.at = addresses(self.vectors)
        self.width = np.where(self.halves, 2, 4).astype(np.uint64)
        pairs = [(task, n) for task in tasks for n, update in enumerate(updates) if task in update.num_examples]
        self.holders = np.array([n for _, n in pairs], dtype=np.int64)
        counts = [sum(owner == task for owner, _ in pairs) for task in tasks]
        self.ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.masks = [_bits_or_bools(updates[n], task) for task, n in pairs]
        total = {task: sum(update.num_examples.get(task, 0) for update in updates) for task in tasks}
        rescalers = [updates[n].unified.rescalers[task] for task, n in pairs]
        with np.errstate(over="ignore"):  # as torch: a rescaler beyond float32 is infinite
            self.rescalers = np.array(rescalers).astype(np.float32)
        self.gammas = np.array([updates[n].num_examples[task] / total[task] for task, n in pairs])
        self.examples = np.array(
            [updates[n].num_examples[task] if rescaler != 0 else 0 for (task, n), rescaler in zip(pairs, rescalers, strict=True)],
            dtype=np.int64,
        )
        agreement = options.agreement.upper().replace("-", "_")
        complete = options.signs == "complete"
        self.switches = (complete, int(getattr(kernels_cpu, agreement)), float(options.rho))

    @property
    def d(self) -> int:
        """Number of parameters."""
        return self.merged.shape[1]

    def merge(self) -> tuple[SignAgreement, int | None]:
        """Pass 1: τ̂^t of every task, where directions agree, and the first client whose vector has NaN or infinity."""
        num_tasks = len(self.tasks)

        def merge_range(limits: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
            start, stop = limits
            block = self.block(start, stop)
            planes = np.empty((2, num_tasks, block.size // 8), np.uint8)
            broken = np.zeros(len(self.vectors), np.bool_)
            rows, copied = self.rows(start, stop)
            self.kernels.merge_block(
                block.vectors, block.halves, self.ends, self.holders, block.masks, self.rescalers, self.gammas,
                self.examples, block.size, *self.switches, rows, *map(_rows, planes), broken,
            )  # fmt: skip
            if copied is not None:
                self.merged[:, start:stop] = copied[:, : stop - start]
            dot, shared = np.zeros((2, num_tasks, num_tasks), np.int64)
            self.kernels.count_signs(*planes.view(np.uint64), dot, shared)
            return dot, shared, broken

        found = in_threads(merge_range, list(ranges(self.d, MERGE_BLOCK)))
        agreement = SignAgreement(num_tasks)
        broken = np.zeros(len(self.vectors), np.bool_)
        for dot, shared, bad in found:
            agreement.dot += torch.from_numpy(dot)
            agreement.both += torch.from_numpy(shared)
            broken |= bad
        agreement.d = self.d
        return agreement, int(broken.argmax()) if broken.any() else None

    def combine(self, weights: Mapping[str, Mapping[str, float]]) -> None:
        """Pass 2: the cross-task step, in place. It needs the whole graph first.

        m̂^t is made again from the packed replies: that costs less than keeping T · d numbers.
        """
        index = {task: row for row, task in enumerate(self.tasks)}
        learning = np.array([index[task] for task in weights], dtype=np.int64)
        ends = np.concatenate([[0], np.cumsum([len(others) for others in weights.values()])]).astype(np.int64)
        related = np.array([index[other] for others in weights.values() for other in others], dtype=np.int64)
        flat = np.array([weight for others in weights.values() for weight in others.values()])
        mean = self.options.combine == "mean"
        divisors = np.array([1 + sum(others.values()) if mean else len(others) for others in weights.values()], float)

        def combine_range(limits: tuple[int, int]) -> None:
            start, stop = limits
            block = self.block(start, stop)
            before = np.empty((len(self.tasks), GROUP), np.float32)
            rows, copied = self.rows(start, stop)
            self.kernels.combine_block(
                block.vectors, block.halves, self.ends, self.holders, block.masks, self.examples, block.size,
                *self.switches, rows, before.ctypes.data, learning, ends, related, flat, divisors, mean,
            )  # fmt: skip
            if copied is not None:
                self.merged[:, start:stop] = copied[:, : stop - start]

        in_threads(combine_range, list(ranges(self.d, MERGE_BLOCK)))

    def block(self, start: int, stop: int) -> Block:
        """The replies at parameters start..stop; a part of a group is copied and filled up with zeros."""
        if (stop - start) % GROUP == 0:
            masks, owned = np.empty(len(self.masks), np.uint64), []
            for pair, mask in enumerate(self.masks):
                if mask.dtype == torch.bool:
                    owned.append(np.packbits(mask[start:stop].numpy(), bitorder="little"))
                    masks[pair] = owned[-1].ctypes.data
                else:
                    masks[pair] = mask.data_ptr() + start // 8
            return Block(stop - start, self.at + self.width * np.uint64(start), self.halves, masks, tuple(owned))
        size = -(-(stop - start) // GROUP) * GROUP
        vectors = np.zeros((len(self.vectors), size), np.float32)
        bits = np.zeros((len(self.masks), size // 8), np.uint8)
        for n, vector in enumerate(self.vectors):
            vectors[n, : stop - start] = vector[start:stop].float().numpy()
        for pair, mask in enumerate(self.masks):
            if mask.dtype == torch.bool:
                part = np.packbits(mask[start:stop].numpy(), bitorder="little")
            else:
                part = mask[start // 8 : packed_length(stop)].numpy()
            bits[pair, : len(part)] = part
        return Block(size, _rows(vectors), np.zeros(len(vectors), np.bool_), _rows(bits), (vectors, bits))

    def rows(self, start: int, stop: int) -> tuple[Addresses, Tensor | None]:
        """Where the result goes: into `merged`, or for a part of a group into a copy, to be copied back."""
        if (stop - start) % GROUP == 0:
            return addresses([row[start:stop] for row in self.merged]), None
        copied = torch.zeros(len(self.tasks), -(-(stop - start) // GROUP) * GROUP)
        copied[:, : stop - start] = self.merged[:, start:stop]
        return addresses(list(copied)), copied


def _rows(array: NDArray[Any]) -> Addresses:
    return np.array([row.ctypes.data for row in array], dtype=np.uint64)


def _bits_or_bools(update: ClientUpdate, task: str) -> Tensor:
    """(ceil(d / 8),) uint8 or (d,) bool."""
    masks = update.modulated.masks
    return (masks.bits[task] if isinstance(masks, PackedMasks) else masks[task]).contiguous()
