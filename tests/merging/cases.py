"""Random cases for the tests of `merging`, and the way from tensors to the slow twin's lists and back."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from unittest import mock

import torch
from hypothesis import strategies as st

from matu_flwr.merging import ClientUpdate, MergeOptions, PackedMasks, UnifiedTaskVector, unify
from matu_flwr.merging import blocks as blocks_module
from tests.merging import slow_twin
from tests.support.laws import examples

laws = examples(50)  # ordinary property tests
twins = examples(150)  # comparisons with the slow twin

TINY = 2.0**-149  # the smallest float32 above zero
HUGE = 2.0**99  # near the end of what unify takes


@contextmanager
def block_size(parameters: int) -> Iterator[None]:
    """Make blocks so small that a few parameters fill several of them."""
    with mock.patch.object(blocks_module, "BLOCK", parameters):
        yield


block_sizes = st.sampled_from([8, 16, 1 << 15])


# ---------------------------------------------------------------- numbers and vectors

# A small grid, so that ties, exact cancellation and lost elections are common.
grid = st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0])
integers = st.integers(-1000, 1000).map(float)
denormals = st.integers(-7, 7).map(lambda k: k * TINY)
anything = st.floats(-(2.0**99), 2.0**99, width=32)
mixed = st.one_of(grid, anything, denormals, st.sampled_from([HUGE, -HUGE, 2.0**-100, -(2.0**-100)]))


def vectors_of(values: st.SearchStrategy[float], d: int) -> st.SearchStrategy[list[float]]:
    """Lists of d numbers that float32 holds exactly."""
    return st.lists(values, min_size=d, max_size=d)


@st.composite
def task_vectors(draw: st.DrawFn, values: st.SearchStrategy[float] = mixed, max_d: int = 37, max_tasks: int = 5):
    """Task vectors of one client, as lists by name."""
    d = draw(st.integers(0, max_d))
    names = [f"task{k}" for k in range(draw(st.integers(1, max_tasks)))]
    return {name: to_floats(to_tensor(draw(vectors_of(values, d)))) for name in names}


def to_tensor(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def to_tensors(vectors: Mapping[str, list[float]]) -> dict[str, torch.Tensor]:
    return {name: to_tensor(values) for name, values in vectors.items()}


def to_floats(tensor: torch.Tensor) -> list[float]:
    return tensor.double().tolist()


def bits(mask: str) -> torch.Tensor:
    """A mask written as "1101"."""
    return torch.tensor([char == "1" for char in mask], dtype=torch.bool)


# ---------------------------------------------------------------- replies


def reply(
    client: str, vector: list[float], masks: Mapping[str, str], rescalers: Mapping[str, float], **examples: int
) -> ClientUpdate:
    """A reply by hand; one example per task unless said."""
    unified = UnifiedTaskVector(to_tensor(vector), {t: bits(m) for t, m in masks.items()}, dict(rescalers))
    return ClientUpdate(unified, {t: examples.get(t, 1) for t in masks}, client)


def single(client: str, task: str, vector: list[float], examples: int = 1) -> ClientUpdate:
    """A reply of a client that holds one task."""
    mask = "".join("1" if x else "0" for x in vector)
    return reply(client, vector, {task: mask}, {task: 1.0 if "1" in mask else 0.0}, **{task: examples})


def packed(update: ClientUpdate) -> ClientUpdate:
    unified = update.vectors
    masks = PackedMasks.of(unified.masks, unified.d)
    unified = UnifiedTaskVector(unified.vector, masks, unified.rescalers, unified.opposites)
    return ClientUpdate(unified, update.num_examples, update.client)


def to_twin(update: ClientUpdate) -> slow_twin.Reply:
    """The same reply as lists."""
    unified = update.vectors
    masks = {task: unified.masks[task].tolist() for task in unified.masks}
    plain = slow_twin.Unified(to_floats(unified.vector), masks, dict(unified.rescalers), dict(unified.opposites))
    return slow_twin.Reply(update.client, plain, dict(update.num_examples))


examples_counts = st.one_of(st.integers(1, 4), st.integers(1, 1_000_000))
moderate = st.one_of(grid, st.integers(-6400, 6400).map(lambda k: k / 64))
scales = st.sampled_from([1.0, 1.0, 1.0, 2.0**-100, 2.0**86, TINY])


@st.composite
def replies(
    draw: st.DrawFn,
    values: st.SearchStrategy[float] = moderate,
    scale: st.SearchStrategy[float] = scales,
    max_d: int = 37,
    max_clients: int = 5,
    max_tasks: int = 4,
    one_holder: bool = False,
    as_clients_send: bool = False,
) -> list[ClientUpdate]:
    """Replies of one round: any vectors, masks and rescalers, or (`as_clients_send`) what `unify` makes."""
    d = draw(st.integers(1, max_d))
    names = [f"task{k}" for k in range(draw(st.integers(1, max_tasks)))]
    factor = draw(scale)
    updates = []
    free = list(names)
    operator = {
        "magnitude": draw(st.sampled_from(["max", "mean"])),
        "reconstruction": draw(st.sampled_from(["masked", "complete"])),
    }
    for n in range(draw(st.integers(1, max_clients))):
        if not free:
            break
        tasks = draw(st.lists(st.sampled_from(free), min_size=1, unique=True))
        if one_holder:
            free = [name for name in free if name not in tasks]
        opposites = {}
        if as_clients_send:
            unified = unify({t: to_tensor(draw(vectors_of(values, d))) * factor for t in tasks}, **operator)
            masks, rescalers, opposites = dict(unified.masks), unified.rescalers, unified.opposites
            vector = unified.vector
        else:
            vector = to_tensor(draw(vectors_of(values, d))) * factor
            masks, rescalers = {}, {}
            for task in tasks:
                as_bits = draw(st.integers(0, 2**d - 1))
                masks[task] = torch.tensor([bool(as_bits >> i & 1) for i in range(d)])
                rescalers[task] = draw(st.sampled_from([0.0, 0.5, 1.0, 1.0, 1.5, 0.7123, 3.3]))
                if rescalers[task] == 0:
                    masks[task].zero_()  # the two go together
            if draw(st.booleans()):
                opposites = {task: draw(st.sampled_from([0.0, 0.5, 0.7123])) for task in tasks}
        if draw(st.booleans()):
            vector = vector.bfloat16()
        if draw(st.booleans()):
            masks = PackedMasks.of(masks, d)
        num_examples = {task: draw(examples_counts) for task in tasks}
        unified = UnifiedTaskVector(vector, masks, rescalers, opposites)
        updates.append(ClientUpdate(unified, num_examples, f"client{n}"))
    return updates


@st.composite
def options(draw: st.DrawFn, **fixed: object) -> MergeOptions:
    """Any switches, with thresholds that are met exactly now and then."""
    unit = fixed.get("epsilon_unit") or draw(st.sampled_from(["similarity", "z"]))
    epsilon = [0.0, 0.25, 0.5, 0.5, 0.625, 0.75, 1.0] if unit == "similarity" else [-1.0, 0.0, 0.5, 1.0, 2.0]
    switches = {
        "rho": draw(st.sampled_from([0.0, 0.2, 1 / 3, 0.4, 0.5, 0.6, 2 / 3, 1.0])),
        "kappa": draw(st.integers(0, 4)),
        "epsilon": draw(st.sampled_from(epsilon)),
        "epsilon_unit": unit,
        "agreement": draw(st.sampled_from(["threshold-or-soft", "hard", "soft", "none"])),
        "similarity": draw(st.sampled_from(["all", "support"])),
        "signs": draw(st.sampled_from(["masked", "complete"])),
        "relation_weight": draw(st.sampled_from(["similarity", "excess"])),
        "combine": draw(st.sampled_from(["mean", "sum"])),
    }
    return MergeOptions.paper(**{**switches, **fixed})


def same_result(a, b) -> bool:
    """Are two results of `aggregate` the same bits?"""
    return (
        a.tasks == b.tasks
        and a.related == b.related
        and torch.equal(a.similarity, b.similarity)
        and torch.equal(a.graph.z, b.graph.z)
        and all(torch.equal(a.task_vectors[t], b.task_vectors[t]) for t in a.tasks)
    )


def in_full(update: ClientUpdate) -> tuple:
    """Everything in a reply, as plain values: to see that a function left it alone."""
    unified = update.vectors
    masks = {t: unified.masks[t].tolist() for t in unified.masks}
    rescalers = dict(unified.rescalers), dict(unified.opposites)
    return unified.vector.tolist(), unified.vector.dtype, masks, rescalers, dict(update.num_examples)
