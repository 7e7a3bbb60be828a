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
    any_of,
    at_least_d,
    count_ones,
    count_to_double,
    div_d,
    either,
    float_at,
    greater_d,
    greater_f,
    less_d,
    less_f,
    less_j,
    load_bfloat16,
    load_bits,
    load_d,
    load_f,
    max_f,
    min_f,
    minus_one_f,
    mul_d,
    mul_f,
    not_finite,
    number_at,
    one_d,
    one_f,
    prefetch,
    select_d,
    select_f,
    select_i,
    select_j,
    splat_d,
    splat_f,
    splat_i,
    splat_j,
    store_bits,
    store_bools,
    store_d,
    store_f,
    sub_i,
    sub_j,
    to_double,
    to_float,
    zero_d,
    zero_f,
    zero_i,
    zero_j,
)

LINE = np.uint64(64)  # bytes of a cache line: 16 lanes of float32
HALF = np.uint64(LANES // 8)  # bytes of the bits of 16 lanes
AHEAD = np.uint64(512)  # bytes that are fetched in advance: hardware alone follows eight vectors well, but not thirty
SUMS = np.uint64(8 * LANES)  # bytes of the partial sums of one task


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


@compiled("void(uint64, int64, int64, uint64, uint64, uint64, uint64)")
def unify_block(taus, tasks, size, unified, masks, own, kept):  # type: ignore[no-untyped-def]
    """Elect and mask one block, and add up the norms of which the rescalers are made.

    Parameters
    ----------
    taus : address
        Of (T,) uint64: addresses of τ^t, float32, in the order in which their sum is to be taken.
    tasks, size : int
        T, and parameters: a multiple of 16.
    unified : address
        Of τ, float32.
    masks : address
        Of (T,) uint64: addresses of m^t as bits.
    own, kept : address
        Of (T, 16) float64: 16 partial sums each of ‖τ^t‖₁ and ‖m^t ⊙ τ‖₁, which are added to. ‖τ^t‖₁ is finite if and
        only if all of τ^t is: float64 cannot overflow by adding float32 numbers.
    """
    zero, nothing = zero_f(), zero_d()
    for first in range(0, size, LANES):
        at, bits_at = np.uint64(4 * first), np.uint64(first // 8)
        total, top, low = nothing, zero, zero
        for t in range(tasks):
            tau = number_at(taus + np.uint64(8 * t)) + at
            prefetch(tau + AHEAD)
            x = load_f(tau)
            wide = to_double(x)
            total, top, low = add_d(total, wide), max_f(x, top), min_f(x, low)
            norm = own + np.uint64(t) * SUMS
            store_d(norm, add_d(load_d(norm), abs_d(wide)))
        # σ picks the largest positive or the largest negative number, which is σ ⊙ μ: where σ ≠ 0 some task agrees.
        elected = select_f(greater_d(total, nothing), top, select_f(less_d(total, nothing), low, zero))
        store_f(unified + at, elected)
        sigma = select_f(greater_f(elected, zero), one_f(), select_f(less_f(elected, zero), minus_one_f(), zero))
        mu = abs_f(elected)
        for t in range(tasks):
            # τ^t ⊙ σ > 0 is τ^t ⊙ τ > 0 without the underflow of a product of two tiny numbers.
            mask = greater_f(mul_f(load_f(number_at(taus + np.uint64(8 * t)) + at), sigma), zero)
            store_bits(number_at(masks + np.uint64(8 * t)) + bits_at, mask)
            norm = kept + np.uint64(t) * SUMS
            store_d(norm, add_d(load_d(norm), to_double(select_f(mask, mu, zero))))


@compiled("void(uint64, uint64, int64)")
def unpack_block(bits, bools, size):  # type: ignore[no-untyped-def]
    """Bits at one address to bytes of 0 and 1 at another; `size` parameters, a multiple of 16."""
    for first in range(0, size, LANES):
        store_bools(bools + np.uint64(first), load_bits(bits + np.uint64(first // 8)))


# ---------------------------------------------------------------- server
#
# A block of the replies is two tables of 8-byte fields, at an address each.
# Clients, N rows:   the address of the unified vector at the block's first parameter, and 2 (bfloat16) or 4 (float32).
# Pairs, a row for each holder of each task, in the order of tasks, then of clients' names: PAIR has the fields. A pair
# with rescaler 0 has no direction: its voice is 0 instead of 1, and so are its examples.

VECTOR, WIDTH, MASK, RESCALER, GAMMA, EXAMPLES, VOICE = (np.uint64(8 * field) for field in range(7))
CLIENT_BYTES, PAIR_BYTES = np.uint64(8 * 2), np.uint64(8 * 7)
SOFT, HARD, THRESHOLD_OR_SOFT, NONE = range(4)  # m̂ by `MergeOptions.agreement`


@njit(nogil=True, inline="always")
def two_of_vector(row, first):  # type: ignore[no-untyped-def]
    """Lanes first..first + 32 of the vector of a row of either table, as float32."""
    vector = number_at(row + VECTOR)
    if number_at(row + WIDTH) == np.uint64(4):
        vector += np.uint64(4 * first)
        return load_f(vector), load_f(vector + LINE)
    vector += np.uint64(2 * first)
    return load_bfloat16(vector), load_bfloat16(vector + np.uint64(32))


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


@njit(nogil=True, inline="always")
def counted(votes, voice, up, down):  # type: ignore[no-untyped-def]
    """Add a vote of +1, −1 or 0 to each lane."""
    votes = select_i(up, add_i(votes, voice), votes)
    return select_i(down, sub_i(votes, voice), votes)


@njit(nogil=True, inline="always")
def weighed(weighted, share, up, down):  # type: ignore[no-untyped-def]
    """Add a vote of as many examples to each lane."""
    weighted = select_j(up, add_j(weighted, share), weighted)
    return select_j(down, sub_j(weighted, share), weighted)


@njit(nogil=True, inline="always")
def averaged(tau, mask, x, rescaler, gamma):  # type: ignore[no-untyped-def]
    """τ̂ + γ · (λ · m ⊙ x): the product in float32, as a client reconstructs it, the sum in float64."""
    return add_d(tau, mul_d(gamma, to_double(mul_f(select_f(mask, x, zero_f()), rescaler))))


@njit(nogil=True, inline="always")
def store_signs(complete, tau, weighted, negative, support):  # type: ignore[no-untyped-def]
    """The direction that the task graph compares, as a bit of each plane."""
    if complete:
        below, above = less_j(weighted, zero_j()), less_j(zero_j(), weighted)
    else:
        below, above = less_d(tau, zero_d()), greater_d(tau, zero_d())
    store_bits(negative, below)
    store_bits(support, either(below, above))


@compiled(
    "void(uint64, int64, uint64, int64[::1], int64, boolean, int64, float64, uint64[::1], uint64[::1], uint64[::1],"
    "boolean[::1])"
)
def merge_block(  # type: ignore[no-untyped-def]
    clients, num_clients, pairs, ends, size, complete, agreement, rho, merged, negative, support, broken
):
    """τ̂^t of every task over one block, float32, at the addresses `merged`, and its signs as two planes of bits.

    Parameters
    ----------
    clients, pairs : address
        Of the tables above.
    ends : (T + 1,) int64
        Pairs ends[t]..ends[t + 1] are of task t.
    size : int
        Parameters, a multiple of 32.
    negative, support : (T,) uint64
        Addresses of planes: where the sign is −1, and where it is not 0.
    broken : (N,) bool
        Becomes true for a client whose vector has NaN or infinity in the block.
    """
    zero = zero_f()
    # What a client says where its mask bit is 0: the other sign, or nothing.
    unmasked = splat_f(np.float32(-1.0 if complete else 0.0))
    for first in range(0, size, 2 * LANES):
        at, bits_at = np.uint64(4 * first), np.uint64(first // 8)
        for n in range(num_clients):
            client = clients + np.uint64(n) * CLIENT_BYTES
            following = number_at(client + VECTOR) + number_at(client + WIDTH) * np.uint64(first) + AHEAD
            prefetch(following)
            prefetch(following + LINE)
            x0, x1 = two_of_vector(client, first)
            if any_of(either(not_finite(x0), not_finite(x1))):
                broken[n] = True
        for t in range(merged.shape[0]):
            tau0, tau1 = zero_d(), zero_d()
            votes0, votes1 = zero_i(), zero_i()
            weighted0, weighted1 = zero_j(), zero_j()
            pair = pairs + np.uint64(ends[t]) * PAIR_BYTES
            last = pairs + np.uint64(ends[t + 1]) * PAIR_BYTES
            while pair < last:
                x0, x1 = two_of_vector(pair, first)
                bits = number_at(pair + MASK) + bits_at
                mask0, mask1 = load_bits(bits), load_bits(bits + HALF)
                if first % 512 == 0:
                    prefetch(bits + LINE)
                rescaler = splat_f(np.float32(float_at(pair + RESCALER)))
                gamma = splat_d(float_at(pair + GAMMA))
                tau0, tau1 = averaged(tau0, mask0, x0, rescaler, gamma), averaged(tau1, mask1, x1, rescaler, gamma)
                x0, x1 = select_f(mask0, x0, mul_f(x0, unmasked)), select_f(mask1, x1, mul_f(x1, unmasked))
                up0, up1, down0, down1 = greater_f(x0, zero), greater_f(x1, zero), less_f(x0, zero), less_f(x1, zero)
                voice = splat_i(np.int32(number_at(pair + VOICE)))
                votes0, votes1 = counted(votes0, voice, up0, down0), counted(votes1, voice, up1, down1)
                if complete:
                    share = splat_j(np.int64(number_at(pair + EXAMPLES)))
                    weighted0 = weighed(weighted0, share, up0, down0)
                    weighted1 = weighed(weighted1, share, up1, down1)
                pair += PAIR_BYTES
            count = ends[t + 1] - ends[t]
            tau0 = mul_d(tau0, agreed(votes0, count, agreement, rho))
            tau1 = mul_d(tau1, agreed(votes1, count, agreement, rho))
            store_f(merged[t] + at, to_float(tau0))
            store_f(merged[t] + at + LINE, to_float(tau1))
            store_signs(complete, tau0, weighted0, negative[t] + bits_at, support[t] + bits_at)
            store_signs(complete, tau1, weighted1, negative[t] + bits_at + HALF, support[t] + bits_at + HALF)


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


@njit(nogil=True, inline="always")
def combined(own, borrowed, mask, divisor, mean):  # type: ignore[no-untyped-def]
    """Step 5 for 16 lanes, as float32."""
    borrowed = mul_d(mask, borrowed)
    if mean:
        return to_float(div_d(add_d(own, borrowed), divisor))
    return to_float(add_d(own, div_d(borrowed, divisor)))


@compiled(
    "void(uint64, int64[::1], int64, boolean, int64, float64, uint64[::1], uint64, int64[::1], int64[::1], int64[::1],"
    "float64[::1], float64[::1], boolean)"
)
def combine_block(  # type: ignore[no-untyped-def]
    pairs,
    ends,
    size,
    complete,
    agreement,
    rho,
    merged,
    before,
    learning,
    related_ends,
    related,
    weights,
    divisors,
    mean,
):
    """The cross-task step over one block, in place.

    Parameters
    ----------
    before : address
        Of (T, 32) float32: τ̂ as it was, for all who read it.
    learning : (L,) int64
        Tasks that learn; `related_ends` (L + 1,), `related` and `weights`: from whom, and how much.
    divisors : (L,) float64
        mean: (τ̂ + Σ w m̂ ⊙ τ̂') / divisor. Otherwise τ̂ + (Σ w m̂ ⊙ τ̂') / divisor.
    """
    group = np.uint64(4 * 2 * LANES)
    zero = zero_f()
    unmasked = splat_f(np.float32(-1.0 if complete else 0.0))
    for first in range(0, size, 2 * LANES):
        at, bits_at = np.uint64(4 * first), np.uint64(first // 8)
        for t in range(merged.shape[0]):
            row, copy = merged[t] + at, before + np.uint64(t) * group
            prefetch(row + AHEAD)
            prefetch(row + AHEAD + LINE)
            store_f(copy, load_f(row))
            store_f(copy + LINE, load_f(row + LINE))
        for learner in range(learning.shape[0]):
            t = learning[learner]
            votes0, votes1 = zero_i(), zero_i()
            pair = pairs + np.uint64(ends[t]) * PAIR_BYTES
            last = pairs + np.uint64(ends[t + 1]) * PAIR_BYTES
            while pair < last:
                following = number_at(pair + VECTOR) + number_at(pair + WIDTH) * np.uint64(first) + AHEAD
                prefetch(following)
                prefetch(following + LINE)
                x0, x1 = two_of_vector(pair, first)
                bits = number_at(pair + MASK) + bits_at
                mask0, mask1 = load_bits(bits), load_bits(bits + HALF)
                if first % 512 == 0:
                    prefetch(bits + LINE)
                x0, x1 = select_f(mask0, x0, mul_f(x0, unmasked)), select_f(mask1, x1, mul_f(x1, unmasked))
                voice = splat_i(np.int32(number_at(pair + VOICE)))
                votes0 = counted(votes0, voice, greater_f(x0, zero), less_f(x0, zero))
                votes1 = counted(votes1, voice, greater_f(x1, zero), less_f(x1, zero))
                pair += PAIR_BYTES
            borrowed0, borrowed1 = zero_d(), zero_d()
            for other in range(related_ends[learner], related_ends[learner + 1]):
                copy = before + np.uint64(related[other]) * group
                weight = splat_d(weights[other])
                borrowed0 = add_d(borrowed0, mul_d(weight, to_double(load_f(copy))))
                borrowed1 = add_d(borrowed1, mul_d(weight, to_double(load_f(copy + LINE))))
            count, divisor = ends[t + 1] - ends[t], splat_d(divisors[learner])
            copy = before + np.uint64(t) * group
            own0, own1 = to_double(load_f(copy)), to_double(load_f(copy + LINE))
            share0, share1 = agreed(votes0, count, agreement, rho), agreed(votes1, count, agreement, rho)
            store_f(merged[t] + at, combined(own0, borrowed0, share0, divisor, mean))
            store_f(merged[t] + at + LINE, combined(own1, borrowed1, share1, divisor, mean))
