"""The server's side of the methods by hand, on vectors of four numbers."""

import pytest

from tests.support.scripted import Scripted

HANDS = [{"dots": 10}, {"dots": 30, "stripes": 5}]
SENT = {
    ("client-000", "dots"): [4.0, 0.0, 0.0, 0.0],
    ("client-001", "dots"): [0.0, 4.0, 0.0, 0.0],
    ("client-001", "stripes"): [0.0, 0.0, 1.0, 0.0],
}


def told(run, partition):
    """What a client would get now, by task."""
    client = run.strategy.clients[partition]
    found = run.strategy.downlink_vector(client)
    return None if found is None else {task: found.reconstruct(task).tolist() for task in client.tasks}


def test_per_task_fedavg_by_hand():
    """dots: a quarter of the first and three quarters of the second; stripes as its one holder sent it."""
    run = Scripted("pertask-fedavg", HANDS, rounds=1, vector=lambda _, client, task: SENT[client, task])
    run.registered()
    assert told(run, 0) is None
    run.run()
    assert told(run, 0) == {"dots": [1.0, 3.0, 0.0, 0.0]}
    assert told(run, 1) == {"dots": [1.0, 3.0, 0.0, 0.0], "stripes": [0.0, 0.0, 1.0, 0.0]}


def test_task_arithmetic_by_hand():
    """λ = ½ of the sum of (1, 3, 0, 0) and (0, 0, 1, 0), for every task; nothing is sent down before the end."""
    run = Scripted(
        "task-arithmetic",
        HANDS,
        rounds=3,
        task_arithmetic__scale=0.5,
        vector=lambda _, client, task: SENT[client, task],
    ).run()
    merged = [0.5, 1.5, 0.5, 0.0]
    assert told(run, 0) == {"dots": merged}
    assert told(run, 1) == {"dots": merged, "stripes": merged}
    assert {task: tau.tolist() for task, tau in run.strategy.task_vectors.items()} == {
        "dots": merged,
        "stripes": merged,
    }
    sent = {(phase, downlink.round): downlink.vectors is not None for phase, _, downlink in run.asked}
    assert sent == {("train", 1): False, ("train", 2): False, ("train", 3): False, ("evaluate", 3): True}
    assert [event["round"] for event in run.of("accuracy")] == [0, 3]


def test_emr_by_hand():
    """Of (1, 3, 0, 0) and (0, 0, -2, 0) each place has one owner: (1, 3, -2, 0), and masks give both back."""
    vectors = SENT | {("client-001", "stripes"): [0.0, 0.0, -2.0, 0.0]}
    run = Scripted("emr", HANDS, rounds=1, vector=lambda _, client, task: vectors[client, task]).run()
    assert run.strategy.merged.vector.tolist() == [1.0, 3.0, -2.0, 0.0]
    assert told(run, 1) == {"dots": [1.0, 3.0, 0.0, 0.0], "stripes": [0.0, 0.0, -2.0, 0.0]}


@pytest.mark.parametrize(("blocks", "length"), [(0, 4), (1, 2), (2, 0)])
def test_fedper_averages_what_comes_before_the_personal_blocks(blocks, length):
    """Blocks of two parameters each. 30 images against 10: a quarter of the first, three quarters of the second."""
    sent = {"client-000": [4.0, 0.0, 8.0, 0.0], "client-001": [0.0, 4.0, 0.0, 8.0]}
    run = Scripted(
        "fedper",
        [{"dots": 10}, {"dots": 20, "stripes": 10}],
        rounds=1,
        fedper__blocks=blocks,
        vector=lambda _, client, __: sent[client][:length],
    )
    assert run.strategy.d == length
    if not length:
        return  # everything is personal
    run.run()
    expected = [1.0, 3.0, 2.0, 6.0][:length]
    assert run.strategy.mean.tolist() == expected
    assert told(run, 0) == {"dots": expected}
    whole = {task: tau.tolist() for task, tau in run.strategy.task_vectors.items()}
    assert whole == ({"dots": expected, "stripes": expected} if blocks == 0 else {})
