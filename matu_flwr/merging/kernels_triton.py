"""The same arithmetic on a GPU: Triton compiles these kernels where PyTorch for CUDA has brought it.

Numbers and orders of addition are those of `kernels_cpu` and `kernels_cpu_replies`: float64 sums over tasks and clients
in the order of names, no contraction to fused operations, counts in whole numbers. Only the norms behind the rescalers
are added up in another order, the same one every time on one device. Set TRITON_INTERPRET=1 before the import to run
them on CPU tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from matu_flwr.merging.options import MergeOptions
from matu_flwr.merging.packing import PackedMasks, pack, packed_length, unpack
from matu_flwr.merging.task_aggregation import ClientUpdate
from matu_flwr.merging.task_graph import SignAgreement
from matu_flwr.merging.unify import Magnitude, Norms

GROUP = 1024  # parameters of one program; a multiple of 32
AGREEMENTS = {"soft": 0, "hard": 1, "threshold-or-soft": 2, "none": 3}
EXACT: dict[str, Any] = {"enable_fp_fusion": False}
FIELDS = 6  # of a pair: vector, width, mask, examples, voice, client; its scales are λ, −λ₋, γ


@triton.jit
def pack_bits(flags, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    """(GROUP,) bool -> (GROUP / 8,) uint8, the least significant bit first."""
    wide = tl.reshape(flags.to(tl.int32), (GROUP // 8, 8)) << tl.arange(0, 8)[None, :]
    return tl.sum(wide, axis=1).to(tl.uint8)


@triton.jit
def elect(  # type: ignore[no-untyped-def]
    taus, unified, masks, norms, counted, tasks, mean, d, length, programs, GROUP: tl.constexpr
):
    """`kernels_cpu.unify_block` for one group.

    `norms` (5, T, programs) float64: the fields of `Norms`; `counted` is T as float64.
    """
    program = tl.program_id(0).to(tl.int64)
    at = program * GROUP + tl.arange(0, GROUP)
    inside = at < d
    total = tl.zeros((GROUP,), tl.float64)
    top = tl.zeros((GROUP,), tl.float32)
    low = tl.zeros((GROUP,), tl.float32)
    size = tl.zeros((GROUP,), tl.float64)
    for t in range(tasks):
        tau = tl.load(taus + t).to(tl.pointer_type(tl.float32))
        x = tl.load(tau + at, mask=inside, other=0.0)
        total += x.to(tl.float64)
        top = tl.where(x > top, x, top)
        low = tl.where(x < low, x, low)
        size += tl.abs(x).to(tl.float64)
    average = (size / tl.load(counted)).to(tl.float32)
    top, low = tl.where(mean > 0, average, top), tl.where(mean > 0, -average, low)
    elected = tl.where(total > 0, top, tl.where(total < 0, low, 0.0))
    tl.store(unified + at, elected, mask=inside)
    sigma = tl.where(elected > 0, 1.0, tl.where(elected < 0, -1.0, 0.0))
    bytes_at = program * (GROUP // 8) + tl.arange(0, GROUP // 8)
    for t in range(tasks):
        tau = tl.load(taus + t).to(tl.pointer_type(tl.float32))
        x = tl.load(tau + at, mask=inside, other=0.0)
        agrees, differs = x * sigma > 0, (x * sigma <= 0) & (sigma != 0)
        bits = tl.load(masks + t).to(tl.pointer_type(tl.uint8))
        tl.store(bits + bytes_at, pack_bits(agrees, GROUP), mask=bytes_at < length)
        own, mu = tl.abs(x).to(tl.float64), tl.abs(elected).to(tl.float64)
        place, step = norms + t * programs + program, tasks * programs
        tl.store(place, tl.sum(own, axis=0))
        tl.store(place + step, tl.sum(tl.where(agrees, mu, 0.0), axis=0))
        tl.store(place + 2 * step, tl.sum(tl.where(agrees, own, 0.0), axis=0))
        tl.store(place + 3 * step, tl.sum(tl.where(differs, own, 0.0), axis=0))
        tl.store(place + 4 * step, tl.sum(tl.where(differs, mu, 0.0), axis=0))


@triton.jit
def read_pair(pair, at, inside):  # type: ignore[no-untyped-def]
    """Vector as float32, mask as bool, of one holder of a task."""
    if tl.load(pair + 1) == 4:
        x = tl.load(tl.load(pair).to(tl.pointer_type(tl.float32)) + at, mask=inside, other=0.0)
    else:
        x = tl.load(tl.load(pair).to(tl.pointer_type(tl.bfloat16)) + at, mask=inside, other=0.0).to(tl.float32)
    bits = tl.load(tl.load(pair + 2).to(tl.pointer_type(tl.uint8)) + at // 8, mask=inside, other=0)
    return x, ((bits.to(tl.int32) >> (at % 8).to(tl.int32)) & 1) != 0


@triton.jit
def vote(x, mask, complete):  # type: ignore[no-untyped-def]
    """Sign of a holder's vector: +1, −1, 0."""
    said = tl.where(mask, x, x * tl.where(complete, -1.0, 0.0))
    return (said > 0).to(tl.int32) - (said < 0).to(tl.int32)


