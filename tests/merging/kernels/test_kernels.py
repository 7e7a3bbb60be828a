"""The compiled kernels against plain torch and the slow twin, on vectors longer than a group, in blocks of any size."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from matu_flwr.merging import (
    ClientUpdate,
    MergeError,
    MergeOptions,
    PackedMasks,
    UnifiedTaskVector,
    aggregate,
    pack,
    unify,
)
from matu_flwr.merging.aggregate import MergeInTorch, check_updates
from matu_flwr.merging.kernels import cpu_blocks, cpu_merge
from matu_flwr.merging.kernels.cpu_blocks import GROUP, ranges, unify_on_cpu
from matu_flwr.merging.masks import bits_of, masks_of, pack_in_torch, unpack, unpack_in_torch
from matu_flwr.merging.task_graph import relation_weights
from matu_flwr.merging.unify import elect_and_mask
from tests.merging import slow_twin
from tests.merging.cases import TINY, bits, laws, options, same_result, single, to_floats, to_tensor, to_twin, twins

# Zeros and ties, exact cancellation, numbers that a product would lose, and the largest.
POOL = torch.tensor([0.0, -0.0, 1, -1, 1, -1, 0.5, -2, 3, TINY, -TINY, 7 * TINY, 1e-38, -1e-30, 2.0**99, -(2.0**99)])
MODERATE = torch.tensor([0.0, -0.0, 1, -1, 1, -1, 0.5, -0.5, 2, -3, 1 / 3, 0.1, TINY, -TINY])
BLOCK = cpu_merge.MergeOnCpu.block
lengths = st.one_of(st.sampled_from([1, 7, 8, 31, 32, 63, 64, 65, 127, 128, 129, 191, 192, 200]), st.integers(0, 300))
block_lengths = st.sampled_from([GROUP, 2 * GROUP, 1 << 18])
magnitudes, reconstructions = st.sampled_from(["max", "mean"]), st.sampled_from(["masked", "complete"])


def drawn(generator: torch.Generator, d: int, pool: torch.Tensor = POOL) -> torch.Tensor:
    """Numbers of the pool, and half the time ordinary ones."""
    ordinary = torch.randn(d, generator=generator)
    picked = pool[torch.randint(len(pool), (d,), generator=generator)]
    return torch.where(torch.rand(d, generator=generator) < torch.rand(1, generator=generator), picked, ordinary)


# ---------------------------------------------------------------- unify


@twins
@given(
    seed=st.integers(0, 2**31),
    d=lengths,
    num_tasks=st.integers(1, 5),
    block=block_lengths,
    magnitude=magnitudes,
    reconstruction=reconstructions,
)
def test_the_kernel_is_the_slow_twin(seed, d, num_tasks, block, magnitude, reconstruction):
    generator = torch.Generator().manual_seed(seed)
    taus = {f"task{k}": drawn(generator, d) for k in range(num_tasks)}
    if num_tasks > 2:
        taus["task0"] = torch.zeros(d)  # an empty mask
    twin = slow_twin.unify({task: to_floats(tau) for task, tau in taus.items()}, magnitude, reconstruction)
    operator = {"magnitude": magnitude, "reconstruction": reconstruction}
    with mock.patch.object(cpu_blocks, "UNIFY_BLOCK", block):
        found = unify(taus, **operator)
    assert to_floats(found.vector) == twin.vector
    assert isinstance(found.masks, PackedMasks)
    assert {task: mask.tolist() for task, mask in found.masks.items()} == twin.masks
    assert found.rescalers == pytest.approx(twin.rescalers, rel=1e-12, abs=0)
    assert found.opposites == pytest.approx(twin.opposites or {}, rel=1e-12, abs=0)


@laws
@given(
    seed=st.integers(0, 2**31),
    d=st.one_of(lengths, st.integers(500, 1200)),
    num_tasks=st.integers(1, 5),
    magnitude=magnitudes,
)
def test_plain_torch_elects_the_same(seed, d, num_tasks, magnitude):
    generator = torch.Generator().manual_seed(seed)
    taus = [drawn(generator, d) for _ in range(num_tasks)]
    vector, masks, norms = unify_on_cpu(taus, magnitude)
    in_torch, masks_in_torch, norms_in_torch = elect_and_mask(taus, magnitude)
    assert torch.equal(vector, in_torch)
    assert all(map(torch.equal, masks, masks_in_torch))
    for found, expected in zip(norms, norms_in_torch, strict=True):
        assert asdict(found) == pytest.approx(asdict(expected), rel=1e-12, abs=0)


@pytest.mark.parametrize("elect", [unify_on_cpu, elect_and_mask])
def test_a_mean_that_is_rounded_to_nothing_elects_nothing(elect):
    # One of three tasks has the smallest number: its third is 0 in float32, two thirds are the smallest number again.
    taus = [torch.tensor([sign * TINY * (k <= third) for sign in (1, -1) for third in (0, 1)]) for k in range(3)]
    vector, masks, norms = elect(taus, "mean")
    assert vector.tolist() == [0, TINY, 0, -TINY]
    assert [unpack(mask, 4).tolist() for mask in masks] == [[False, True] * 2, [False, True] * 2, [False] * 4]
    assert [(norm.own, norm.own_set, norm.own_cleared, norm.cleared) for norm in norms] == [
        (4 * TINY, 2 * TINY, 0, 0), (2 * TINY, 2 * TINY, 0, 0), (0, 0, 0, 2 * TINY)
    ]  # fmt: skip


@pytest.mark.parametrize("magnitude", ["max", "mean"])
def test_any_number_of_threads_gives_the_same_bits(magnitude):
    generator = torch.Generator().manual_seed(0)
    taus = {f"task{k:02}": torch.randn(300_007, generator=generator) for k in range(12)}
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with mock.patch.object(cpu_blocks, "UNIFY_BLOCK", 1 << 14):
                results.append(unify(taus, magnitude=magnitude))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert (other.rescalers, other.opposites) == (results[0].rescalers, results[0].opposites)
        assert torch.equal(other.vector, results[0].vector)
        assert all(torch.equal(other.masks[task], results[0].masks[task]) for task in taus)


def test_vectors_that_are_not_contiguous_or_need_gradients():
    wide = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    columns = {"a": wide[:, 0], "b": wide[:, 1]}
    copies = {task: column.detach().clone() for task, column in columns.items()}
    found, expected = unify(columns), unify(copies)
    assert not found.vector.requires_grad
    assert torch.equal(found.vector, expected.vector)
    assert found.rescalers == expected.rescalers


@pytest.mark.parametrize("at", [0, 63, 64, 150, 199])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_found_anywhere(at, value):
    bad = torch.ones(200)
    bad[at] = value
    with pytest.raises(MergeError, match=f"task vector 'b' has {value} at parameter {at}: the training diverged"):
        unify({"a": torch.ones(200), "b": bad})


def test_unify_refuses_two_devices():
    with pytest.raises(
        MergeError, match=r"task vector 'b' is on meta, expected cpu as task 'a': move it with \.to\(\)"
    ):
        unify({"a": torch.ones(4), "b": torch.ones(4, device="meta")})


# ---------------------------------------------------------------- merge


def random_replies(
    seed: int, d: int, num_clients: int, num_tasks: int, most_examples: int = 10**6
) -> list[ClientUpdate]:
    """Replies with every kind of vector, mask and rescaler; every client holds some of the tasks."""
    generator = torch.Generator().manual_seed(seed)
    updates = []
    for n in range(num_clients):
        held = [f"task{k}" for k in range(num_tasks) if torch.rand(1, generator=generator) < 0.7] or ["task0"]
        masks, rescalers = {}, {}
        for task in held:
            rescalers[task] = float(torch.rand(1, generator=generator) * 2)
            masks[task] = torch.rand(d, generator=generator) < 0.6
            if torch.rand(1, generator=generator) < 0.15:
                rescalers[task] = 0.0
                masks[task].zero_()
        opposites = {}
        if torch.rand(1, generator=generator) < 0.5:
            opposites = {task: max(0.0, float(torch.rand(1, generator=generator) * 2 - 0.4)) for task in held}
        vector = drawn(generator, d, MODERATE)
        if torch.rand(1, generator=generator) < 0.4:
            vector = vector.bfloat16()
        form = PackedMasks.of(masks, d) if torch.rand(1, generator=generator) < 0.6 else masks
        examples = {task: int(torch.randint(1, most_examples, (1,), generator=generator)) for task in held}
        updates.append(ClientUpdate(UnifiedTaskVector(vector, form, rescalers, opposites), examples, f"client{n}"))
    return updates


def in_torch(updates: list[ClientUpdate], options: MergeOptions):
    """`aggregate` in plain torch: vectors, similarity, z."""
    d = check_updates(updates)
    tasks = sorted({task for update in updates for task in update.num_examples})
    merged = torch.empty(len(tasks), d)
    merge = MergeInTorch(updates, tasks, options, merged)
    agreement, broken = merge.merge()
    assert broken is None
    graph = agreement.graph(tasks, options)
    weights = relation_weights(graph, options)
    merge.combine({task: weights[task] for task in tasks if sum(weights[task].values()) > 0})
    return merged, graph


@twins
@given(
    seed=st.integers(0, 2**31),
    d=lengths,
    num_clients=st.integers(1, 5),
    num_tasks=st.integers(1, 4),
    choice=options(),
    block=block_lengths,
    most_examples=st.sampled_from([3, 10**6, 2**31, 2**50]),
)
def test_the_merge_is_plain_torch_to_the_bit(seed, d, num_clients, num_tasks, choice, block, most_examples):
    updates = random_replies(seed, d, num_clients, num_tasks, most_examples)
    with mock.patch.object(cpu_merge, "MERGE_BLOCK", block):
        found = aggregate(updates, choice)
    merged, graph = in_torch(updates, choice)
    assert torch.equal(found.similarity, graph.similarity)
    assert torch.equal(found.graph.z, graph.z)
    assert found.related == graph.related
    assert all(torch.equal(found.task_vectors[task], merged[row]) for row, task in enumerate(found.tasks))


@laws
@given(seed=st.integers(0, 2**31), d=lengths, num_clients=st.integers(1, 4), choice=options(signs="complete"))
def test_the_merge_is_the_slow_twin(seed, d, num_clients, choice):
    """Complete signs are whole numbers, and never doubtful; see `test_merging_aggregate` for masked ones."""
    updates = random_replies(seed, max(d, 1), num_clients, 3)
    found = aggregate(updates, choice)
    twin = slow_twin.aggregate([to_twin(update) for update in updates], choice)
    assert found.similarity.tolist() == twin.similarity
    assert found.related == twin.related
    for task in found.tasks:
        slack = torch.tensor(twin.sizes[task], dtype=torch.float64) * 1e-6 + 1e-43
        expected = torch.tensor(twin.task_vectors[task], dtype=torch.float64)
        assert bool(((found.task_vectors[task].double() - expected).abs() <= slack).all())


def test_examples_beyond_32_bits_are_counted():
    """2^30 + 2^30 against 2^31 − 1: the sum of all does not fit, and the vote is decided by one example."""
    told = [(1.0, 2**30), (1.0, 2**30), (-1.0, 2**31 - 1)]
    updates = [single(f"client{n}", "x", [value], examples) for n, (value, examples) in enumerate(told)]
    updates.append(single("client3", "y", [1.0]))
    result = aggregate(updates, MergeOptions.paper(signs="complete"))
    assert result.similarity[0, 1] == 1


@pytest.mark.parametrize(("agreement", "times"), [("none", 1), ("soft", 2)])
def test_replies_are_read_again_only_where_agreement_is_asked_for(agreement, times):
    updates = random_replies(5, 64, 4, 3)
    with mock.patch.object(cpu_merge.MergeOnCpu, "block", autospec=True, side_effect=BLOCK) as block:
        found = aggregate(updates, MergeOptions.paper(agreement=agreement, epsilon=0))
    assert any(found.related.values())
    assert block.call_count == times


def test_any_number_of_threads_merges_to_the_same_bits():
    updates = random_replies(1, 100_003, 6, 5)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with mock.patch.object(cpu_merge, "MERGE_BLOCK", 1 << 12):
                results.append(aggregate(updates, MergeOptions.paper(epsilon=0)))
    finally:
        torch.set_num_threads(threads)
    assert same_result(results[0], results[1])
    assert same_result(results[0], results[2])


@pytest.mark.parametrize("at", [0, 63, 64, 150, 199])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_vector_that_is_not_finite_is_refused_anywhere(at, dtype):
    updates = random_replies(2, 200, 4, 2)
    vector = torch.ones(200).to(dtype)
    vector[at] = float("nan")
    broken = ClientUpdate(UnifiedTaskVector(vector, {"task0": vector > 0}, {"task0": 1.0}), {"task0": 1}, "client2b")
    with pytest.raises(MergeError, match="client 'client2b': the unified vector has NaN or infinity"):
        aggregate([*updates, broken])


def test_the_result_goes_where_it_is_wanted():
    updates = random_replies(3, 130, 4, 3)
    expected = aggregate(updates, MergeOptions.paper(epsilon=0))
    out = torch.full((3, 130), float("nan"))
    found = aggregate(updates, MergeOptions.paper(epsilon=0), out=out)
    assert same_result(found, expected)
    assert all(found.task_vectors[task].data_ptr() == out[row].data_ptr() for row, task in enumerate(found.tasks))


@pytest.mark.parametrize(
    ("out", "text"),
    [
        (
            torch.empty(2, 130),
            r"out is \(2, 130\) of torch.float32 on cpu, expected \(3, 130\) of torch.float32 on cpu",
        ),
        (torch.empty(3, 130, dtype=torch.float64), r"out is \(3, 130\) of torch.float64"),
        (
            torch.empty(130, 3).T,
            r"expected \(3, 130\) of torch.float32 on cpu, contiguous: a row for each of the tasks",
        ),
        (torch.empty(3, 130, device="meta"), "on meta, expected"),
    ],
)
def test_aggregate_refuses_another_place(out, text):
    with pytest.raises(MergeError, match=text):
        aggregate(random_replies(3, 130, 4, 3), out=out)


def test_aggregate_refuses_two_devices():
    one, other = random_replies(4, 10, 2, 1)
    elsewhere = UnifiedTaskVector(other.vectors.vector.to("meta"), other.vectors.masks, other.vectors.rescalers)
    with pytest.raises(MergeError, match="client 'client1': unified vector on meta, expected cpu as client 'client0'"):
        aggregate([one, ClientUpdate(elsewhere, other.num_examples, other.client)])


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize("d", [0, 1, 63, 64, 65, 128, 200])
@pytest.mark.parametrize("size", [64, 128, 1 << 18])
def test_ranges_cover_every_parameter_once_in_whole_groups(d, size):
    found = list(ranges(d, size))
    assert [i for start, stop in found for i in range(start, stop)] == list(range(d))
    assert all(stop - start <= size for start, stop in found)
    assert all((stop - start) % GROUP == 0 for start, stop in found[:-1])


@laws
@given(seed=st.integers(0, 2**31), d=st.integers(0, 70))
def test_packing_in_torch_is_packing(seed, d):
    mask = torch.rand(d, generator=torch.Generator().manual_seed(seed)) < 0.5
    assert torch.equal(pack_in_torch(mask), pack(mask))
    assert torch.equal(unpack_in_torch(pack(mask), d), unpack(pack(mask), d))


def test_masks_of_some_tasks_stay_as_they_were():
    plain = {"a": bits("110"), "b": bits("011"), "c": bits("000")}
    packed = PackedMasks.of(plain, 3)
    some = masks_of(packed, ["b", "c"], 3)
    assert isinstance(some, PackedMasks)
    assert sorted(some) == ["b", "c"]
    assert masks_of(plain, ["b"], 3) == {"b": plain["b"]}
    assert torch.equal(bits_of(plain, "b"), packed.bits["b"])
    assert bits_of(packed, "b") is packed.bits["b"]


def test_numba_is_loaded_when_it_is_needed():
    code = "import sys, matu_flwr; assert 'numba' not in sys.modules and 'llvmlite' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_the_kernels_can_be_loaded_beside_other_work():
    code = (
        "import sys; from matu_flwr.merging import warm_up; loading = warm_up(); assert warm_up() is loading; "
        "loading.join(); assert 'matu_flwr.merging.kernels.cpu_unify' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_the_kernel_reads_what_numpy_maps(tmp_path):
    """Task vectors that are files: nothing is copied, and the result is the same."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(5)
    taus = {f"task{k}": torch.randn(1000, generator=generator) for k in range(3)}
    for task, tau in taus.items():
        save_file({"tau": tau}, tmp_path / f"{task}.safetensors")
    files = {task: safe_open(tmp_path / f"{task}.safetensors", "pt") for task in taus}
    mapped = {task: file.__enter__().get_tensor("tau") for task, file in files.items()}
    found, expected = unify(mapped), unify(taus)
    assert torch.equal(found.vector, expected.vector)
    assert found.rescalers == expected.rescalers
    result = np.memmap(tmp_path / "merged", np.float32, "w+", shape=(3, 1000))
    update = ClientUpdate(found, dict.fromkeys(taus, 10), "only")
    in_file = aggregate([update], MergeOptions.paper(epsilon=0), out=torch.from_numpy(result))
    assert same_result(in_file, aggregate([update], MergeOptions.paper(epsilon=0)))
    result.flush()
    again = np.fromfile(tmp_path / "merged", np.float32).reshape(3, 1000)
    assert torch.equal(torch.from_numpy(again)[1], in_file.task_vectors["task1"])
    assert to_tensor(again[0].tolist()).shape == (1000,)
