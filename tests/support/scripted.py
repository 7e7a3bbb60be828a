"""A federation whose clients answer from a script: no images, no model, a run takes milliseconds.

The server's side is the real one, and so is the wire. A test states what a client sends, and whether it answers.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from flwr.app import Message, MessageType

from matu_flwr import wire
from matu_flwr.backbones import LinearHead
from matu_flwr.config.settings import Settings
from matu_flwr.federation.registration import QUESTION
from matu_flwr.merging import SeparateTaskVectors, unify
from matu_flwr.strategies import ManyTaskStrategy, create, prepared
from matu_flwr.vectors import ParameterLayout
from tests.support.local_grid import LocalGrid

Hand = dict[str, int]  # training images by task


class Model:
    """What a strategy knows of a backbone of four parameters."""

    d = 4
    fingerprint = "0123456789abcdef" * 4
    num_features = 2
    layout = ParameterLayout({"blocks.0.weight": (2,), "blocks.1.weight": (2,)})


class Scripted:
    """Strategy, grid and events of a run over clients named client-000, client-001, ...

    Parameters
    ----------
    strategy : str
        A method's name.
    hands : sequence of dict
        By client, training images by task.
    vector : callable
        τ of a task, of four numbers, from round, client and task.
    bias : callable, optional
        The trained head's bias of two classes, likewise, where heads are shared; its weight is zero.
    tested : callable
        Right ones, test images and mean loss that a client reports of a task when it is asked to test; by the round of
        the message, its phase, client and task.
    fails : callable
        Whether a client raises instead of answering a message; by round, phase and client.
    after_round : callable, optional
        See `ManyTaskStrategy`.
    values
        Settings, with _ for - and __ for a section's dot.

    Attributes
    ----------
    asked : list of tuple
        (phase, client, downlink) of every message that came to a client, in the order of their coming.
    """

    def __init__(
        self,
        strategy: str,
        hands: Sequence[Hand],
        *,
        vector: Callable[[int, str, str], list[float]] = lambda round_, client, task: [1.0, 2.0, 3.0, 4.0],
        bias: Callable[[int, str, str], list[float]] | None = None,
        tested: Callable[[int, str, str, str], tuple[int, int, float]] = lambda *_: (1, 2, 0.5),
        fails: Callable[[int, str, str], bool] = lambda *_: False,
        after_round: Callable[[ManyTaskStrategy], None] | None = None,
        **values: Any,
    ) -> None:
        logging.getLogger("flwr").setLevel(logging.ERROR)
        told = {"wire.vector-dtype": "float32", "wire.compression": "none", "strategy": strategy} | {
            key.replace("__", ".").replace("_", "-"): value for key, value in values.items()
        }
        self.settings = prepared(Settings.from_flat(told))
        self.hands, self.vector, self.bias, self.tested, self.fails = hands, vector, bias, tested, fails
        self.asked: list[tuple[str, str, wire.Downlink]] = []
        self.events: list[dict[str, Any]] = []
        nodes = [{"partition-id": i, "num-partitions": len(hands)} for i in range(len(hands))]
        self.grid = LocalGrid(self._answer, nodes)
        self.strategy: ManyTaskStrategy = create(
            strategy, self.settings, Model(), observer=self.events.append, after_round=after_round
        )

    def run(self) -> "Scripted":
        self.strategy.start(self.grid)
        return self

    def registered(self) -> "Scripted":
        self.strategy.register(self.grid)
        return self

    def of(self, kind: str, **where: Any) -> list[dict[str, Any]]:
        """Events of a kind with these values."""
        return [e for e in self.events if e["event"] == kind and all(e[key] == value for key, value in where.items())]

    def rounds_of(self, phase: str) -> dict[int, list[str]]:
        """Who was asked to train, or to test, by round, in the order of asking."""
        found: dict[int, list[str]] = {}
        for kind, client, downlink in self.asked:
            if kind == phase:
                found.setdefault(downlink.round, []).append(client)
        return found

    def _answer(self, message: Message, context: Any) -> Message:
        partition = context.node_config["partition-id"]
        client, hand = f"client-{partition:03d}", self.hands[partition]
        phase = message.metadata.message_type
        if phase == QUESTION:
            infos = {task: wire.TaskInfo(("a", "b"), images, 10) for task, images in hand.items()}
            told = wire.Announcement(client, partition, Model.fingerprint, infos)
            return Message(wire.encode_announcement(told), reply_to=message)
        d, rule = self.strategy.d, self.strategy.rule
        expected = wire.Expected("server", d, Model.fingerprint, dict.fromkeys(hand, 2), Model.num_features)
        downlink = wire.decode_downlink(message.content, expected)
        self.asked.append((phase, client, downlink))
        if self.fails(downlink.round, phase, client):
            raise RuntimeError("as the script says")
        training = phase == MessageType.TRAIN
        kind = rule.payload(self.settings, downlink.round) if training else "nothing"
        taus = {task: torch.tensor(self.vector(downlink.round, client, task)) for task in sorted(hand)}
        vectors = None
        if kind != "nothing":
            vectors = SeparateTaskVectors(taus) if kind == "separate" else unify(taus)
        heads = {}
        if training and self.bias is not None and rule.shares_heads(self.settings, downlink.round):
            biases = {task: torch.tensor(self.bias(downlink.round, client, task)) for task in hand}
            heads = {task: LinearHead(torch.zeros(2, 2), bias) for task, bias in biases.items()}
        uplink = wire.Uplink(
            round=downlink.round,
            fingerprint=Model.fingerprint,
            vectors=vectors,
            num_examples=dict(hand),
            heads=heads,
            metrics={task: self._metrics(downlink, phase, client, task) for task in hand},
        )
        return Message(wire.encode_uplink(uplink), reply_to=message)

    def _metrics(self, downlink: wire.Downlink, phase: str, client: str, task: str) -> wire.TaskMetrics:
        if not downlink.evaluate:
            return wire.TaskMetrics(0.25)
        correct, images, loss = self.tested(downlink.round, phase, client, task)
        return wire.TaskMetrics(0.25, correct, images, loss)
