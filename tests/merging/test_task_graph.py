"""Server steps 3 and 4: similarity of tasks, z-scores, related tasks and their weights."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from matu_flwr.merging import MergeOptions, TaskGraph
from matu_flwr.merging.task_graph import SignAgreement, related_tasks, relation_weights
from tests.merging import slow_twin
from tests.merging.cases import laws, options, twins


def graph_of(signs: list[list[int]], options: MergeOptions, at_a_time: int = 3) -> TaskGraph:
    """Graph of sign vectors, added in blocks."""
    agreement = SignAgreement(len(signs))
    plane = torch.tensor(signs, dtype=torch.int8)
    for start in range(0, plane.shape[1], at_a_time):
        agreement.add(SignAgreement.of(plane[:, start : start + at_a_time]))
    return agreement.graph([f"task{k}" for k in range(len(signs))], options)


# ---------------------------------------------------------------- by hand

#   a       + + - 0
#   b       + - - +      a·b = 1 - 1 + 1 + 0 = 1, both non-zero at 3 parameters
#   c       0 0 0 -      a·c = 0, nowhere both;   b·c = -1, both at 1 parameter
SIGNS = [[1, 1, -1, 0], [1, -1, -1, 1], [0, 0, 0, -1]]


def test_similarity_over_all_parameters_by_hand():
    # S_ab = ½(1 + 1/4) = .625; S_ac = ½; S_bc = ½(1 - 1/4) = .375; on the diagonal ½(1 + non-zero / 4)
    graph = graph_of(SIGNS, MergeOptions.paper(similarity="all"))
    assert graph.similarity.tolist() == [[0.875, 0.625, 0.5], [0.625, 1.0, 0.375], [0.5, 0.375, 0.625]]


def test_similarity_over_the_support_by_hand():
    # S_ab = ½(1 + 1/3) = 2/3; S_ac = ½, nothing to compare; S_bc = ½(1 - 1/1) = 0; on the diagonal 1
    graph = graph_of(SIGNS, MergeOptions.paper(similarity="support"))
    expected = [[1, 2 / 3, 0.5], [2 / 3, 1, 0], [0.5, 0, 1]]
    assert graph.similarity.tolist() == [pytest.approx(row, rel=1e-15) for row in expected]


@pytest.mark.parametrize("similarity", ["all", "support"])
def test_z_by_hand(similarity):
    # z_ab = 1 / √3; z_ac = 0; z_bc = -1 / √1; on the diagonal √(non-zero)
    graph = graph_of(SIGNS, MergeOptions.paper(similarity=similarity))
    root = math.sqrt(3)
    assert graph.z.tolist() == [pytest.approx(row) for row in [[root, 1 / root, 0], [1 / root, 2, -1], [0, -1, 1]]]


SIMILARITY = [  #  a    b    c    d
    [1.0, 0.6, 0.9, 0.6],
    [0.6, 1.0, 0.5, 0.4],
    [0.9, 0.5, 1.0, 0.5],
    [0.6, 0.4, 0.5, 1.0],
]
Z = [
    [9.0, 3.0, 1.0, 2.0],
    [3.0, 9.0, 0.0, -1.0],
    [1.0, 0.0, 9.0, 0.0],
    [2.0, -1.0, 0.0, 9.0],
]


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({"kappa": 3, "epsilon": 0.5}, {"a": ["c", "b", "d"], "b": ["a", "c"], "c": ["a", "b", "d"], "d": ["a", "c"]}),
        ({"kappa": 2, "epsilon": 0.5}, {"a": ["c", "b"], "b": ["a", "c"], "c": ["a", "b"], "d": ["a", "c"]}),
        ({"kappa": 1, "epsilon": 0.6}, {"a": ["c"], "b": ["a"], "c": ["a"], "d": ["a"]}),
        ({"kappa": 3, "epsilon": 0.91}, {"a": [], "b": [], "c": [], "d": []}),
        ({"kappa": 0, "epsilon": 0.0}, {"a": [], "b": [], "c": [], "d": []}),
        # ε in standard errors: whoever reaches it, the most similar first
        ({"kappa": 3, "epsilon": 1, "epsilon_unit": "z"}, {"a": ["c", "b", "d"], "b": ["a"], "c": ["a"], "d": ["a"]}),
        ({"kappa": 3, "epsilon": 2, "epsilon_unit": "z"}, {"a": ["b", "d"], "b": ["a"], "c": [], "d": ["a"]}),
        ({"kappa": 1, "epsilon": 1, "epsilon_unit": "z"}, {"a": ["c"], "b": ["a"], "c": ["a"], "d": ["a"]}),
        ({"kappa": 3, "epsilon": 3.1, "epsilon_unit": "z"}, {"a": [], "b": [], "c": [], "d": []}),
    ],
)
def test_related_tasks_by_hand(switches, expected):
    s, z = torch.tensor(SIMILARITY, dtype=torch.float64), torch.tensor(Z, dtype=torch.float64)
    assert related_tasks(["a", "b", "c", "d"], s, z, MergeOptions.paper(**switches)) == expected


@pytest.mark.parametrize(("weight", "expected"), [("similarity", (0.75, 0.5, 0.25)), ("excess", (0.5, 0, 0))])
def test_relation_weights_by_hand(weight, expected):
    similarity = torch.tensor([[1, 0.75, 0.5, 0.25]] + [[0.0] * 4] * 3, dtype=torch.float64)
    related = {"a": ["b", "c", "d"], "b": [], "c": [], "d": []}
    graph = TaskGraph(["a", "b", "c", "d"], similarity, torch.zeros(4, 4), related)
    weights = relation_weights(graph, MergeOptions.paper(relation_weight=weight))
    assert weights == {"a": dict(zip("bcd", expected, strict=True)), "b": {}, "c": {}, "d": {}}


# ---------------------------------------------------------------- the slow twin

sign_planes = st.integers(1, 20).flatmap(
    lambda d: st.lists(st.lists(st.sampled_from([-1, 0, 1, 1]), min_size=d, max_size=d), min_size=1, max_size=5)
)


@twins
@given(signs=sign_planes, options=options(), at_a_time=st.integers(1, 20))
def test_graph_is_its_slow_twin(signs, options, at_a_time):
    graph = graph_of(signs, options, at_a_time)
    similarity = [[slow_twin.similarity_of(a, b, options) for b in signs] for a in signs]
    z = [[slow_twin.z_of(a, b) for b in signs] for a in signs]
    assert graph.similarity.tolist() == similarity
    assert graph.z.tolist() == [pytest.approx(row, rel=1e-14) for row in z]
    related = {t: slow_twin.related_to(k, graph.tasks, similarity, z, options) for k, t in enumerate(graph.tasks)}
    assert graph.related == related
    weights = relation_weights(graph, options)
    for row, task in enumerate(graph.tasks):
        expected = {u: slow_twin.weight_of(similarity[row][graph.tasks.index(u)], options) for u in related[task]}
        assert weights[task] == expected


# ---------------------------------------------------------------- laws


@laws
@given(signs=sign_planes, options=options())
def test_similarity_is_symmetric_and_in_the_unit_interval(signs, options):
    graph = graph_of(signs, options)
    assert torch.equal(graph.similarity, graph.similarity.T)
    assert torch.equal(graph.z, graph.z.T)
    assert bool(((graph.similarity >= 0) & (graph.similarity <= 1)).all())
    assert graph.similarity.dtype == graph.z.dtype == torch.float64


@laws
@given(signs=sign_planes, options=options())
def test_the_opposite_task_has_the_opposite_similarity(signs, options):
    d = len(signs[0])
    turned = graph_of([signs[0], [-s for s in signs[-1]]], options)
    plain = graph_of([signs[0], signs[-1]], options)
    assert turned.similarity[0, 1] == pytest.approx(1 - plain.similarity[0, 1].item(), abs=1e-15)
    assert turned.z[0, 1] == -plain.z[0, 1]
    same = graph_of([[1] * d, [1] * d, [-1] * d], options)
    assert same.similarity.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


@laws
@given(signs=sign_planes, options=options())
def test_related_tasks_are_at_most_kappa_others_above_epsilon(signs, options):
    graph = graph_of(signs, options)
    score = graph.z if options.epsilon_unit == "z" else graph.similarity
    index = {task: row for row, task in enumerate(graph.tasks)}
    for task, related in graph.related.items():
        assert len(related) == len(set(related)) <= options.kappa
        assert task not in related
        assert all(score[index[task], index[other]] >= options.epsilon for other in related)
        left_out = [other for other in graph.tasks if other not in (*related, task)]
        if len(related) < options.kappa:
            assert all(score[index[task], index[other]] < options.epsilon for other in left_out)


@pytest.mark.parametrize("similarity", ["all", "support"])
def test_unrelated_signs_have_similarity_one_half_and_standard_normal_z(similarity):
    # 20 tasks of coin tosses, d = 20 000: 190 pairs, standard error of S is 1 / (2√d) = .0035.
    generator = torch.Generator().manual_seed(1)
    agreement = SignAgreement(20)
    agreement.add(SignAgreement.of((torch.randint(0, 2, (20, 20_000), generator=generator) * 2 - 1).to(torch.int8)))
    graph = agreement.graph([f"task{k:02}" for k in range(20)], MergeOptions.paper(similarity=similarity))
    pairs = torch.triu_indices(20, 20, offset=1)
    s, z = graph.similarity[pairs[0], pairs[1]], graph.z[pairs[0], pairs[1]]
    assert s.mean().item() == pytest.approx(0.5, abs=0.002)
    assert s.std().item() == pytest.approx(1 / (2 * math.sqrt(20_000)), rel=0.2)
    assert z.std().item() == pytest.approx(1, rel=0.2)
