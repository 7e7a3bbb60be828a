"""`unify` on a GPU: Triton compiles these kernels where PyTorch for CUDA has brought it.

Here and in `triton_merge` numbers and orders of addition are those of `cpu_unify` and `cpu_replies`:
float64 sums over tasks and clients in the order of names, no fused operation that would round otherwise, counts in
whole numbers. Only the norms behind the rescalers are added up in another order, the same one every time on one device.
Set TRITON_INTERPRET=1 before the import to run them on CPU tensors.

A program works on groups of parameters, laid out as (GROUP / 4, 4): a thread reads a row, 16 bytes, at once, and what
it adds up of its own rows needs no other thread. What changes how a kernel is best written (number of tasks, switches,
type of the vectors) is known when it is compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from matu_flwr.choices import Magnitude
from matu_flwr.merging.blocks import Norms
from matu_flwr.merging.masks import packed_length

FEW = 4  # task vectors of which a program keeps a group, and sums of its own, in registers
# Parameters of a group (a multiple of 32), warps and groups of a program: the best of those tried on an H100.
FEW_SHAPE = (128, 1, 8)
MANY_SHAPE = (256, 1, 1)
EXACT: dict[str, Any] = {"enable_fp_fusion": False}


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
def nothing_elected(GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    """What `elected_by` begins with: Σ τ, the largest and the smallest of 0 and τ, Σ |τ|; (GROUP / 4, 4) each."""
    wide, narrow = tl.zeros((GROUP // 4, 4), tl.float64), tl.zeros((GROUP // 4, 4), tl.float32)
    return wide, narrow, narrow, wide


@triton.jit
def elected_by(x, total, top, low, size):  # type: ignore[no-untyped-def]
    """The sums and extremes of a group with one more task in them."""
    wide = x.to(tl.float64)
    return total + wide, tl.where(x > top, x, top), tl.where(x < low, x, low), size + tl.abs(wide)


@triton.jit
def divided(value, divisor, share):  # type: ignore[no-untyped-def]
    """Divide as a division rounds it, from share = 1 / divisor: the rest of a first guess corrects it (Markstein).

    float64, far from the smallest numbers. Kernels that did this by the GPU's own division were slower.
    """
    share = tl.zeros_like(value) + share
    guess = value * share
    rest = tl.fma(-guess, tl.zeros_like(value) + divisor, value)
    return tl.where(tl.abs(rest) > 0, tl.fma(rest, share, guess), guess)  # keeps -0 and infinity


@triton.jit
def elected(total, top, low, size, tasks, MEAN: tl.constexpr):  # type: ignore[no-untyped-def]
    """τ of a group, its sign as float32, and |τ| and |sign| as float64."""
    if MEAN:
        top = divided(size, tasks, 1.0 / tl.full((1, 1), tasks, tl.float64)).to(tl.float32)
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
    addresses, unified, masks, norms, turns, d, length, row, programs,
    TASKS: tl.constexpr, MEAN: tl.constexpr, ALIGNED: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """`cpu_unify.unify_block` for `turns` groups: every value is read once and stays in a register.

    `addresses` (T,) int64: of the task vectors. `masks` (T, row) uint8, `length` of them used. `norms` (5, T, programs)
    float64: the fields of `Norms`.
    """
    program = tl.program_id(0).to(tl.int64)
    sums = ()
    for _ in tl.static_range(TASKS):
        sums = sums + (no_norms(GROUP),)
    for turn in range(turns):
        group = program * turns + turn
        at = in_group(group, GROUP)
        inside = at < d
        total, top, low, size = nothing_elected(GROUP)
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
            store_bits(masks + tl.full((), t, tl.int64) * row, agrees, group, length, GROUP)
            added = added + (add_norms(sums[t], kept[t], agrees, mu, known, GROUP),)
        sums = added
    for t in tl.static_range(TASKS):
        for field in tl.static_range(5):
            tl.store(norms + (field * TASKS + t) * programs + program, tl.sum(sums[t][field], axis=0))


@triton.jit
def elect_many(  # type: ignore[no-untyped-def]
    addresses, unified, masks, norms, tasks, d, length, row, programs,
    MEAN: tl.constexpr, ALIGNED: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """`elect_few` for one group and any number of tasks: values are read twice, then mostly from the cache."""
    program = tl.program_id(0).to(tl.int64)
    at = in_group(program, GROUP)
    inside = at < d
    total, top, low, size = nothing_elected(GROUP)
    for t in range(tasks):
        x = tl.load(address(addresses, t, tl.float32, ALIGNED) + at, mask=inside, other=0.0)
        total, top, low, size = elected_by(x, total, top, low, size)
    tau, sigma, mu, known = elected(total, top, low, size, tasks, MEAN)
    tl.store(unified + at, tau, mask=inside)
    for t in range(tasks):
        x = tl.load(address(addresses, t, tl.float32, ALIGNED) + at, mask=inside, other=0.0)
        agrees = x * sigma > 0
        store_bits(masks + tl.full((), t, tl.int64) * row, agrees, program, length, GROUP)
        sums = add_norms(no_norms(GROUP), x, agrees, mu, known, GROUP)
        for field in tl.static_range(5):
            tl.store(norms + (field * tasks + t) * programs + program, tl.sum(sums[field], axis=0))


def aligned(tensors: Sequence[Tensor]) -> bool:
    """Whether all begin at a multiple of 16 bytes."""
    return all(tensor.data_ptr() % 16 == 0 for tensor in tensors)


def unify_in_triton(taus: Sequence[Tensor], magnitude: Magnitude = "mean") -> tuple[Tensor, list[Tensor], list[Norms]]:
    """Elect and mask, as `merging.unify.elect_and_mask` does, without a copy to the host."""
    taus = [tau.contiguous() for tau in taus]
    tasks, d, device = len(taus), taus[0].numel(), taus[0].device
    length = packed_length(d)
    row = -(-length // 16) * 16
    unified = torch.empty(d, device=device)
    # one allocation, and rows of it are taken while the kernel runs: until it starts every microsecond counts
    masks = torch.empty(tasks, row, dtype=torch.uint8, device=device)
    few = tasks <= FEW
    group, warps, turns = FEW_SHAPE if few else MANY_SHAPE
    programs = triton.cdiv(d, group * turns)
    norms = torch.empty(5, tasks, programs, dtype=torch.float64, device=device)
    if programs:
        where = (torch.tensor([tau.data_ptr() for tau in taus], device=device), unified, masks, norms)
        common = {"MEAN": magnitude == "mean", "ALIGNED": aligned(taus), "GROUP": group, "num_warps": warps, **EXACT}
        if few:
            elect_few[(programs,)](*where, turns, d, length, row, programs, TASKS=tasks, **common)
        else:
            elect_many[(programs,)](*where, tasks, d, length, row, programs, **common)
    sums = norms.sum(dim=2).T
    return unified, [part[:length] for part in masks], [Norms(*of_task) for of_task in sums.tolist()]
