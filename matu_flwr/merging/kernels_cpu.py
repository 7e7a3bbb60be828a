"""Compiled loops over blocks of parameters: what `unify` and `aggregate` run on a CPU.

Numba compiles them when this module is first imported and keeps the machine code beside it or in the user's cache.
Import it where it is needed: Numba takes a third of a second. Every kernel releases Python's global lock and is run by
our own threads, one block each. Addresses are of contiguous memory, and blocks are whole groups of GROUP parameters:
callers pad the end of a vector (`padded`).

Numba looks at this file's age alone to tell whether the code it kept is still good: after a change of `kernels_lanes`
touch this file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from matu_flwr.merging.kernels_lanes import (
    LANES,
    abs_d,
    abs_f,
    add_d,
    add_i,
    add_j,
    add_p,
    any_of,
    at_least_d,
    both,
    count_ones,
    count_to_double,
    div_d,
    either,
    fold,
    greater_d,
    greater_f,
    less_d,
    less_f,
    less_j,
    load_bfloat16,
    load_bits,
    load_f,
    load_p,
    max_f,
    min_f,
    minus_one_f,
    mul_d,
    mul_f,
    not_finite,
    one_d,
    one_f,
    one_i,
    prefetch,
    select_d,
    select_f,
    select_i,
    select_j,
    splat_d,
    splat_f,
    splat_j,
    store_bits,
    store_bools,
    store_f,
    store_p,
    sub_i,
    sub_j,
    to_double,
    to_float,
    without,
    zero_d,
    zero_f,
    zero_i,
    zero_j,
)

GROUP = LANES  # parameters of one turn of a loop
AHEAD = np.uint64(512)  # bytes that are fetched in advance: hardware alone follows eight vectors well, but not thirty
LINE = np.uint64(64)
SUMS = np.uint64(16 * 8)  # bytes of the partial sums of one task


def compiled(signature: str) -> Callable[[Callable[..., Any]], Any]:
    """Compile now, without the global lock; keep the code on disk where some folder for it can be written."""

    def compile_now(function: Callable[..., Any]) -> Any:
        try:
            return njit(signature, nogil=True, cache=True)(function)
        except RuntimeError as error:
            if "cannot cache function" not in str(error):
                raise
            return njit(signature, nogil=True)(function)

    return compile_now


@compiled("void(uint64[::1], int64, int64, uint64, uint64[::1], uint64, uint64)")
def unify_block(taus, start, stop, unified, masks, own, kept):  # type: ignore[no-untyped-def]
    """Elect and mask parameters start..stop, and add up the norms of which the rescalers are made.

    Parameters
    ----------
    taus : (T,) uint64
        Addresses of τ^t, float32, in the order in which their sum is to be taken.
    start, stop : int
        Whole groups.
    unified : address
        Of τ, float32.
    masks : (T,) uint64
        Addresses of m^t as bits.
    own, kept : address
        Of (T, 16) float64: 16 partial sums each of ‖τ^t‖₁ and ‖m^t ⊙ τ‖₁, which are added to. ‖τ^t‖₁ is finite if and
        only if all of τ^t is: float64 cannot overflow by adding float32 numbers.
    """
    tasks = taus.shape[0]
    zero, nothing = zero_f(), zero_d()
    for first in range(start, stop, GROUP):
        at, bits_at = np.uint64(4 * first), np.uint64(first // 8)
        total, top, low = nothing, zero, zero
        for t in range(tasks):
            tau = taus[t] + at
            for line in range(4):
                prefetch(tau + AHEAD + np.uint64(line) * LINE)
            x = load_f(tau)
            wide = to_double(x)
            total, top, low = add_d(total, wide), max_f(x, top), min_f(x, low)
            norm = own + np.uint64(t) * SUMS
            store_p(norm, add_p(load_p(norm), fold(abs_d(wide))))
        # σ picks the largest positive or the largest negative number, which is σ ⊙ μ: where σ ≠ 0 some task agrees.
        elected = select_f(greater_d(total, nothing), top, select_f(less_d(total, nothing), low, zero))
        store_f(unified + at, elected)
        sigma = select_f(greater_f(elected, zero), one_f(), select_f(less_f(elected, zero), minus_one_f(), zero))
        mu = abs_f(elected)
        for t in range(tasks):
            # τ^t ⊙ σ > 0 is τ^t ⊙ τ > 0 without the underflow of a product of two tiny numbers.
            mask = greater_f(mul_f(load_f(taus[t] + at), sigma), zero)
            store_bits(masks[t] + bits_at, mask)
            norm = kept + np.uint64(t) * SUMS
            store_p(norm, add_p(load_p(norm), fold(to_double(select_f(mask, mu, zero)))))


@compiled("void(uint64, uint64, int64)")
def unpack_block(bits, bools, size):  # type: ignore[no-untyped-def]
    """Bits at one address to bytes of 0 and 1 at another; `size` parameters, whole groups."""
    for first in range(0, size, GROUP):
        store_bools(bools + np.uint64(first), load_bits(bits + np.uint64(first // 8)))


# ---------------------------------------------------------------- server
#
# A block of the replies, as arrays. N clients, E (task, client) pairs in the order of tasks, then of clients' names.
#   vectors (N,) uint64 addresses of the unified vectors at the block's first parameter; halves (N,) bool: bfloat16
#   ends (T + 1,) int64: pairs ends[t]..ends[t + 1] are of task t; holders (E,) int64: whose vector; masks (E,) addresses
#   rescalers (E,) float32 λ; gammas (E,) float64 γ; examples (E,) int64 |D|, 0 where λ = 0: such a task has no direction

SOFT, HARD, THRESHOLD_OR_SOFT, NONE = range(4)  # m̂ by `MergeOptions.agreement`


@njit(nogil=True, inline="always")
def load_vector(vectors, halves, n, first):  # type: ignore[no-untyped-def]
    """Lanes of client n's unified vector as float32."""
    if halves[n]:
        return load_bfloat16(vectors[n] + np.uint64(2 * first))
    return load_f(vectors[n] + np.uint64(4 * first))