@triton.jit
def agreed(votes, count, agreement, rho):  # type: ignore[no-untyped-def]
    """m̂ from the sum of signs of `count` holders."""
    alpha = tl.abs(votes).to(tl.float64) / count.to(tl.float64)
    other = tl.where(agreement == 1, 0.0, alpha)
    threshold = tl.where(alpha >= rho, 1.0, other)
    return tl.where(agreement == 3, 1.0, tl.where(agreement == 0, alpha, threshold))


@triton.jit
def merge_group(  # type: ignore[no-untyped-def]
    pairs, scales, ends, merged, negative, support, broken, switches, tasks, d, length,
    FIELDS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """`kernels_cpu_replies.merge_block` for one task and one group. Programs of one group's tasks follow each other."""
    t, program = (tl.program_id(0) % tasks).to(tl.int64), (tl.program_id(0) // tasks).to(tl.int64)
    at = program * GROUP + tl.arange(0, GROUP)
    inside = at < d
    complete, agreement, rho = tl.load(switches) > 0, tl.load(switches + 1), tl.load(switches + 2)
    tau = tl.zeros((GROUP,), tl.float64)
    votes = tl.zeros((GROUP,), tl.int32)
    weighted = tl.zeros((GROUP,), tl.int64)
    first, last = tl.load(ends + t), tl.load(ends + t + 1)
    for e in range(first, last):
        pair = pairs + e * FIELDS
        x, mask = read_pair(pair, at, inside)
        scale = tl.where(mask, tl.load(scales + 3 * e), tl.load(scales + 3 * e + 1)).to(tl.float32)
        tau += tl.load(scales + 3 * e + 2) * (x * scale).to(tl.float64)
        sign = vote(x, mask, complete)
        votes += sign * tl.load(pair + 4).to(tl.int32)
        weighted += sign.to(tl.int64) * tl.load(pair + 3)
        unfit = tl.sum((x * 0.0 != 0.0).to(tl.int32), axis=0)
        tl.store(broken + tl.load(pair + 5), 1, mask=unfit > 0)
    tau = tau * agreed(votes, last - first, agreement, rho)
    tl.store(merged + t * d + at, tau.to(tl.float32), mask=inside)
    below = tl.where(complete, weighted < 0, tau < 0)
    above = tl.where(complete, weighted > 0, tau > 0)
    bytes_at = program * (GROUP // 8) + tl.arange(0, GROUP // 8)
    tl.store(negative + t * length + bytes_at, pack_bits(below, GROUP))
    tl.store(support + t * length + bytes_at, pack_bits(below | above, GROUP))


@triton.jit
def ones(word):  # type: ignore[no-untyped-def]
    """Set bits of each int32, as int32: pairs, then fours, then bytes are added up inside the word."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return (word & 0xFF) + ((word >> 8) & 0xFF) + ((word >> 16) & 0xFF) + ((word >> 24) & 0xFF)


@triton.jit
def count_signs(negative, support, counts, tasks, words, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Add to `counts` (2, T, T) int64, for one group of words of every pair of tasks: shared support, agreement."""
    at = tl.program_id(0).to(tl.int64) * GROUP + tl.arange(0, GROUP)
    inside = at < words
    for a in range(tasks):
        support_a = tl.load(support + a * words + at, mask=inside, other=0)
        negative_a = tl.load(negative + a * words + at, mask=inside, other=0)
        for b in range(a + 1):
            where = support_a & tl.load(support + b * words + at, mask=inside, other=0)
            differ = (negative_a ^ tl.load(negative + b * words + at, mask=inside, other=0)) & where
            known = tl.sum(ones(where), axis=0).to(tl.int64)
            agreeing = known - 2 * tl.sum(ones(differ), axis=0).to(tl.int64)
            # whole numbers: the order in which programs add does not matter
            tl.atomic_add(counts + a * tasks + b, known)
            tl.atomic_add(counts + (tasks + a) * tasks + b, agreeing)


@triton.jit
def combine_group(  # type: ignore[no-untyped-def]
    pairs, ends, merged, before, learning, related_ends, related, weights, divisors, switches, d, start, stop, mean,
    FIELDS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """`kernels_cpu_replies.combine_block` for one task that learns and one group; `before` (T, stop − start) is τ̂."""
    learner, size = tl.program_id(0), stop - start
    local = tl.program_id(1).to(tl.int64) * GROUP + tl.arange(0, GROUP)
    at = start + local
    inside = at < stop
    complete, agreement, rho = tl.load(switches) > 0, tl.load(switches + 1), tl.load(switches + 2)
    t = tl.load(learning + learner)
    votes = tl.zeros((GROUP,), tl.int32)
    first, last = tl.load(ends + t), tl.load(ends + t + 1)
    for e in range(first, tl.where(agreement == 3, first, last)):  # nobody is asked where m̂ is 1 everywhere
        x, mask = read_pair(pairs + e * FIELDS, at, inside)
        votes += vote(x, mask, complete) * tl.load(pairs + e * FIELDS + 4).to(tl.int32)
    borrowed = tl.zeros((GROUP,), tl.float64)
    for r in range(tl.load(related_ends + learner), tl.load(related_ends + learner + 1)):
        other = tl.load(before + tl.load(related + r) * size + local, mask=inside, other=0.0)
        borrowed += tl.load(weights + r) * other.to(tl.float64)
    borrowed = borrowed * agreed(votes, last - first, agreement, rho)
    own = tl.load(before + t * size + local, mask=inside, other=0.0).to(tl.float64)
    divisor = tl.load(divisors + learner)
    tau = tl.where(mean > 0, (own + borrowed) / divisor, own + borrowed / divisor)
    tl.store(merged + t * d + at, tau.to(tl.float32), mask=inside)


def unify_in_triton(
    taus: Sequence[Tensor], *, packed: bool, magnitude: Magnitude = "max"
) -> tuple[Tensor, list[Tensor], list[Norms]]:
    """What `unify_on_cpu` does, for vectors on one GPU, without a copy to the host."""
    taus = [tau.contiguous() for tau in taus]
    tasks, d, device = len(taus), taus[0].numel(), taus[0].device
    unified = torch.empty(d, device=device)
    masks = [torch.empty(packed_length(d), dtype=torch.uint8, device=device) for _ in taus]
    programs = triton.cdiv(d, GROUP)
    norms = torch.zeros(5, tasks, programs, dtype=torch.float64, device=device)
    if programs:
        tables = [torch.tensor([part.data_ptr() for part in parts], device=device) for parts in (taus, masks)]
        counted = torch.tensor([tasks], dtype=torch.float64, device=device)
        elect[(programs,)](
            tables[0], unified, tables[1], norms, counted, tasks, int(magnitude == "mean"), d, packed_length(d),
            programs, GROUP=GROUP, **EXACT,
        )  # fmt: skip
    found = [Norms(*row) for row in norms.sum(dim=2).T.tolist()]
    return unified, masks if packed else [unpack(bits, d) for bits in masks], found


class MergeInTriton:
    """What `MergeOnCpu` does, for replies on one GPU, without a copy to the host."""

    def __init__(
        self, updates: Sequence[ClientUpdate], tasks: list[str], options: MergeOptions, merged: Tensor
    ) -> None:
        self.tasks, self.options, self.merged = tasks, options, merged
        self.num_clients, self.device = len(updates), merged.device
        vectors = [update.modulated.vector.contiguous() for update in updates]
        holders = {task: [n for n, update in enumerate(updates) if task in update.num_examples] for task in tasks}
        pairs, scales, masks = [], [], []
        for task, found in holders.items():
            total = sum(updates[n].num_examples[task] for n in found)
            for n in found:
                examples, rescaler = updates[n].num_examples[task], updates[n].modulated.rescalers[task]
                by_task = updates[n].modulated.masks
                bits = by_task.bits[task] if isinstance(by_task, PackedMasks) else pack(by_task[task])
                masks.append(bits.contiguous())
                opposite = updates[n].modulated.opposites.get(task, 0.0)
                voice = (examples, 1) if rescaler or opposite else (0, 0)
                where = (vectors[n].data_ptr(), vectors[n].element_size(), masks[-1].data_ptr())
                pairs.append([*where, *voice, n])
                scales.append([rescaler, -opposite, examples / total])
        self.owned = (vectors, masks)  # the tables have addresses alone
        self.pairs = self.table(pairs, torch.int64)
        self.scales = self.table(scales, torch.float64)
        ends = [0]
        for found in holders.values():
            ends.append(ends[-1] + len(found))
        self.ends = self.table(ends, torch.int64)
        complete, agreement = options.signs == "complete", AGREEMENTS[options.agreement]
        self.switches = self.table([float(complete), float(agreement), options.rho], torch.float64)

    def table(self, values: Sequence[Any], dtype: torch.dtype) -> Tensor:
        """Numbers on the device."""
        return torch.tensor(values, dtype=dtype, device=self.device)

    def merge(self) -> tuple[SignAgreement, int | None]:
        """Pass 1: τ̂^t of every task, where directions agree, and the first client whose vector has NaN or infinity."""
        tasks, d = self.merged.shape
        agreement = SignAgreement(tasks)
        programs = triton.cdiv(d, GROUP)
        if not programs:
            return agreement, None
        length = programs * GROUP // 8
        planes = torch.empty(2, tasks, length, dtype=torch.uint8, device=self.device)
        broken = torch.zeros(self.num_clients, dtype=torch.int32, device=self.device)
        merge_group[(tasks * programs,)](  # one axis: others end at 65,535
            self.pairs, self.scales, self.ends, self.merged, planes[0], planes[1], broken, self.switches, tasks, d,
            length, FIELDS=FIELDS, GROUP=GROUP, **EXACT,
        )  # fmt: skip
        words = length // 4
        counts = torch.zeros(2, tasks, tasks, dtype=torch.int64, device=self.device)
        count_signs[(triton.cdiv(words, GROUP),)](
            planes[0].view(torch.int32), planes[1].view(torch.int32), counts, tasks, words, GROUP=GROUP
        )
        both, dot = (part.tril() + part.tril(-1).T for part in counts.cpu())
        agreement.both += both
        agreement.dot += dot
        agreement.d = d
        unfit = broken.nonzero()
        return agreement, int(unfit[0, 0]) if len(unfit) else None

    def combine(self, weights: Mapping[str, Mapping[str, float]]) -> None:
        """Pass 2: the cross-task step, in place; `BLOCK` parameters of every task are copied at a time."""
        from matu_flwr.merging.kernels_torch import BLOCK

        index = {task: row for row, task in enumerate(self.tasks)}
        ends = [0]
        for others in weights.values():
            ends.append(ends[-1] + len(others))
        mean = self.options.combine == "mean"
        flat = [(index[other], weight) for others in weights.values() for other, weight in others.items()]
        divisors = [1 + sum(others.values()) if mean else float(len(others)) for others in weights.values()]
        tables = (
            self.table([index[task] for task in weights], torch.int64),
            self.table(ends, torch.int64),
            self.table([other for other, _ in flat], torch.int64),
            self.table([weight for _, weight in flat], torch.float64),
            self.table(divisors, torch.float64),
        )
        d = self.merged.shape[1]
        for start in range(0, d, BLOCK):
            stop = min(start + BLOCK, d)
            before = self.merged[:, start:stop].clone(memory_format=torch.contiguous_format)
            combine_group[(len(weights), triton.cdiv(stop - start, GROUP))](
                self.pairs, self.ends, self.merged, before, *tables, self.switches, d, start, stop, int(mean),
                FIELDS=FIELDS, GROUP=GROUP, **EXACT,
            )  # fmt: skip
