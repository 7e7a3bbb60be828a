"""Compiled loops over blocks of a round's replies: what `aggregate` runs on a CPU. See `cpu_unify`.

A block of the replies is two tables of 8-byte fields, at an address each.
Clients, N rows:   the address of the unified vector at the block's first parameter, and 2 (bfloat16) or 4 (float32).
Pairs, a row for each holder of each task, in the order of tasks, then of clients' names, have the fields named below.
CLIENT is n · TILE_BYTES; SCALES is two float32: what a set bit and what a cleared bit stand for, λ and −λ₋. A pair
without a direction, λ = λ₋ = 0, has voice 0 instead of 1, and 0 examples.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from matu_flwr.merging.kernels.lanes import (
    HALF,
    LANES,
    LINE,
    abs_d,
    add_d,
    add_i,
    add_j,
    any_of,
    at_least_d,
    compiled,
    count_ones,
    count_to_double,
    div_d,
    double_at,
    either,
    float_at,
    greater_d,
    greater_f,
    less_d,
    less_f,
    less_i,
    less_j,
    load_bfloat16,
    load_bits,
    load_f,
    mul_d,
    mul_f,
    negative_f,
    not_finite,
    number_at,
    one_d,
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

# Parameters that are looked at together. Vectors that start at like addresses crowd out each other from a cache if they
# are read in turn, a line of each: so a tile of each is copied first, which is also where bfloat16 becomes float32.
TILE = 512
TILE_BYTES = np.uint64(4 * TILE)
CLIENT, SCALES, MASK, GAMMA, EXAMPLES, VOICE, VECTOR, WIDTH = (np.uint64(8 * field) for field in range(8))
CLIENT_BYTES, PAIR_BYTES = np.uint64(8 * 2), np.uint64(8 * 8)
SOFT, HARD, THRESHOLD_OR_SOFT, NONE = range(4)  # m̂ by `MergeOptions.agreement`


@njit(nogil=True, inline="always")
def copied(client, start, size, tile):  # type: ignore[no-untyped-def]
    """Copy parameters start..start + size of a client's vector to `tile`; true if one of them is not finite."""
    vector, width = number_at(client), number_at(client + np.uint64(8))
    broken = not_finite(zero_f())
    for first in range(0, size, LANES):
        at = np.uint64(start + first)
        x = load_f(vector + np.uint64(4) * at) if width == np.uint64(4) else load_bfloat16(vector + np.uint64(2) * at)
        store_f(tile + np.uint64(4 * first), x)
        broken = either(broken, not_finite(x))
    return any_of(broken)


@njit(nogil=True, inline="always")
def fetch_next(pair, first):  # type: ignore[no-untyped-def]
    """Fetch lanes first..first + 32 of the next tile: memory works while this tile is computed."""
    following = number_at(pair + VECTOR) + number_at(pair + WIDTH) * np.uint64(first + TILE)
    prefetch(following)
    prefetch(following + LINE)


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
def said(mask, x, complete):  # type: ignore[no-untyped-def]
    """A number with the sign that a holder votes for: where the bit is cleared the other sign, or none."""
    return select_f(mask, x, negative_f(x)) if complete else select_f(mask, x, zero_f())


@njit(nogil=True, inline="always")
def counted(votes, voice, said):  # type: ignore[no-untyped-def]
    """Add a vote of +voice, −voice or 0 to each lane."""
    votes = select_i(greater_f(said, zero_f()), add_i(votes, voice), votes)
    return select_i(less_f(said, zero_f()), sub_i(votes, voice), votes)


@njit(nogil=True, inline="always")
def counted_wide(votes, voice, said):  # type: ignore[no-untyped-def]
    """The same for more examples than 32 bits can count."""
    votes = select_j(greater_f(said, zero_f()), add_j(votes, voice), votes)
    return select_j(less_f(said, zero_f()), sub_j(votes, voice), votes)


@njit(nogil=True, inline="always")
def averaged(tau, mask, x, of_set, of_cleared, gamma):  # type: ignore[no-untyped-def]
    """τ̂ + γ τ̄: the product λ x or −λ₋ x in float32, as a client reconstructs it, the sum in float64."""
    return add_d(tau, mul_d(gamma, to_double(mul_f(x, select_f(mask, of_set, of_cleared)))))


@njit(nogil=True, inline="always")
def store_signs(below, above, negative, support):  # type: ignore[no-untyped-def]
    """The direction that the task graph compares, as a bit of each plane."""
    store_bits(negative, below)
    store_bits(support, either(below, above))


