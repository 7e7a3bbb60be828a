"""The slow plain twin of `matu_flwr.merging`: the same mathematics as loops over lists of floats.

Written from the definition of the method, before the fast version was read, and kept free of torch and numpy.
Every function is one numbered step; tests compare the fast version with it.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Vector = list[float]
Bits = list[bool]
Matrix = list[list[float]]


def sgn(x: float) -> int:
    """Sign of a number; sgn(0) = 0."""
    return (x > 0) - (x < 0)


# ---------------------------------------------------------------- client: elect, mask, rescale


@dataclass
class Unified:
    """τ_n with the modulators of its tasks."""

    vector: Vector
    masks: dict[str, Bits]
    rescalers: dict[str, float]
    opposites: dict[str, float] | None = None


def unify(vectors: Mapping[str, Vector], magnitude: str = "max", reconstruction: str = "masked") -> Unified:
    """Client steps 2 and 3; the other magnitude, and the second rescaler, as `matu_flwr.merging.unify` defines them."""
    tasks = sorted(vectors)
    d = len(vectors[tasks[0]])
    unified = []
    for i in range(d):
        total = 0.0  # float64; the tasks in the order of their names
        for t in tasks:
            total += vectors[t][i]
        sigma = sgn(total)
        mu = 0.0
        for t in tasks:
            if magnitude == "max" and sigma != 0 and sgn(vectors[t][i]) == sigma:
                mu = max(mu, abs(vectors[t][i]))
        if magnitude == "mean" and sigma != 0:
            mu = float32(sum(abs(vectors[t][i]) for t in tasks) / len(tasks))
        unified.append(sigma * mu)
    masks, rescalers = {}, {}
    for t in tasks:
        masks[t] = [sgn(vectors[t][i]) * sgn(unified[i]) > 0 for i in range(d)]
        own = math.fsum(abs(x) for x in vectors[t])
        kept = math.fsum(abs(unified[i]) for i in range(d) if masks[t][i])
        rescalers[t] = min(own / kept, 1e6) if any(masks[t]) else 0.0
    if reconstruction == "masked":
        return Unified(unified, masks, rescalers)
    opposites = {}
    for t in tasks:
        for bit, found in ((True, rescalers), (False, opposites)):
            where = [i for i in range(d) if unified[i] != 0 and masks[t][i] == bit]
            elected = math.fsum(abs(unified[i]) for i in where)
            found[t] = min(math.fsum(abs(vectors[t][i]) for i in where) / elected, 1e6) if where else 0.0
    return Unified(unified, masks, rescalers, opposites)


def float32(x: float) -> float:
    """Round to the nearest float32."""
    return struct.unpack("f", struct.pack("f", x))[0]


def reconstruct(unified: Unified, task: str) -> Vector:
    """Client step 4: λ · m ⊙ τ."""
    mask, rescaler = unified.masks[task], unified.rescalers[task]
    opposite = unified.opposites[task] if unified.opposites else 0.0
    return [rescaler * x if m else -opposite * x for x, m in zip(unified.vector, mask, strict=True)]


def pack(mask: Bits) -> list[int]:
    """Bit i % 8, least significant first, of byte i // 8."""
    packed = [0] * math.ceil(len(mask) / 8)
    for i, bit in enumerate(mask):
        if bit:
            packed[i // 8] += 2 ** (i % 8)
    return packed


def unpack(packed: list[int], d: int) -> Bits:
    """Inverse of `pack`."""
    return [packed[i // 8] // 2 ** (i % 8) % 2 == 1 for i in range(d)]


# ---------------------------------------------------------------- server


@dataclass
class Reply:
    """What one client sent."""

    client: str
    vectors: Unified
    num_examples: dict[str, int]


@dataclass
class TaskAggregate:
    """One task over its holders."""

    alpha: Vector
    mask: Vector
    tau: Vector
    sign: list[int]
    size: Vector  # Σ_n γ_n |τ̄_n|: against what rounding errors in tau are to be measured


@dataclass
class Merged:
    """The whole round."""

    tasks: list[str]
    aggregates: dict[str, TaskAggregate]
    similarity: Matrix
    z: Matrix
    related: dict[str, list[str]]
    weights: dict[str, dict[str, float]]
    task_vectors: dict[str, Vector]
    sizes: dict[str, Vector]


def client_signs(unified: Unified, task: str, options: Any) -> list[int]:
    """Signs of one client's vector of one task: sgn(m ⊙ τ), or sgn(τ) ⊙ (2m − 1)."""
    signs = []
    for x, m in zip(unified.vector, unified.masks[task], strict=True):
        if options.signs == "masked":
            signs.append(sgn(x) if m else 0)
        elif unified.rescalers[task] == 0 and not (unified.opposites or {}).get(task):
            signs.append(0)  # an all-zero task has no direction
        else:
            signs.append(sgn(x) if m else -sgn(x))
    return signs


def aggregated_mask_at(alpha: float, options: Any) -> float:
    """m̂ of one coordinate."""
    if options.agreement == "none":
        return 1.0
    if options.agreement == "soft":
        return alpha
    if options.agreement == "hard":
        return 1.0 if alpha >= options.rho else 0.0
    return 1.0 if alpha >= options.rho else alpha


def aggregate_task(task: str, holders: list[Reply], options: Any) -> TaskAggregate:
    """Server steps 1 and 2."""
    d = len(holders[0].vectors.vector)
    examples = [reply.num_examples[task] for reply in holders]
    signs = [client_signs(reply.vectors, task, options) for reply in holders]
    vectors = [reconstruct(reply.vectors, task) for reply in holders]
    out = TaskAggregate([], [], [], [], [])
    for i in range(d):
        alpha = abs(sum(s[i] for s in signs)) / len(holders)
        mask = aggregated_mask_at(alpha, options)
        mean, size = 0.0, 0.0
        for n, vector in zip(examples, vectors, strict=True):
            mean += n / sum(examples) * vector[i]
            size += n / sum(examples) * abs(vector[i])
        if options.signs == "masked":
            direction = sgn(mask * mean)
        else:
            direction = sgn(sum(n * s[i] for n, s in zip(examples, signs, strict=True)))
        out.alpha.append(alpha)
        out.mask.append(mask)
        out.tau.append(mask * mean)
        out.sign.append(direction)
        out.size.append(size)
    return out


def sign_dot(a: list[int], b: list[int]) -> int:
    """Coordinates where the signs agree minus those where they differ."""
    return sum(x * y for x, y in zip(a, b, strict=True))


def sign_support(a: list[int], b: list[int]) -> int:
    """Coordinates where both signs are non-zero."""
    return sum(1 for x, y in zip(a, b, strict=True) if x != 0 and y != 0)


def similarity_of(a: list[int], b: list[int], options: Any) -> float:
    """Server step 3: ½(1 + dot / count); ½ where there is nothing to count."""
    count = len(a) if options.similarity == "all" else sign_support(a, b)
    return 0.5 * (1 + sign_dot(a, b) / count) if count else 0.5


def z_of(a: list[int], b: list[int]) -> float:
    """The sign dot product in its standard errors, if signs were coin tosses."""
    both = sign_support(a, b)
    return sign_dot(a, b) / math.sqrt(both) if both else 0.0


def related_to(t: int, tasks: list[str], similarity: Matrix, z: Matrix, options: Any) -> list[str]:
    """Server step 4: Z^t."""
    score = similarity if options.epsilon_unit == "similarity" else z
    found = [u for u in range(len(tasks)) if u != t and score[t][u] >= options.epsilon]
    found.sort(key=lambda u: (-similarity[t][u], tasks[u]))
    return [tasks[u] for u in found[: options.kappa]]


def weight_of(similarity: float, options: Any) -> float:
    """Weight of a related task."""
    return similarity if options.relation_weight == "similarity" else max(0.0, 2 * similarity - 1)


def combine(tau: Vector, mask: Vector, related: list[Vector], weights: list[float], options: Any) -> Vector:
    """Server step 5."""
    if not related:
        return list(tau)
    out = []
    for i in range(len(tau)):
        learned = sum(w * mask[i] * other[i] for w, other in zip(weights, related, strict=True))
        if options.combine == "mean":
            out.append((tau[i] + learned) / (1 + sum(weights)))
        else:
            out.append(tau[i] + learned / len(related))
    return out


def aggregate(replies: list[Reply], options: Any) -> Merged:
    """Server steps 1 to 5."""
    replies = sorted(replies, key=lambda reply: reply.client)
    tasks = sorted({t for reply in replies for t in reply.num_examples})
    per_task = {t: aggregate_task(t, [r for r in replies if t in r.num_examples], options) for t in tasks}
    signs = [per_task[t].sign for t in tasks]
    similarity = [[similarity_of(a, b, options) for b in signs] for a in signs]
    z = [[z_of(a, b) for b in signs] for a in signs]
    related, weights, vectors, sizes = {}, {}, {}, {}
    for row, t in enumerate(tasks):
        own = per_task[t]
        related[t] = related_to(row, tasks, similarity, z, options)
        weights[t] = {u: weight_of(similarity[row][tasks.index(u)], options) for u in related[t]}
        w = list(weights[t].values())
        vectors[t] = combine(own.tau, own.mask, [per_task[u].tau for u in related[t]], w, options)
        sizes[t] = combine(own.size, own.mask, [per_task[u].size for u in related[t]], w, options)
    return Merged(tasks, per_task, similarity, z, related, weights, vectors, sizes)
