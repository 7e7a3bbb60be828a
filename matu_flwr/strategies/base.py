"""What every many-task strategy shares: who is there, who trains, what came back, what is wrong with it.

A method adds two acts (`downlink_vector`, `merge`) and its own state; see `matu.py`.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from logging import INFO, WARNING
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from matu_flwr import wire
from matu_flwr.backbones import LinearHead
from matu_flwr.local.rules import Rule
from matu_flwr.merging import ClientUpdate, TaskGraph, TaskVectors
from matu_flwr.seeds import derive_seed
from matu_flwr.settings import Settings
from matu_flwr.strategies.accounting import PrivacyBooks
from matu_flwr.strategies.books import Event, RoundBooks
from matu_flwr.strategies.influence import Influence, OfferedHeads
from matu_flwr.strategies.registration import Client, FederationError, reason_of, register
from matu_flwr.strategies.stream_grid import StreamGrid
from matu_flwr.vectors import ParameterLayout


class ModelInfo(Protocol):
    """What a strategy has to know of the backbone; `matu_flwr.backbones.Backbone` is one."""

    @property
    def d(self) -> int: ...  # noqa: D102

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    @property
    def num_features(self) -> int: ...  # noqa: D102

    @property
    def layout(self) -> ParameterLayout: ...  # noqa: D102


class ManyTaskStrategy(Strategy):
    """Base of the strategies for clients that hold different sets of tasks.

    Parameters
    ----------
    settings : Settings
        Of the run.
    model : ModelInfo
        Length d of a task vector and its layout, fingerprint of θ_p, number of features: a `Backbone` has them.
    experiment : str
        Name under which clients keep their own state; unique per run.
    observer : callable, optional
        Gets every event of the run as a JSON-able dict (see `matu_flwr.run.history`).

    Attributes
    ----------
    clients : list of Client
        Ordered by partition id; filled by `register`.
    task_vectors : dict of str to Tensor
        τ^t by task, (d,) float32; a task without one is at θ_p.
    heads : dict of str to LinearHead
        Averaged heads by task.
    graph : TaskGraph, optional
        Of the last round.
    """

    rule: ClassVar[type[Rule]]
    """The method's client side."""
    robust_mean: ClassVar[bool] = False
    """`merge` takes its means over holders by `influence.mean`, so `robust.mean` may be other than weighted."""

    def __init__(
        self,
        settings: Settings,
        model: ModelInfo,
        *,
        experiment: str = "default",
        observer: Callable[[Event], None] | None = None,
    ) -> None:
        self.settings = settings
        self.model = model
        self.d = model.d  # of a vector on the wire; less where a part of the backbone stays at the clients
        self.experiment = experiment
        self.observe = observer or (lambda event: None)
        self.clients: list[Client] = []
        self.task_vectors: dict[str, Tensor] = {}
        self.heads: dict[str, LinearHead] = {}
        self.graph: TaskGraph | None = None
        self.num_rounds = settings.rounds
        self.influence = Influence(settings.robust, self.rule.one_vector)
        self.privacy = PrivacyBooks(settings.privacy)
        self._round = RoundBooks(0, "train", 0, time.monotonic())
        self._stream: StreamGrid | None = None

    # --- the two acts of a method ---

    @abstractmethod
    def downlink_vector(self, client: Client) -> TaskVectors | None:
        """What the client's tasks start from; None = all at θ_p, or from what the client keeps."""

    @abstractmethod
    def merge(self, updates: list[ClientUpdate]) -> TaskGraph | None:
        """Fold one round's updates into `task_vectors`; returns the task graph if the method has one."""

    def is_tested(self, server_round: int) -> bool:
        """Whether clients test what a round gave; the start and the end are tested under every method."""
        return server_round % self.settings.evaluate_every == 0

    def task_vector(self, task: str) -> Tensor:
        """τ^t, (d,) float32; zeros for a task at θ_p."""
        return self.task_vectors[task] if task in self.task_vectors else torch.zeros(self.d)

    # --- the run ---

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int | None = None,
        timeout: float | None = None,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run all rounds with Flower's own loop over a lazy, windowed grid.

        The result's arrays stay empty: a model per task does not fit there; `task_vectors` and `heads` have them.

        Raises
        ------
        FederationError
            No usable clients, or more than `max_failed_fraction` of a round failed.
        """
        stream = grid if isinstance(grid, StreamGrid) else StreamGrid(grid, self.settings.window)
        if not self.clients:
            self.register(stream)
        self._stream = stream
        if num_rounds is not None:
            self.num_rounds = num_rounds
        return super().start(
            stream,
            initial_arrays if initial_arrays is not None else ArrayRecord(),
            self.num_rounds,
            self.settings.round_timeout if timeout is None else timeout,
            train_config,
            evaluate_config,
            evaluate_fn,
        )

    def register(self, grid: Grid) -> list[Client]:
        """Ask every node who it is, and keep the usable ones; see `registration.register`."""
        self.clients = register(grid, self.settings, self.model.fingerprint, self.experiment)
        return self.clients

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Class names of every task that somebody holds, in the order of task names."""
        known = {task: info.classes for client in self.clients for task, info in client.tasks.items()}
        return dict(sorted(known.items()))

    def holders(self, task: str) -> list[Client]:
        """Clients that hold `task`, in the order of partitions."""
        return [client for client in self.clients if task in client.tasks]

    def sample(self, server_round: int) -> list[Client]:
        """The clients that train in a round: seeded, and drawn from the order of partitions, not of node ids."""
        count = max(1, round(self.settings.fraction_train * len(self.clients)))
        if count >= len(self.clients):
            return list(self.clients)
        rng = np.random.default_rng(derive_seed(self.settings.seed, "sample", server_round))
        return [self.clients[i] for i in sorted(rng.choice(len(self.clients), count, replace=False))]

    # --- Flower's five acts ---

    def begin(self, server_round: int) -> None:
        """Start the books of a round of training."""
        self._round = RoundBooks(server_round, "train", server_round - 1, time.monotonic())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterator[Message]:
        """Begin a round; each client's message is built only when the grid asks for it."""
        self.begin(server_round)
        riding = self.settings.evaluate == "ride" and self.is_tested(server_round - 1)
        evaluate = riding or server_round == 1
        # The longest work first: nobody waits for a client with many tasks that was asked last.
        clients = sorted(self.sample(server_round), key=lambda client: -len(client.tasks))
        return (self._message(client, MessageType.TRAIN, evaluate) for client in clients)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Consume the replies one by one, then merge them.

        Raises
        ------
        FederationError
            More than `max_failed_fraction` of the clients failed; the state stays that of the round before.
        """
        current = self._round
        self._collect(replies)
        merging = time.monotonic()
        updates = [
            ClientUpdate(reply.unified, reply.num_examples, name)
            for name, reply in sorted(current.answered.items())
            if reply.unified is not None
        ]
        updates = self.influence.bound(updates)
        self.graph = self.merge(updates) if updates else None
        self._merge_heads()
        current.server_seconds += time.monotonic() - merging
        self._report_accuracy()
        self._report_round()
        return None, None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterator[Message]:
        """Ask every client to test what it would get; after each round, or after the last if metrics ride."""
        self._round = RoundBooks(server_round, "evaluate", server_round, time.monotonic())
        last = server_round == self.num_rounds
        asked = last or (self.settings.evaluate == "phase" and self.is_tested(server_round))
        return (self._message(client, MessageType.EVALUATE, True) for client in (self.clients if asked else []))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Collect test counts; a phase without messages has nothing to collect."""
        self._collect(replies)
        self._report_accuracy()
        return None

    def summary(self) -> None:
        """Log the settings of the method as a tree."""
        log(INFO, "\t├── Clients: %d, tasks: %d", len(self.clients), len(self.classes))
        for key, value in self.method_settings().items():
            log(INFO, "\t├── %s: %s", key, value)
        log(INFO, "\t└── d: %s, fingerprint: %s…", f"{self.model.d:,}", self.model.fingerprint[:12])

    def method_settings(self) -> Mapping[str, Any]:
        """Settings that are the method's own, for `summary`."""
        return {}

    # --- messages ---

    def _message(self, client: Client, kind: str, evaluate: bool) -> Message:
        began = time.monotonic()
        current = self._round
        tasks = sorted(client.tasks)
        downlink = wire.Downlink(
            round=current.number,
            fingerprint=self.model.fingerprint,
            tasks=tasks,
            unified=self.downlink_vector(client),
            heads={task: self.heads[task] for task in tasks if task in self.heads},
            evaluate=evaluate,
            settings=self.settings.for_clients(),
            experiment=self.experiment,
        )
        records = wire.encode_downlink(downlink, self.settings.wire.vector_dtype)
        current.asked[client.node_id] = client
        if kind == MessageType.TRAIN:
            self.privacy.count(client.name, tasks)
        current.bytes_down[client.name] = wire.count_bytes(records)
        message = Message(records, client.node_id, kind, ttl=self.settings.round_timeout, group_id=str(current.number))
        current.server_seconds += time.monotonic() - began
        return message

    def _collect(self, replies: Iterable[Message]) -> None:
        """Open every reply, note failures by client, and stop the run if too many failed."""
        current = self._round
        for reply in replies:
            began = time.monotonic()
            node = self._stream.node_of(reply) if self._stream else reply.metadata.src_node_id
            client = current.asked.get(node)
            if client is None or client.name in current.answered:
                log(WARNING, "a reply of node %d was not asked for; ignored", node)
            elif reply.has_error():
                self._fail(client, reason_of(reply), "failed")
            else:
                self._open(client, reply.content)
            current.server_seconds += time.monotonic() - began
        for node, reason in self._stream.lost.items() if self._stream else ():
            if node in current.asked:
                self._fail(current.asked[node], reason, "failed")
        for client in current.asked.values():
            if client.name not in current.answered and client.name not in current.failures:
                self._fail(client, "no reply", "failed")
        if current.asked and len(current.failures) > self.settings.max_failed_fraction * len(current.asked):
            names = [c.name for c in sorted(current.asked.values(), key=lambda c: (c.partition, c.name))]
            reasons = "".join(f"\n  {name}: {current.failures[name]}" for name in names if name in current.failures)
            raise FederationError(
                f"round {current.number}: {len(current.failures)} of {len(current.asked)} clients failed, more than "
                f"max-failed-fraction = {self.settings.max_failed_fraction:g} allows:{reasons}"
            )

    def _open(self, client: Client, records: RecordDict) -> None:
        current = self._round
        training = current.phase == "train"
        expected = wire.Expected(
            who=f"client {client.name!r}",
            d=self.d,
            fingerprint=self.model.fingerprint,
            classes={task: len(info.classes) for task, info in client.tasks.items()},
            num_features=self.model.num_features,
            round=current.number,
            examples={task: info.train for task, info in client.tasks.items()},
            heads=training and self.rule.shares_heads(self.settings, current.number),
        )
        try:
            payload = self.rule.payload(self.settings, current.number) if training else "nothing"
            reply = wire.decode_uplink(records, expected, payload=payload)
        except wire.WireError as error:
            self._fail(client, str(error), "refused")
            return
        self.observe(current.accept(client, reply, wire.count_bytes(records)))

    def _fail(self, client: Client, reason: str, status: str) -> None:
        log(WARNING, "client %s %s in round %d: %s", client.name, status, self._round.number, reason)
        self.observe(self._round.fail(client, reason, status))

    # --- what a round gives ---

    def _merge_heads(self) -> None:
        """Mean of each task's heads over the replies that hold it."""
        offered = [OfferedHeads(name, reply.heads, reply.num_examples) for name, reply in self._round.answered.items()]
        self.heads |= self.influence.merge_heads(offered, self.heads)

    def _report_accuracy(self) -> None:
        event = self._round.accuracy()
        if event is not None:
            self.observe(event)

    def _report_round(self) -> None:
        number = self._round.number
        tested = self.is_tested(number) or number == self.num_rounds
        finished = self._round.finish(set(self.classes), self.graph, tested)
        self.observe(finished | self.influence.event() | self.privacy.event())