@njit(nogil=True, inline="always")
def agreed(votes, count, agreement, rho):  # type: ignore[no-untyped-def]
    """m̂ from the sum of signs of `count` holders."""
    if agreement == NONE:
        return one_d()
    alpha = div_d(abs_d(count_to_double(votes)), splat_d(float(count)))
    if agreement == SOFT:
        return alpha
    other = zero_d() if agreement == HARD else alpha
    return select_d(at_least_d(alpha, splat_d(rho)), one_d(), other)


@compiled(
    "void(uint64[::1], boolean[::1], int64[::1], int64[::1], uint64[::1], float32[::1], float64[::1], int64[::1],"
    "int64, boolean, int64, float64, uint64[::1], uint64[::1], uint64[::1], boolean[::1])"
)
def merge_block(  # type: ignore[no-untyped-def]
    vectors, halves, ends, holders, masks, rescalers, gammas, examples, size, complete, agreement, rho, merged,
    negative, support, broken,
):  # fmt: skip
    """τ̂^t of every task over one block, float32, at the addresses `merged`, and its signs as two planes of bits.

    `negative` and `support` are (T,) addresses: where the sign is −1, and where it is not 0. `broken` (N,) becomes true
    for a client whose vector has NaN or infinity in the block.
    """
    zero = zero_f()
    for first in range(0, size, GROUP):
        bits_at = np.uint64(first // 8)
        for n in range(vectors.shape[0]):
            width = np.uint64(2 if halves[n] else 4)
            for line in range(width):
                prefetch(vectors[n] + np.uint64(first) * width + AHEAD + np.uint64(line) * LINE)
            if any_of(not_finite(load_vector(vectors, halves, n, first))):
                broken[n] = True
        for t in range(merged.shape[0]):
            tau, votes, weighted = zero_d(), zero_i(), zero_j()
            for e in range(ends[t], ends[t + 1]):
                x = load_vector(vectors, halves, holders[e], first)
                mask = load_bits(masks[e] + bits_at)
                part = to_double(mul_f(select_f(mask, x, zero), splat_f(rescalers[e])))
                tau = add_d(tau, mul_d(splat_d(gammas[e]), part))
                if examples[e] == 0:
                    continue
                up, down = greater_f(x, zero), less_f(x, zero)
                plus, minus = both(up, mask), both(down, mask)
                if complete:  # a cleared bit says: the other sign
                    plus, minus = either(plus, without(down, mask)), either(minus, without(up, mask))
                    share = splat_j(examples[e])
                    weighted = select_j(plus, add_j(weighted, share), weighted)
                    weighted = select_j(minus, sub_j(weighted, share), weighted)
                votes = select_i(plus, add_i(votes, one_i()), votes)
                votes = select_i(minus, sub_i(votes, one_i()), votes)
            tau = mul_d(tau, agreed(votes, ends[t + 1] - ends[t], agreement, rho))
            store_f(merged[t] + np.uint64(4 * first), to_float(tau))
            if complete:
                below, above = less_j(weighted, zero_j()), less_j(zero_j(), weighted)
            else:
                below, above = less_d(tau, zero_d()), greater_d(tau, zero_d())
            store_bits(negative[t] + bits_at, below)
            store_bits(support[t] + bits_at, either(below, above))


@compiled("void(uint64[:, ::1], uint64[:, ::1], int64[:, ::1], int64[:, ::1])")
def count_signs(negative, support, dot, shared):  # type: ignore[no-untyped-def]
    """Add to `dot` and `shared` (T, T) what two planes (T, words) say of every pair of tasks.

    shared: where both signs are non-zero; dot: of these, where they agree minus where they differ.
    """
    tasks, words = negative.shape
    for start in range(0, words, 512):  # planes of thirty tasks, 4 KiB each, stay in a core's own cache
        stop = min(start + 512, words)
        for a in range(tasks):
            for b in range(a + 1):
                known, differ = np.uint64(0), np.uint64(0)
                for i in range(start, stop):
                    where = support[a, i] & support[b, i]
                    known += count_ones(where)
                    differ += count_ones((negative[a, i] ^ negative[b, i]) & where)
                found = np.int64(known)
                shared[a, b] += found
                dot[a, b] += found - 2 * np.int64(differ)
                if a != b:
                    shared[b, a] += found
                    dot[b, a] += found - 2 * np.int64(differ)


@compiled(
    "void(uint64[::1], boolean[::1], int64[::1], int64[::1], uint64[::1], int64[::1], int64, boolean, int64, float64,"
    "uint64[::1], uint64, int64[::1], int64[::1], int64[::1], float64[::1], float64[::1], boolean)"
)
def combine_block(  # type: ignore[no-untyped-def]
    vectors, halves, ends, holders, masks, examples, size, complete, agreement, rho, merged, before, learning,
    related_ends, related, weights, divisors, mean,
):  # fmt: skip
    """The cross-task step over one block, in place.

    Parameters
    ----------
    before : address
        Of T groups of float32: τ̂ as it was, for all who read it.
    learning : (L,) int64
        Tasks that learn; `related_ends` (L + 1,), `related` and `weights`: from whom, and how much.
    divisors : (L,) float64
        mean: (τ̂ + Σ w m̂ ⊙ τ̂') / divisor. Otherwise τ̂ + (Σ w m̂ ⊙ τ̂') / divisor.
    """
    group = np.uint64(4 * GROUP)
    zero = zero_f()
    for first in range(0, size, GROUP):
        at, bits_at = np.uint64(4 * first), np.uint64(first // 8)
        for t in range(merged.shape[0]):
            prefetch(merged[t] + at + AHEAD)
            store_f(before + np.uint64(t) * group, load_f(merged[t] + at))
        for row in range(learning.shape[0]):
            t = learning[row]
            votes = zero_i()
            for e in range(ends[t], ends[t + 1]):
                if examples[e] == 0:
                    continue
                x = load_vector(vectors, halves, holders[e], first)
                mask = load_bits(masks[e] + bits_at)
                up, down = greater_f(x, zero), less_f(x, zero)
                plus, minus = both(up, mask), both(down, mask)
                if complete:
                    plus, minus = either(plus, without(down, mask)), either(minus, without(up, mask))
                votes = select_i(plus, add_i(votes, one_i()), votes)
                votes = select_i(minus, sub_i(votes, one_i()), votes)
            borrowed = zero_d()
            for r in range(related_ends[row], related_ends[row + 1]):
                other = to_double(load_f(before + np.uint64(related[r]) * group))
                borrowed = add_d(borrowed, mul_d(splat_d(weights[r]), other))
            borrowed = mul_d(agreed(votes, ends[t + 1] - ends[t], agreement, rho), borrowed)
            own = to_double(load_f(before + np.uint64(t) * group))
            divisor = splat_d(divisors[row])
            tau = div_d(add_d(own, borrowed), divisor) if mean else add_d(own, div_d(borrowed, divisor))
            store_f(merged[t] + at, to_float(tau))
