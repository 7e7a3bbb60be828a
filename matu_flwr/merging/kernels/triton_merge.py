"""`aggregate` on a GPU, in Triton: replies to task vectors, agreement of signs, and the cross-task step.

As exact as `triton_unify`, whose groups of parameters these kernels work on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from matu_flwr.merging.blocks import GPU_BLOCK
from matu_flwr.merging.kernels.triton_unify import EXACT, address, aligned, divided, in_group, store_bits
from matu_flwr.merging.masks import bits_of
from matu_flwr.merging.options import MergeOptions
from matu_flwr.merging.task_graph import SignAgreement
from matu_flwr.merging.task_vectors import ClientUpdate, first_non_finite

# Parameters of a group (a multiple of 32), warps, and holders whose turns of the loop are one: the best of those tried
# on an H100 with float32 and bfloat16.
MERGE_SHAPE = (512, 2, 2)
COMBINE_SHAPE = (256, 2)
WORDS = 1024  # of 32 parameters, of one program that counts signs
KEPT = 32  # results of so many tasks stay in registers until all have been computed
AGREEMENTS = {"soft": 0, "hard": 1, "threshold-or-soft": 2, "none": 3}
SOFT, HARD, NONE = (tl.constexpr(AGREEMENTS[name]) for name in ("soft", "hard", "none"))
FIELDS = 4  # of a pair: vector, mask, examples, voice; its scales are λ, −λ₋, γ


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
    """`cpu_replies.merge_block` for one task and one group. Programs of one group's tasks follow each other.

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
    """`cpu_replies.combine_block` for one group of parameters from `start` on and LEARNERS tasks that learn.

    `related` and `weights` (LEARNERS, RELATED): rows with fewer others are filled up with weight 0. `divisors`
    (LEARNERS, 2): and their reciprocals. `before` has τ̂ of parameter `start` first, its rows `row` apart; it may be
    where the results go.
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
        divisor, share = tl.load(divisors + 2 * learner), tl.load(divisors + 2 * learner + 1)
        tau = divided(own + borrowed, divisor, share) if MEAN else own + divided(borrowed, divisor, share)
        found = found + (tau.to(tl.float32),)
    tl.debug_barrier()  # every value of this group has been read
    for learner in tl.static_range(LEARNERS):
        tl.store(merged + tl.load(learning + learner) * d + at, found[learner], mask=inside)


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
                masks.append(bits_of(updates[n].modulated.masks, task).contiguous())
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

        Results of up to KEPT tasks stay in registers until all have been computed. With more, `GPU_BLOCK` parameters of
        every task are copied at a time.
        """
        index = {task: row for row, task in enumerate(self.tasks)}
        mean, most = self.options.combine == "mean", max(map(len, weights.values()))
        related, strength, divisors = [], [], []
        for task, others in weights.items():
            unused = most - len(others)
            related.append([index[other] for other in others] + [index[task]] * unused)
            strength.append([*others.values(), *[0.0] * unused])
            divisor = 1 + sum(others.values()) if mean else float(len(others))
            divisors.append((divisor, 1 / divisor))
        tables = (
            self.table([index[task] for task in weights], torch.int64), self.table(related, torch.int64),
            self.table(strength, torch.float64), self.table(divisors, torch.float64),
        )  # fmt: skip
        d, learners = self.merged.shape[1], len(weights)
        group, warps = COMBINE_SHAPE
        at_once = learners <= KEPT
        for start in range(0, d, d if at_once else GPU_BLOCK):
            stop = d if at_once else min(start + GPU_BLOCK, d)
            before = self.merged if at_once else self.merged[:, start:stop].clone(memory_format=torch.contiguous_format)
            for first in range(0, learners, KEPT):
                part = [table[first : first + KEPT] for table in tables]
                combine_group[(triton.cdiv(stop - start, group),)](
                    self.pairs, self.ends, self.merged, before, *part, self.rho, d, start, stop,
                    before.shape[1], LEARNERS=len(part[0]), RELATED=most, MEAN=mean, GROUP=group,
                    num_warps=warps, **self.switches,
                )  # fmt: skip
