"""Compiled loops over blocks of parameters: what `unify` runs on a CPU. `cpu_replies` has those of `aggregate`.

Numba compiles them when this module is first imported and keeps the machine code beside it or in the user's cache.
Import it where it is needed: Numba takes more than half a second. Every kernel releases Python's global lock and is run
by our own threads, one block each. Addresses are of contiguous memory, and blocks are whole groups of GROUP parameters:
callers pad the end of a vector.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from matu_flwr.merging.kernels.lanes import (
    LANES,
    abs_d,
    abs_f,
    add_d,
    both,
    compiled,
    div_d,
    flipped_f,
    greater_d,
    greater_f,
    less_d,
    load_d,
    load_f,
    max_f,
    min_f,
    negative_f,
    not_all,
    number_at,
    prefetch,
    select_d,
    select_f,
    splat_d,
    store_bits,
    store_d,
    store_f,
    to_double,
    to_float,
    zero_d,
    zero_f,
)

# Parameters whose elected values stay in a core's first cache while one task after the other is compared with them, so
# that the sums of a task stay in registers.
TILE = 256
SUMS = np.uint64(8 * LANES)  # bytes of the partial sums of one norm
NORMS = np.uint64(5) * SUMS  # of one task
WORK = 9 * TILE  # bytes: μ of a tile in float64, and where it is not 0 as bits


@njit(nogil=True, inline="always")
def largest_agreeing(taus, tasks, at):  # type: ignore[no-untyped-def]
    """σ ⊙ μ of 16 parameters, μ the largest magnitude that agrees: the largest positive or the largest negative."""
    zero, nothing = zero_f(), zero_d()
    total, top, low = nothing, zero, zero
    for t in range(tasks):
        x = load_f(number_at(taus + np.uint64(8 * t)) + at)
        total, top, low = add_d(total, to_double(x)), max_f(x, top), min_f(x, low)
    return select_f(greater_d(total, nothing), top, select_f(less_d(total, nothing), low, zero))


@njit(nogil=True, inline="always")
def mean_magnitude(taus, tasks, at):  # type: ignore[no-untyped-def]
    """σ ⊙ μ of 16 parameters, μ the mean magnitude: added up and divided in float64, rounded once."""
    nothing = zero_d()
    total, size = nothing, nothing
    for t in range(tasks):
        x = to_double(load_f(number_at(taus + np.uint64(8 * t)) + at))
        total, size = add_d(total, x), add_d(size, abs_d(x))
    mu = to_float(div_d(size, splat_d(float(tasks))))
    return select_f(greater_d(total, nothing), mu, select_f(less_d(total, nothing), negative_f(mu), zero_f()))


@njit(nogil=True, inline="always")
def agreeing(x, elected):  # type: ignore[no-untyped-def]
    """Where an elected value is not 0, and where it has the sign of x."""
    zero = zero_f()
    known = greater_f(abs_f(elected), zero)
    # x ⊙ τ > 0 without the underflow of a product of two tiny numbers.
    return known, both(known, greater_f(flipped_f(x, elected), zero))


@njit(nogil=True, inline="always")
def added(total, mask, x):  # type: ignore[no-untyped-def]
    """Add x where the mask is set."""
    return add_d(total, select_d(mask, x, zero_d()))


@njit(nogil=True, inline="always")
def added_but(total, mask, x):  # type: ignore[no-untyped-def]
    """Add x where the mask is cleared."""
    return add_d(total, select_d(mask, zero_d(), x))


@compiled("void(uint64, int64, int64, boolean, uint64, uint64, uint64, uint64)")
def unify_block(taus, tasks, size, mean, work, unified, masks, norms):  # type: ignore[no-untyped-def]
    """Elect and mask one block, and add up the norms of which the rescalers are made.

    Parameters
    ----------
    taus : address
        Of (T,) uint64: addresses of τ^t, float32, in the order in which their sum is to be taken.
    tasks, size : int
        T, and parameters: a multiple of 16.
    mean : bool
        μ is the mean over all tasks, not the largest that agrees.
    work : address
        Of WORK bytes to work in.
    unified : address
        Of τ, float32.
    masks : address
        Of (T,) uint64: addresses of m^t as bits.
    norms : address
        Of (T, 5, 16) float64: 16 partial sums each, which are added to: ‖τ^t‖₁ where τ = 0, and `Norms` but for the
        first. One of them is not finite if τ^t is not: float64 cannot overflow by adding float32 numbers.
    """
    zero = zero_f()
    for start in range(0, size, TILE):
        stop = min(start + TILE, size)
        for first in range(start, stop, LANES):
            at = np.uint64(4 * first)
            elected = mean_magnitude(taus, tasks, at) if mean else largest_agreeing(taus, tasks, at)
            store_f(unified + at, elected)
            store_d(work + np.uint64(8 * (first - start)), to_double(abs_f(elected)))
        for t in range(tasks):
            tau, bits = number_at(taus + np.uint64(8 * t)), number_at(masks + np.uint64(8 * t))
            sums = norms + np.uint64(t) * NORMS
            set_, cleared = load_d(sums + SUMS), load_d(sums + np.uint64(4) * SUMS)
            for first in range(start, stop, LANES):
                at = np.uint64(4 * first)
                prefetch(tau + at + np.uint64(4 * TILE))  # the next tile, while this one is computed
                mu = load_d(work + np.uint64(8 * (first - start)))
                _, mask = agreeing(load_f(tau + at), load_f(unified + at))
                store_bits(bits + np.uint64(first // 8), mask)
                set_, cleared = added(set_, mask, mu), added_but(cleared, mask, mu)  # μ is 0 where nothing is known
            store_d(sums + SUMS, set_)
            store_d(sums + np.uint64(4) * SUMS, cleared)
            # A second loop for the other norms: the sums of all four do not fit the registers of AVX2.
            own_set, own_cleared = load_d(sums + np.uint64(2) * SUMS), load_d(sums + np.uint64(3) * SUMS)
            for first in range(start, stop, LANES):
                at = np.uint64(4 * first)
                x = load_f(tau + at)
                known, mask = agreeing(x, load_f(unified + at))
                size_of_x = to_double(select_f(known, abs_f(x), zero))
                own_set, own_cleared = added(own_set, mask, size_of_x), added_but(own_cleared, mask, size_of_x)
                if not_all(known):
                    store_d(sums, add_d(load_d(sums), to_double(select_f(known, zero, abs_f(x)))))
            store_d(sums + np.uint64(2) * SUMS, own_set)
            store_d(sums + np.uint64(3) * SUMS, own_cleared)
