"""The same arithmetic on a GPU: Triton compiles these kernels where PyTorch for CUDA has brought it.

Numbers and orders of addition are those of `kernels_cpu` and `kernels_cpu_replies`: float64 sums over tasks and clients
in the order of names, no fused operation that would round otherwise, counts in whole numbers. Only the norms behind the
rescalers are added up in another order, the same one every time on one device. Set TRITON_INTERPRET=1 before the import
to run them on CPU tensors.

A program works on groups of parameters, laid out as (GROUP / 4, 4): a thread reads a row, 16 bytes, at once, and what
it adds up of its own rows needs no other thread. What changes how a kernel is best written (number of tasks, switches,
type of the vectors) is known when it is compiled.
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
from matu_flwr.merging.unify import Magnitude, Norms, first_non_finite

WORDS = 1024  # of 32 parameters, of one program that counts signs
FEW = 4  # task vectors of which a program keeps a group, and sums of its own, in registers
KEPT = 32  # results of so many tasks stay in registers until all have been computed
# Parameters of a group (a multiple of 32) and warps; then groups of a program, or turns of a loop that are one.
# The best of those tried on an H100 with float32 and bfloat16.
FEW_SHAPE = (128, 1, 8)
MANY_SHAPE = (256, 1, 1)
MERGE_SHAPE = (512, 2, 2)
COMBINE_SHAPE = (256, 2)
AGREEMENTS = {"soft": 0, "hard": 1, "threshold-or-soft": 2, "none": 3}
SOFT, HARD, NONE = (tl.constexpr(AGREEMENTS[name]) for name in ("soft", "hard", "none"))
EXACT: dict[str, Any] = {"enable_fp_fusion": False}
FIELDS = 4  # of a pair: vector, mask, examples, voice; its scales are λ, −λ₋, γ


@triton.jit
def in_group(program, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    """(GROUP / 4, 4) int64: the parameters of a group."""
    return program * GROUP + tl.arange(0, GROUP // 4)[:, None] * 4 + tl.arange(0, 4)[None, :]


@triton.jit
def store_bits(bits, flags, program, length, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    """(GROUP / 4, 4) bool as GROUP / 8 bytes of a mask of `length` bytes, the least significant bit first."""
    halves = tl.sum(flags.to(tl.int32) << tl.arange(0, 4)[None, :], axis=1)
    found = tl.sum(tl.reshape(halves, (GROUP // 8, 2)) << (4 * tl.arange(0, 2))[None, :], axis=1)
    at = program * (GROUP // 8) + tl.arange(0, GROUP // 8)
    tl.store(bits + at, found.to(tl.uint8), mask=at < length)


@triton.jit
def address(table, row, kind: tl.constexpr, ALIGNED: tl.constexpr):  # type: ignore[no-untyped-def]
    """A pointer from a table of addresses; ALIGNED: all of them are multiples of 16, so 16 bytes are read at once."""
    found = tl.load(table + row).to(tl.pointer_type(kind))
    if ALIGNED:
        found = tl.multiple_of(found, 16)
    return found


@triton.jit
def elected_by(x, total, top, low, size):  # type: ignore[no-untyped-def]
    """The sums and extremes of a group with one more task in them."""
    wide = x.to(tl.float64)
    return total + wide, tl.where(x > top, x, top), tl.where(x < low, x, low), size + tl.abs(wide)


@triton.jit
def elected(total, top, low, size, tasks, MEAN: tl.constexpr):  # type: ignore[no-untyped-def]
    """τ of a group, its sign as float32, and |τ| and |sign| as float64."""
    if MEAN:
        top = (size / tasks).to(tl.float32)
        low = -top
    tau = tl.where(total > 0, top, tl.where(total < 0, low, 0.0))
    sigma = tl.where(tau > 0, 1.0, tl.where(tau < 0, -1.0, 0.0))
    return tau, sigma, tl.abs(tau).to(tl.float64), tl.abs(sigma).to(tl.float64)


@triton.jit
def columns(rows, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    """The four columns of (GROUP / 4, 4)."""
    even, odd = tl.split(tl.reshape(rows, (GROUP // 4, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def add_where(sums, values, flags):  # type: ignore[no-untyped-def]
    """Add four columns of float64 where their flag is 1 and not 0: exact, so one fused operation each."""
    for c in tl.static_range(4):
        sums = tl.fma(values[c], flags[c], sums)
    return sums


@triton.jit
def add_norms(sums, x, agrees, mu, known, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    """The fields of `Norms` row by row, (GROUP / 4,) float64 each, with one more group in them."""
    own = tl.abs(x).to(tl.float64)
    ones_there = tl.full((GROUP // 4, 4), 1.0, tl.float64)
    is_set = tl.where(agrees, ones_there, 0.0)
    cleared = columns(known - is_set, GROUP)
    is_set, own, mu = columns(is_set, GROUP), columns(own, GROUP), columns(mu, GROUP)
    return (
        sums[0] + ((own[0] + own[1]) + (own[2] + own[3])),
        add_where(sums[1], mu, is_set),
        add_where(sums[2], own, is_set),
        add_where(sums[3], own, cleared),
        add_where(sums[4], mu, cleared),
    )


@triton.jit
def no_norms(GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Nothing added up yet."""
    zero = tl.zeros((GROUP // 4,), tl.float64)
    return zero, zero, zero, zero, zero


@triton.jit
def elect_few(  # type: ignore[no-untyped-def]
    addresses, unified, norms, turns, d, length, programs,
    TASKS: tl.constexpr, MEAN: tl.constexpr, ALIGNED: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """`kernels_cpu.unify_block` for `turns` groups: every value is read once and stays in a register.

    `addresses` (2 T,) int64: of the task vectors, then of the masks. `norms` (5, T, programs) float64: the fields of
    `Norms`.
    """
    program = tl.program_id(0).to(tl.int64)
    sums = ()
    for _ in tl.static_range(TASKS):
        sums = sums + (no_norms(GROUP),)
    for turn in range(turns):
        group = program * turns + turn
        at = in_group(group, GROUP)
        inside = at < d
        total = tl.zeros((GROUP // 4, 4), tl.float64)
        top = tl.zeros((GROUP // 4, 4), tl.float32)
        low = tl.zeros((GROUP // 4, 4), tl.float32)
        size = tl.zeros((GROUP // 4, 4), tl.float64)
        kept = ()
        for t in tl.static_range(TASKS):
            kept = kept + (tl.load(address(addresses, t, tl.float32, ALIGNED) + at, mask=inside, other=0.0),)
        for t in tl.static_range(TASKS):
            total, top, low, size = elected_by(kept[t], total, top, low, size)
        tau, sigma, mu, known = elected(total, top, low, size, TASKS, MEAN)
        tl.store(unified + at, tau, mask=inside)
        added = ()
        for t in tl.static_range(TASKS):
            agrees = kept[t] * sigma > 0
            store_bits(address(addresses, TASKS + t, tl.uint8, False), agrees, group, length, GROUP)
            added = added + (add_norms(sums[t], kept[t], agrees, mu, known, GROUP),)
        sums = added
    for t in tl.static_range(TASKS):
        for field in tl.static_range(5):
            tl.store(norms + (field * TASKS + t) * programs + program, tl.sum(sums[t][field], axis=0))


@triton.jit
def elect_many(  # type: ignore[no-untyped-def]
    addresses, unified, norms, tasks, d, length, programs,
    MEAN: tl.constexpr, ALIGNED: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """`elect_few` for one group and any number of tasks: values are read twice, then mostly from the cache."""
    program = tl.program_id(0).to(tl.int64)
    at = in_group(program, GROUP)
    inside = at < d
    total = tl.zeros((GROUP // 4, 4), tl.float64)
    top = tl.zeros((GROUP // 4, 4), tl.float32)
    low = tl.zeros((GROUP // 4, 4), tl.float32)
    size = tl.zeros((GROUP // 4, 4), tl.float64)
    for t in range(tasks):
        x = tl.load(address(addresses, t, tl.float32, ALIGNED) + at, mask=inside, other=0.0)
        total, top, low, size = elected_by(x, total, top, low, size)
    tau, sigma, mu, known = elected(total, top, low, size, tasks, MEAN)
    tl.store(unified + at, tau, mask=inside)
    for t in range(tasks):
        x = tl.load(address(addresses, t, tl.float32, ALIGNED) + at, mask=inside, other=0.0)
        agrees = x * sigma > 0
        store_bits(address(addresses, tasks + t, tl.uint8, False), agrees, program, length, GROUP)
        sums = add_norms(no_norms(GROUP), x, agrees, mu, known, GROUP)
        for field in tl.static_range(5):
            tl.store(norms + (field * tasks + t) * programs + program, tl.sum(sums[field], axis=0))


@triton.jit
def read_pair(pair, at, start, inside, d, KIND: tl.constexpr, ALIGNED: tl.constexpr, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Vector as float32, mask as bool, of one holder of a task, at a group that begins at parameter `start`."""
    x = tl.load(address(pair, 0, KIND, ALIGNED) + at, mask=inside, other=0.0).to(tl.float32)
    row = tl.arange(0, GROUP // 4)  # half a byte of the mask
    bits = tl.load(address(pair, 1, tl.uint8, False) + start // 8 + row // 2, mask=start + 4 * row < d, other=0)
    bits = bits.to(tl.int32) >> (4 * (row % 2))
    return x, ((bits[:, None] >> tl.arange(0, 4)[None, :]) & 1) != 0


@triton.jit
def vote(x, mask, COMPLETE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sign of a holder's vector: +1, −1, 0."""
    said = tl.where(mask, x, -x if COMPLETE else 0.0)
    return (said > 0).to(tl.int32) - (said < 0).to(tl.int32)


@triton.jit
def agreed(votes, count, rho, AGREEMENT: tl.constexpr):  # type: ignore[no-untyped-def]
    """m̂ from the sum of signs of `count` holders; not asked for where it is 1 everywhere.

    `rho` is in memory: a number given to a kernel would be rounded to float32.
    """
    alpha = tl.abs(votes).to(tl.float64) / count.to(tl.float64)
    if AGREEMENT == SOFT:
        return alpha
    else:
        return tl.where(alpha >= tl.load(rho), 1.0, 0.0 if AGREEMENT == HARD else alpha)


@triton.jit
def merge_group(  # type: ignore[no-untyped-def]
    pairs, scales, ends, merged, negative, support, broken, rho, tasks, d, length,
    COMPLETE: tl.constexpr, AGREEMENT: tl.constexpr, KIND: tl.constexpr, COUNT: tl.constexpr, ALIGNED: tl.constexpr,
    FIELDS: tl.constexpr, GROUP: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """`kernels_cpu_replies.merge_block` for one task and one group. Programs of one group's tasks follow each other.

    `broken` is set where a sum is not finite: that of a vector with NaN or infinity never is.
    """
    t, program = (tl.program_id(0) % tasks).to(tl.int64), (tl.program_id(0) // tasks).to(tl.int64)
    at = in_group(program, GROUP)
    inside = at < d
    tau = tl.zeros((GROUP // 4, 4), tl.float64)
    votes = tl.zeros((GROUP // 4, 4), tl.int32)
    weighted = tl.zeros((GROUP // 4, 4), COUNT)
    first, last = tl.load(ends + t), tl.load(ends + t + 1)
    for e in tl.range(first, last, loop_unroll_factor=UNROLL):
        pair = pairs + e * FIELDS
        x, mask = read_pair(pair, at, program * GROUP, inside, d, KIND, ALIGNED, GROUP)
        scale, opposite = tl.load(scales + 3 * e).to(tl.float32), tl.load(scales + 3 * e + 1).to(tl.float32)
        tau += tl.load(scales + 3 * e + 2) * (x * tl.where(mask, scale, opposite)).to(tl.float64)
        sign = vote(x, mask, COMPLETE)
        if AGREEMENT != NONE:
            votes += sign * tl.load(pair + 3).to(tl.int32)
        if COMPLETE:
            weighted += sign.to(COUNT) * tl.load(pair + 2).to(COUNT)
    unfit = tl.max((tau * 0.0 != 0.0).to(tl.int32), axis=None)
    tl.store(broken, 1, mask=unfit > 0)
    if AGREEMENT != NONE:
        tau = tau * agreed(votes, last - first, rho, AGREEMENT)
    tl.store(merged + t * d + at, tau.to(tl.float32), mask=inside)
    if COMPLETE:
        below, above = weighted < 0, weighted > 0
    else:
        below, above = tau < 0, tau > 0
    store_bits(negative + t * length, below, program, length, GROUP)
    store_bits(support + t * length, below | above, program, length, GROUP)


@triton.jit
def ones(word):  # type: ignore[no-untyped-def]
    """Set bits of each int32, as int32: pairs, then fours, then bytes are added up inside the word."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return (word & 0xFF) + ((word >> 8) & 0xFF) + ((word >> 16) & 0xFF) + ((word >> 24) & 0xFF)


@triton.jit
def count_signs(negative, support, counts, tasks, words, WORDS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Add to `counts` (2, T, T) int64, for a task with those before it and one group of words: support, agreement."""
    at = tl.program_id(0).to(tl.int64) * WORDS + tl.arange(0, WORDS)
    inside = at < words
    a = tl.program_id(1).to(tl.int64)
    support_a = tl.load(support + a * words + at, mask=inside, other=0)
    negative_a = tl.load(negative + a * words + at, mask=inside, other=0)
    for b in range(a + 1):
        where = support_a & tl.load(support + b * words + at, mask=inside, other=0)
        differ = (negative_a ^ tl.load(negative + b * words + at, mask=inside, other=0)) & where
        # one sum for both: the bits of 1,024 words are no more than 2^15, so neither reaches the other's half
        both = tl.sum(ones(where) + (ones(differ) << 16), axis=0)
        known, differing = (both & 0xFFFF).to(tl.int64), ((both >> 16) & 0xFFFF).to(tl.int64)
        # whole numbers: the order in which programs add does not matter
        tl.atomic_add(counts + a * tasks + b, known)
        tl.atomic_add(counts + (tasks + a) * tasks + b, known - 2 * differing)


@triton.jit
def combine_group(  # type: ignore[no-untyped-def]
    pairs, ends, merged, before, learning, related, weights, divisors, rho, d, start, stop, row,
    LEARNERS: tl.constexpr, RELATED: tl.constexpr, MEAN: tl.constexpr, COMPLETE: tl.constexpr,
    AGREEMENT: tl.constexpr, KIND: tl.constexpr, ALIGNED: tl.constexpr, FIELDS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """`kernels_cpu_replies.combine_block` for one group of parameters from `start` on and LEARNERS tasks that learn.

    `related` and `weights` (LEARNERS, RELATED): rows with fewer others are filled up with weight 0.
    `before` has τ̂ of parameter `start` first, its rows `row` apart; it may be where the results go.
    """
    program = tl.program_id(0).to(tl.int64)
    local = in_group(program, GROUP)
    at = start + local
    inside = at < stop
    found = ()
    for learner in tl.static_range(LEARNERS):
        t = tl.load(learning + learner)
        borrowed = tl.zeros((GROUP // 4, 4), tl.float64)
        for r in tl.static_range(RELATED):
            other = tl.load(before + tl.load(related + learner * RELATED + r) * row + local, mask=inside, other=0.0)
            borrowed += tl.load(weights + learner * RELATED + r) * other.to(tl.float64)
        if AGREEMENT != NONE:
            votes = tl.zeros((GROUP // 4, 4), tl.int32)
            first, last = tl.load(ends + t), tl.load(ends + t + 1)
            for e in range(first, last):
                x, mask = read_pair(pairs + e * FIELDS, at, start + program * GROUP, inside, d, KIND, ALIGNED, GROUP)
                votes += vote(x, mask, COMPLETE) * tl.load(pairs + e * FIELDS + 3).to(tl.int32)
            borrowed = borrowed * agreed(votes, last - first, rho, AGREEMENT)
        own = tl.load(before + t * row + local, mask=inside, other=0.0).to(tl.float64)
        divisor = tl.load(divisors + learner)
        tau = (own + borrowed) / divisor if MEAN else own + borrowed / divisor
        found = found + (tau.to(tl.float32),)
    tl.debug_barrier()  # every value of this group has been read
    for learner in tl.static_range(LEARNERS):
        tl.store(merged + tl.load(learning + learner) * d + at, found[learner], mask=inside)


def aligned(tensors: Sequence[Tensor]) -> bool:
    """Whether all begin at a multiple of 16 bytes."""
    return all(tensor.data_ptr() % 16 == 0 for tensor in tensors)


def unify_in_triton(
    taus: Sequence[Tensor], *, packed: bool, magnitude: Magnitude = "max"
) -> tuple[Tensor, list[Tensor], list[Norms]]:
    """What `unify_on_cpu` does, for vectors on one GPU, without a copy to the host."""
    taus = [tau.contiguous() for tau in taus]
    tasks, d, device = len(taus), taus[0].numel(), taus[0].device
    unified = torch.empty(d, device=device)
    masks = [torch.empty(packed_length(d), dtype=torch.uint8, device=device) for _ in taus]
    few = tasks <= FEW
    group, warps, turns = FEW_SHAPE if few else MANY_SHAPE
    programs = triton.cdiv(d, group * turns)
    norms = torch.empty(5, tasks, programs, dtype=torch.float64, device=device)
    if programs:
        where = (torch.tensor([part.data_ptr() for part in (*taus, *masks)], device=device), unified, norms)
        common = {"MEAN": magnitude == "mean", "ALIGNED": aligned(taus), "GROUP": group, "num_warps": warps, **EXACT}
        if few:
            elect_few[(programs,)](*where, turns, d, packed_length(d), programs, TASKS=tasks, **common)
        else:
            elect_many[(programs,)](*where, tasks, d, packed_length(d), programs, **common)
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
        if len({vector.dtype for vector in vectors}) > 1:
            vectors = [vector.float() for vector in vectors]
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
                pairs.append([vectors[n].data_ptr(), masks[-1].data_ptr(), *voice])
                scales.append([rescaler, -opposite, examples / total])
        self.vectors, self.masks = vectors, masks  # the tables have addresses alone
        self.pairs = self.table(pairs, torch.int64)
        self.scales = self.table(scales, torch.float64)
        self.rho = self.table([options.rho], torch.float64)
        ends = [0]
        for found in holders.values():
            ends.append(ends[-1] + len(found))
        self.ends = self.table(ends, torch.int64)
        most = max(sum(updates[n].num_examples[task] for n in found) for task, found in holders.items())
        self.count = tl.int32 if most < 2**31 else tl.int64
        self.switches: dict[str, Any] = {
            "COMPLETE": options.signs == "complete", "AGREEMENT": AGREEMENTS[options.agreement],
            "KIND": tl.float32 if vectors[0].dtype == torch.float32 else tl.bfloat16,
            "ALIGNED": aligned(vectors), "FIELDS": FIELDS, **EXACT,
        }  # fmt: skip

    def table(self, values: Sequence[Any], dtype: torch.dtype) -> Tensor:
        """Numbers on the device."""
        return torch.tensor(values, dtype=dtype, device=self.device)

    def merge(self) -> tuple[SignAgreement, int | None]:
        """Pass 1: τ̂^t of every task, where directions agree, and the first client whose vector has NaN or infinity."""
        tasks, d = self.merged.shape
        agreement = SignAgreement(tasks)
        group, warps, unroll = MERGE_SHAPE
        programs = triton.cdiv(d, group)
        if not programs:
            return agreement, None
        length = programs * group // 8
        planes = torch.empty(2, tasks, length, dtype=torch.uint8, device=self.device)
        broken = torch.zeros(1, dtype=torch.int32, device=self.device)
        merge_group[(tasks * programs,)](  # one axis: others end at 65,535
            self.pairs, self.scales, self.ends, self.merged, planes[0], planes[1], broken, self.rho, tasks, d,
            length, COUNT=self.count, GROUP=group, UNROLL=unroll, num_warps=warps, **self.switches,
        )  # fmt: skip
        words = length // 4
        counts = torch.zeros(2, tasks, tasks, dtype=torch.int64, device=self.device)
        count_signs[(triton.cdiv(words, WORDS), tasks)](
            planes[0].view(torch.int32), planes[1].view(torch.int32), counts, tasks, words, WORDS=WORDS
        )
        both, dot = (part.tril() + part.tril(-1).T for part in counts.cpu())
        agreement.both += both
        agreement.dot += dot
        agreement.d = d
        return agreement, self.first_unfit() if broken.item() else None

    def first_unfit(self) -> int | None:
        """The first client whose vector has NaN or infinity; None if a sum alone was too large."""
        return next((n for n, vector in enumerate(self.vectors) if first_non_finite(vector) is not None), None)

    def combine(self, weights: Mapping[str, Mapping[str, float]]) -> None:
        """Pass 2: the cross-task step, in place.

        Results of up to KEPT tasks stay in registers until all have been computed. With more, `BLOCK` parameters of
        every task are copied at a time.
        """
        from matu_flwr.merging.kernels_torch import BLOCK

        index = {task: row for row, task in enumerate(self.tasks)}
        mean, most = self.options.combine == "mean", max(map(len, weights.values()))
        related, strength, divisors = [], [], []
        for task, others in weights.items():
            unused = most - len(others)
            related.append([index[other] for other in others] + [index[task]] * unused)
            strength.append([*others.values(), *[0.0] * unused])
            divisors.append(1 + sum(others.values()) if mean else float(len(others)))
        tables = (
            self.table([index[task] for task in weights], torch.int64), self.table(related, torch.int64),
            self.table(strength, torch.float64), self.table(divisors, torch.float64),
        )  # fmt: skip
        d, learners = self.merged.shape[1], len(weights)
        group, warps = COMBINE_SHAPE
        at_once = learners <= KEPT
        for start in range(0, d, d if at_once else BLOCK):
            stop = d if at_once else min(start + BLOCK, d)
            before = self.merged if at_once else self.merged[:, start:stop].clone(memory_format=torch.contiguous_format)
            for first in range(0, learners, KEPT):
                part = [table[first : first + KEPT] for table in tables]
                combine_group[(triton.cdiv(stop - start, group),)](
                    self.pairs, self.ends, self.merged, before, *part, self.rho, d, start, stop,
                    before.shape[1], LEARNERS=len(part[0]), RELATED=most, MEAN=mean, GROUP=group,
                    num_warps=warps, **self.switches,
                )  # fmt: skip
