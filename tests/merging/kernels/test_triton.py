"""The GPU's kernels: in Triton's interpreter on the CPU, and on a GPU where there is one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from matu_flwr.merging import MergeError, MergeOptions, UnifiedTaskVector, aggregate, unify
from tests.merging.kernels.test_kernels import random_replies

# In a process of its own: what is interpreted is decided when the kernels are first imported.
INTERPRETED = """
import sys, torch
sys.path[:0] = sys.argv[1:]
from tests.merging.kernels.test_kernels import drawn, random_replies
from matu_flwr.merging import (
    PAPER, ClientUpdate, MergeOptions, UnifiedTaskVector, aggregate, unify
)
from matu_flwr.merging.kernels import triton_merge, triton_unify
from matu_flwr.merging.kernels.cpu_blocks import unify_on_cpu
from matu_flwr.merging.task_graph import relation_weights

triton_unify.FEW, triton_merge.KEPT = 3, 2  # both kernels, and results that do not fit into registers
triton_unify.FEW_SHAPE, triton_unify.MANY_SHAPE = (64, 4, 2), (64, 4, 1)
triton_merge.MERGE_SHAPE, triton_merge.COMBINE_SHAPE = (64, 4, 2), (64, 4)
SWITCHES = [  # each choice once; interpreted kernels are slow
    ("complete", "mean", "threshold-or-soft"), ("masked", "sum", "hard"), ("masked", "mean", "soft"),
    ("complete", "sum", "none"),
]
for seed, d in enumerate([1, 65, 130]):
    generator = torch.Generator().manual_seed(seed)
    taus = [drawn(generator, d) for _ in range(1 + 2 * seed)]
    for magnitude in ("max", "mean"):
        vector, masks, norms = unify_on_cpu(taus, magnitude)
        found = triton_unify.unify_in_triton(taus, magnitude)
        other_vector, other_masks, other_norms = found
        assert torch.equal(vector, other_vector), d
        assert all(map(torch.equal, masks, other_masks)), d
        for mine, theirs in zip(norms, other_norms, strict=True):
            for name, norm in vars(mine).items():
                assert abs(norm - vars(theirs)[name]) <= 1e-12 * norm, (d, name)

    updates = random_replies(seed, d, 2 + seed, 3)
    for signs, combine, agreement in SWITCHES:
        options = MergeOptions.paper(signs=signs, combine=combine, agreement=agreement, epsilon=0, kappa=2)
        expected = aggregate(updates, options)
        merged = torch.empty(len(expected.tasks), d)
        ordered = sorted(updates, key=lambda update: update.client)
        merge = triton_merge.MergeInTriton(ordered, expected.tasks, options, merged)
        counts, broken = merge.merge()
        assert broken is None
        graph = counts.graph(expected.tasks, options)
        assert torch.equal(graph.similarity, expected.similarity), (d, options)
        assert torch.equal(graph.z, expected.graph.z)
        weights = relation_weights(graph, options)
        learning = {task: weights[task] for task in expected.tasks if sum(weights[task].values()) > 0}
        if learning:
            merge.combine(learning)
        for row, task in enumerate(expected.tasks):
            assert torch.equal(merged[row], expected.task_vectors[task]), (d, options, task)
    updates[0].vectors.vector[d - 1] = float("inf")
    assert triton_merge.MergeInTriton(updates, expected.tasks, options, merged).merge()[1] == 0
# α = 2/5 is ρ = 0.4 in float64 and below it in float32
signs = [1.0, 1, 1, -1, 0]
sent = [unify({"a": torch.tensor([sign, 1.0])}, **PAPER) for sign in signs]
five = [ClientUpdate(unified, {"a": 1}, str(n)) for n, unified in enumerate(sent)]
merged = torch.empty(1, 2)
triton_merge.MergeInTriton(five, ["a"], MergeOptions.paper(rho=0.4, kappa=0), merged).merge()
assert merged.tolist() == [[torch.tensor(0.4).item(), 1.0]], merged
# a result beyond float32 is infinity, not NaN, after the cross-task step too
every = dict.fromkeys("ab", torch.ones(2, dtype=torch.bool))
huge = [ClientUpdate(UnifiedTaskVector(torch.tensor([3e38, -0.0]), every, {"a": 2.0, "b": 2.0}), {"a": 1, "b": 1}, "c")]
options = MergeOptions.paper(epsilon=0, kappa=1, agreement="none")
expected = aggregate(huge, options)
assert expected.related == {"a": ["b"], "b": ["a"]} and expected.task_vectors["a"][0] == float("inf")
merged = torch.empty(2, 2)
merge = triton_merge.MergeInTriton(huge, ["a", "b"], options, merged)
merge.merge()
merge.combine(relation_weights(expected.graph, options))
assert merged.view(torch.int32).tolist() == torch.stack([*expected.task_vectors.values()]).view(torch.int32).tolist()
print("the same")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton comes with PyTorch for CUDA only")
def test_the_kernels_of_the_gpu_are_those_of_the_cpu_to_the_bit():
    here = Path(__file__).parent
    command = [sys.executable, "-c", INTERPRETED, str(here.parents[2])]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "the same"


def moved(update, device, dtype=None):
    """The same reply on another device, its vector perhaps as another type."""
    unified = update.vectors
    masks = {task: unified.masks[task].to(device) for task in unified.masks}
    there = UnifiedTaskVector(unified.vector.to(device, dtype), masks, unified.rescalers, unified.opposites)
    return type(update)(there, update.num_examples, update.client)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("d", [1, 65, 1_000_003])
@pytest.mark.parametrize("magnitude", ["max", "mean"])
@pytest.mark.parametrize("tasks", [1, 3, 7])
def test_unify_on_a_gpu_is_that_of_the_cpu(d, magnitude, tasks):
    generator = torch.Generator().manual_seed(d)
    taus = {f"task{k}": torch.randn(d, generator=generator) for k in range(tasks)}
    operator = {"magnitude": magnitude, "reconstruction": "complete"}
    expected, found = unify(taus, **operator), unify({task: tau.cuda() for task, tau in taus.items()}, **operator)
    assert found.vector.device.type == "cuda"
    assert torch.equal(found.vector.cpu(), expected.vector)
    assert all(torch.equal(found.masks[task].cpu(), expected.masks[task]) for task in taus)
    assert found.rescalers == pytest.approx(expected.rescalers, rel=1e-12)
    assert found.opposites == pytest.approx(expected.opposites, rel=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("d", [1, 65, 1_000_003])
@pytest.mark.parametrize("agreement", ["none", "threshold-or-soft", "hard", "soft"])
@pytest.mark.parametrize("signs", ["masked", "complete"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_aggregate_on_a_gpu_is_that_of_the_cpu(d, agreement, signs, dtype):
    updates = [moved(update, "cpu", dtype) for update in random_replies(d % 1000, d, 4, 3)]
    options = MergeOptions.paper(
        epsilon=0, agreement=agreement, signs=signs, combine="sum" if signs == "masked" else "mean"
    )
    here, merged = aggregate(updates, options), aggregate([moved(update, "cuda") for update in updates], options)
    assert torch.equal(here.similarity, merged.similarity)
    for task in here.tasks:
        assert torch.equal(here.task_vectors[task], merged.task_vectors[task].cpu())
    updates[1].vectors.vector[d - 1] = float("nan")
    with pytest.raises(MergeError, match=f"client '{updates[1].client}': the unified vector has NaN or infinity"):
        aggregate([moved(update, "cuda") for update in updates], options)