@compiled(
    "void(uint64, int64, uint64, int64[::1], int64, boolean, int64, float64, boolean, uint64, uint64[::1], uint64[::1],"
    "uint64[::1], boolean[::1])"
)
def merge_block(  # type: ignore[no-untyped-def]
    clients, num_clients, pairs, ends, size, complete, agreement, rho, wide, tiles, merged, negative, support, broken
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
    wide : bool
        The examples of some task do not fit 32 bits.
    tiles : address
        Of (N, TILE) float32 to work in.
    negative, support : (T,) uint64
        Addresses of planes: where the sign is −1, and where it is not 0.
    broken : (N,) bool
        Becomes true for a client whose vector has NaN or infinity in the block.
    """
    voting = agreement != NONE
    for start in range(0, size, TILE):
        stop = min(start + TILE, size)
        for n in range(num_clients):
            client = clients + np.uint64(n) * CLIENT_BYTES
            if copied(client, start, stop - start, tiles + np.uint64(n) * TILE_BYTES):
                broken[n] = True
        for pair in range(ends[merged.shape[0]]):
            prefetch(number_at(pairs + np.uint64(pair) * PAIR_BYTES + MASK) + np.uint64(stop // 8))
        for t in range(merged.shape[0]):
            count = ends[t + 1] - ends[t]
            begin, last = pairs + np.uint64(ends[t]) * PAIR_BYTES, pairs + np.uint64(ends[t + 1]) * PAIR_BYTES
            for first in range(start, stop, 2 * LANES):
                at, bits_at, in_tile = (
                    np.uint64(4 * first),
                    np.uint64(first // 8),
                    tiles + np.uint64(4 * (first - start)),
                )
                tau0, tau1 = zero_d(), zero_d()
                votes0, votes1, shares0, shares1 = zero_i(), zero_i(), zero_i(), zero_i()
                wide0, wide1 = zero_j(), zero_j()
                prefetch(merged[t] + at + TILE_BYTES)
                prefetch(merged[t] + at + TILE_BYTES + LINE)
                pair = begin
                while pair < last:
                    fetch_next(pair, first)
                    tile = in_tile + number_at(pair + CLIENT)
                    x0, x1 = load_f(tile), load_f(tile + LINE)
                    bits = number_at(pair + MASK) + bits_at
                    mask0, mask1 = load_bits(bits), load_bits(bits + HALF)
                    set_, cleared = splat_f(float_at(pair + SCALES)), splat_f(float_at(pair + SCALES + np.uint64(4)))
                    gamma = splat_d(double_at(pair + GAMMA))
                    tau0 = averaged(tau0, mask0, x0, set_, cleared, gamma)
                    tau1 = averaged(tau1, mask1, x1, set_, cleared, gamma)
                    if voting or complete:
                        x0, x1 = said(mask0, x0, complete), said(mask1, x1, complete)
                    if voting:
                        voice = splat_i(np.int32(number_at(pair + VOICE)))
                        votes0, votes1 = counted(votes0, voice, x0), counted(votes1, voice, x1)
                    if complete and wide:
                        examples = splat_j(np.int64(number_at(pair + EXAMPLES)))
                        wide0, wide1 = counted_wide(wide0, examples, x0), counted_wide(wide1, examples, x1)
                    elif complete:
                        share = splat_i(np.int32(number_at(pair + EXAMPLES)))
                        shares0, shares1 = counted(shares0, share, x0), counted(shares1, share, x1)
                    pair += PAIR_BYTES
                if voting:
                    tau0 = mul_d(tau0, agreed(votes0, count, agreement, rho))
                    tau1 = mul_d(tau1, agreed(votes1, count, agreement, rho))
                store_f(merged[t] + at, to_float(tau0))
                store_f(merged[t] + at + LINE, to_float(tau1))
                below, above = negative[t] + bits_at, support[t] + bits_at
                if complete and wide:
                    store_signs(less_j(wide0, zero_j()), less_j(zero_j(), wide0), below, above)
                    store_signs(less_j(wide1, zero_j()), less_j(zero_j(), wide1), below + HALF, above + HALF)
                elif complete:
                    store_signs(less_i(shares0, zero_i()), less_i(zero_i(), shares0), below, above)
                    store_signs(less_i(shares1, zero_i()), less_i(zero_i(), shares1), below + HALF, above + HALF)
                else:
                    store_signs(less_d(tau0, zero_d()), greater_d(tau0, zero_d()), below, above)
                    store_signs(less_d(tau1, zero_d()), greater_d(tau1, zero_d()), below + HALF, above + HALF)


@compiled("void(uint64[::1], uint64[::1], int64, int64[:, ::1], int64[:, ::1])")
def count_signs(negative, support, size, dot, shared):  # type: ignore[no-untyped-def]
    """Add to `dot` and `shared` (T, T) what two planes of bits say of every pair of tasks.

    shared: where both signs are non-zero; dot: of these, where they agree minus where they differ. The planes, at the
    addresses `negative` and `support`, (T,) each, have `size` bits: whole words.
    """
    for start in range(0, size // 8, 4096):  # planes of thirty tasks, 4 KiB each, stay in a core's own cache
        stop = min(start + 4096, size // 8)
        for a in range(negative.shape[0]):
            for b in range(a + 1):
                known, differ = np.uint64(0), np.uint64(0)
                for i in range(start, stop, 8):
                    at = np.uint64(i)
                    where = number_at(support[a] + at) & number_at(support[b] + at)
                    known += count_ones(where)
                    differ += count_ones((number_at(negative[a] + at) ^ number_at(negative[b] + at)) & where)
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
    "void(uint64, int64, uint64, int64[::1], int64, boolean, int64, float64, uint64, uint64[::1], uint64, int64[::1],"
    "int64[::1], int64[::1], float64[::1], float64[::1], boolean)"
)
def combine_block(  # type: ignore[no-untyped-def]
    clients,
    num_clients,
    pairs,
    ends,
    size,
    complete,
    agreement,
    rho,
    tiles,
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
    clients, num_clients, pairs, tiles
        As in `merge_block`; nothing is read there where agreement is `NONE`.
    before : address
        Of (T, TILE) float32: τ̂ as it was, for all who read it.
    learning : (L,) int64
        Tasks that learn; `related_ends` (L + 1,), `related` and `weights`: from whom, and how much.
    divisors : (L,) float64
        mean: (τ̂ + Σ w m̂ ⊙ τ̂') / divisor. Otherwise τ̂ + (Σ w m̂ ⊙ τ̂') / divisor.
    """
    for start in range(0, size, TILE):
        stop = min(start + TILE, size)
        for n in range(num_clients if agreement != NONE else 0):
            copied(clients + np.uint64(n) * CLIENT_BYTES, start, stop - start, tiles + np.uint64(n) * TILE_BYTES)
        for t in range(merged.shape[0]):
            for first in range(start, stop, LANES):
                at = np.uint64(4 * first)
                store_f(before + np.uint64(t) * TILE_BYTES + np.uint64(4 * (first - start)), load_f(merged[t] + at))
        for pair in range(ends[merged.shape[0]] if agreement != NONE else 0):
            prefetch(number_at(pairs + np.uint64(pair) * PAIR_BYTES + MASK) + np.uint64(stop // 8))
        for learner in range(learning.shape[0]):
            t = learning[learner]
            count, divisor = ends[t + 1] - ends[t], splat_d(divisors[learner])
            begin, last = pairs + np.uint64(ends[t]) * PAIR_BYTES, pairs + np.uint64(ends[t + 1]) * PAIR_BYTES
            own_tile = before + np.uint64(t) * TILE_BYTES
            for first in range(start, stop, 2 * LANES):
                at, bits_at, in_tile = np.uint64(4 * first), np.uint64(first // 8), np.uint64(4 * (first - start))
                prefetch(merged[t] + at + TILE_BYTES)
                prefetch(merged[t] + at + TILE_BYTES + LINE)
                votes0, votes1 = zero_i(), zero_i()
                pair = begin
                while agreement != NONE and pair < last:
                    fetch_next(pair, first)
                    tile, bits = tiles + in_tile + number_at(pair + CLIENT), number_at(pair + MASK) + bits_at
                    voice = splat_i(np.int32(number_at(pair + VOICE)))
                    votes0 = counted(votes0, voice, said(load_bits(bits), load_f(tile), complete))
                    votes1 = counted(votes1, voice, said(load_bits(bits + HALF), load_f(tile + LINE), complete))
                    pair += PAIR_BYTES
                borrowed0, borrowed1 = zero_d(), zero_d()
                for other in range(related_ends[learner], related_ends[learner + 1]):
                    tau, weight = before + np.uint64(related[other]) * TILE_BYTES + in_tile, splat_d(weights[other])
                    borrowed0 = add_d(borrowed0, mul_d(weight, to_double(load_f(tau))))
                    borrowed1 = add_d(borrowed1, mul_d(weight, to_double(load_f(tau + LINE))))
                own0, own1 = to_double(load_f(own_tile + in_tile)), to_double(load_f(own_tile + in_tile + LINE))
                share0, share1 = agreed(votes0, count, agreement, rho), agreed(votes1, count, agreement, rho)
                store_f(merged[t] + at, combined(own0, borrowed0, share0, divisor, mean))
                store_f(merged[t] + at + LINE, combined(own1, borrowed1, share1, divisor, mean))
