"""The server's merge on a CPU: a round's replies as tables of addresses, and `cpu_replies` over blocks."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from matu_flwr.merging.kernels.cpu_blocks import GROUP, Addresses, in_threads, ranges, row_addresses
from matu_flwr.merging.masks import bits_of, packed_length
from matu_flwr.merging.options import MergeOptions
from matu_flwr.merging.task_graph import SignAgreement
from matu_flwr.merging.task_vectors import ClientUpdate

# Parameters of one call of a kernel: the planes of signs of thirty tasks stay in a core's own cache until they are
# counted. What is added up over parameters are whole numbers, so no result depends on it.
MERGE_BLOCK = 1 << 17


@dataclass(frozen=True)
class Block:
    """The replies over `size` parameters, as the tables of `cpu_replies`; owns what was copied for them."""

    size: int
    clients: NDArray[np.uint64]  # (N, 2)
    pairs: NDArray[np.uint64]  # (E, 8)
    owned: list[Any]


class MergeOnCpu:
    """One round's replies, for `aggregate`: what `merging.aggregate.MergeInTorch` does.

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
        from matu_flwr.merging.kernels import cpu_replies

        self.kernels = cpu_replies
        self.tasks, self.options, self.merged, self.of_thread = tasks, options, merged, threading.local()
        self.vectors = [update.modulated.vector.contiguous() for update in updates]
        holders = {task: [n for n, update in enumerate(updates) if task in update.num_examples] for task in tasks}
        self.ends = np.cumsum([0, *(len(found) for found in holders.values())], dtype=np.int64)
        self.masks = [
            bits_of(updates[n].modulated.masks, t).contiguous() for t, found in holders.items() for n in found
        ]
        self.clients = np.array([[v.data_ptr(), v.element_size()] for v in self.vectors], dtype=np.uint64)
        self.pairs = np.zeros((len(self.masks), 8), dtype=np.uint64)
        self.of_pair = np.array([n for found in holders.values() for n in found])
        scales, gammas = self.pairs.view(np.float32)[:, 2:4], self.pairs.view(np.float64)[:, 3]
        for row, (task, n) in enumerate((task, n) for task, found in holders.items() for n in found):
            examples, rescaler = updates[n].num_examples[task], updates[n].modulated.rescalers[task]
            opposite = updates[n].modulated.opposites.get(task, 0.0)
            with np.errstate(over="ignore"):  # as in float32 on the way of a client
                scales[row] = rescaler, -opposite
            gammas[row] = examples / sum(updates[holder].num_examples[task] for holder in holders[task])
            self.pairs[row, 0] = n * int(cpu_replies.TILE_BYTES)
            self.pairs[row, 4:6] = (examples, 1) if rescaler or opposite else (0, 0)
            self.pairs[row, 2] = self.masks[row].data_ptr()
        self.wide = any(sum(updates[n].num_examples[task] for n in found) >= 2**31 for task, found in holders.items())
        agreement = int(getattr(cpu_replies, options.agreement.upper().replace("-", "_")))
        self.switches = (options.signs == "complete", agreement, float(options.rho))

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
            plane = max(MERGE_BLOCK, GROUP) // 8
            planes = row_addresses(self.scratch("planes", 2 * num_tasks * plane).reshape(-1, plane)).reshape(2, -1)
            broken = np.zeros(len(self.vectors), np.bool_)
            rows, copied = self.rows(start, stop)
            self.kernels.merge_block(
                block.clients.ctypes.data, len(broken), block.pairs.ctypes.data, self.ends, block.size, *self.switches,
                self.wide, self.tiles("clients", len(broken)), rows, *planes, broken,
            )  # fmt: skip
            if copied is not None:
                self.merged[:, start:stop] = copied[:, : stop - start]
            dot, shared = np.zeros((2, num_tasks, num_tasks), np.int64)
            self.kernels.count_signs(*planes, block.size, dot, shared)
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

        m̂^t is made again from the packed replies, which costs less than keeping T · d numbers; where it is 1 everywhere
        (agreement = "none") the replies are not read again.
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
            size = -(-(stop - start) // GROUP) * GROUP
            block = self.block(start, stop) if self.options.agreement != "none" else None
            clients, pairs = (block.clients.ctypes.data, block.pairs.ctypes.data) if block else (0, 0)
            rows, copied = self.rows(start, stop)
            self.kernels.combine_block(
                clients, len(self.vectors), pairs, self.ends, size, *self.switches,
                self.tiles("clients", len(self.vectors)), rows, self.tiles("tasks", len(self.tasks)), learning, ends,
                related, flat, divisors, mean,
            )  # fmt: skip
            if copied is not None:
                self.merged[:, start:stop] = copied[:, : stop - start]

        in_threads(combine_range, list(ranges(self.d, MERGE_BLOCK)))

    def scratch(self, name: str, size: int) -> NDArray[np.uint8]:
        """Bytes to work in, the same when this thread asks again: to touch memory first costs more than to fill it."""
        if not hasattr(self.of_thread, name):
            setattr(self.of_thread, name, np.empty(size, np.uint8))
        found: NDArray[np.uint8] = getattr(self.of_thread, name)
        return found

    def tiles(self, name: str, rows: int) -> int:
        """Address of a tile of float32 for each row."""
        return int(self.scratch(name, rows * int(self.kernels.TILE_BYTES)).ctypes.data)

    def block(self, start: int, stop: int) -> Block:
        """The replies at parameters start..stop; a part of a group is copied and filled up with zeros."""
        clients, pairs = self.clients.copy(), self.pairs.copy()
        size = -(-(stop - start) // GROUP) * GROUP
        owned: list[Any] = []
        if size == stop - start:
            clients[:, 0] += clients[:, 1] * np.uint64(start)
            pairs[:, 2] += np.uint64(start // 8)
        else:
            vectors = np.zeros((len(self.vectors), size), np.float32)
            for n, vector in enumerate(self.vectors):
                vectors[n, : stop - start] = vector[start:stop].float().numpy()
            clients[:, 0], clients[:, 1] = row_addresses(vectors), 4
            owned.append(vectors)
            planes = np.zeros((len(self.masks), size // 8), np.uint8)
            for plane, mask in zip(planes, self.masks, strict=True):
                plane[: packed_length(stop - start)] = mask[start // 8 :].numpy()
            pairs[:, 2] = row_addresses(planes)
            owned.append(planes)
        pairs[:, 6:] = clients[self.of_pair]
        return Block(size, clients, pairs, owned)

    def rows(self, start: int, stop: int) -> tuple[Addresses, Tensor | None]:
        """Where the result goes: into `merged`, or for a part of a group into a copy, to be copied back."""
        if (stop - start) % GROUP == 0:
            rows = np.arange(len(self.tasks), dtype=np.uint64) * np.uint64(4 * self.d)
            return rows + np.uint64(self.merged.data_ptr() + 4 * start), None
        copied = torch.zeros(len(self.tasks), -(-(stop - start) // GROUP) * GROUP)
        copied[:, : stop - start] = self.merged[:, start:stop]
        return row_addresses(copied.numpy()), copied
