"""What every strategy shares on the server: who takes part, who trains, what came back, and what is wrong with it.

A method adds two acts, `downlink_vector` and `merge`, and its own state. `strategies/matu.py` shows it best.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from logging import INFO, WARNING
from typing import Any, ClassVar

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from matu_flwr import logs, wire
from matu_flwr.backbones import LinearHead
from matu_flwr.client.rule import Rule
from matu_flwr.config.settings import Scalar, Settings
from matu_flwr.events import Event
from matu_flwr.federation.influence import Influence, OfferedHeads
from matu_flwr.federation.model_info import ModelInfo
from matu_flwr.federation.privacy_books import PrivacyBooks, Releases
from matu_flwr.federation.registration import Client, FederationError, reason_of, register, rejoined
from matu_flwr.federation.round_books import RoundBooks
from matu_flwr.federation.state import Described, describe, restore
from matu_flwr.federation.stream_grid import GRACE, StreamGrid
from matu_flwr.merging import ClientUpdate, TaskGraph, TaskVectors
from matu_flwr.seeds import derive_seed


class ManyTaskStrategy(Strategy):
    """Base of the strategies for clients that hold different sets of tasks.

    Parameters
    ----------
    settings : Settings
        All settings of the run.
    model : ModelInfo
        What the server has to know of the model; a `Backbone` has it all.
    run_name : str
        Name under which clients keep their own state; unique per run, and the same when a run is resumed.
    attempt : int
        How often the run was resumed.
    observer : callable, optional
        Gets every event of the run (`matu_flwr.events`).
    after_round : callable, optional
        Called with the strategy after every round of training: the time for a checkpoint.

    Attributes
    ----------
    clients : list of Client
        Ordered by partition id; filled by `register`.
    task_vectors : dict of str to Tensor
        τ^t by task, (d,) float32; a task without one is at θ_p.
    heads : dict of str to LinearHead
        Averaged heads by task.
    graph : TaskGraph, optional
        Of the last round of training.
    trained : dict of str to int
        By client, the last round whose training it answered and the server accepted.
    completed : int
        Rounds that are done; `start` goes on with the next.
    """

    rule: ClassVar[type[Rule]]
    """The method's client side."""
    about: ClassVar[str] = ""
    """The method in a few words, for lists."""
    paper: ClassVar[str] = ""
    """Where it was published, as an address."""
    section: ClassVar[str] = ""
    """Section of the settings with options that only this method has."""
    sets: ClassVar[Mapping[str, Scalar]] = {}
    """Settings that belong to the method, by flat key: nobody may give them other values."""
    kept: ClassVar[tuple[str, ...]] = ("task_vectors", "heads", "trained", "releases")
    """Attributes that the next round needs: what a checkpoint holds (see `state.py`). A method adds its own."""
    robust_mean: ClassVar[bool] = False
    """`merge` takes its means over holders by `influence.mean`, so `robust.mean` may be other than weighted."""

    def __init__(
        self,
        settings: Settings,
        model: ModelInfo,
        *,
        run_name: str = "default",
        attempt: int = 0,
        observer: Callable[[Event], None] | None = None,
        after_round: Callable[[ManyTaskStrategy], None] | None = None,
    ) -> None:
        self.settings = settings
        self.model = model
        self.d = model.d  # of a vector on the wire; less where a part of the backbone stays at the clients
        self.run_name = run_name
        self.attempt = attempt
        self.observe = observer or (lambda event: None)
        self.after_round = after_round or (lambda strategy: None)
        self.clients: list[Client] = []
        self.task_vectors: dict[str, Tensor] = {}
        self.heads: dict[str, LinearHead] = {}
        self.graph: TaskGraph | None = None
        self.trained: dict[str, int] = {}
        self.completed = 0
        self.num_rounds = settings.rounds
        self.influence = Influence(settings.robust, self.rule.one_vector)
        self.privacy = PrivacyBooks(settings.privacy)
        self.releases: Releases = {}
        self._round = RoundBooks(0, "train", 0, time.monotonic())
        self._stream: StreamGrid | None = None
        self._timeout = settings.round_timeout
        self._asked: set[int] = set()  # nodes that came after the start and have said who they are

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Refuse settings with which the method means nothing.

        Raises
        ------
        SettingsError
            The text names the setting, and what to do.
        """

    # --- the two acts of a method ---

    @abstractmethod
    def downlink_vector(self, client: Client) -> TaskVectors | None:
        """What the client's tasks start from. None: all start at θ_p, or from what the client keeps."""

    @abstractmethod
    def merge(self, updates: list[ClientUpdate]) -> TaskGraph | None:
        """Fold one round's updates into `task_vectors`; returns the task graph if the method has one."""

    def is_tested(self, server_round: int) -> bool:
        """Whether clients test what a round gave; the start and the end are tested under every method."""
        return server_round % self.settings.evaluate_every == 0

    def task_vector(self, task: str) -> Tensor:
        """τ^t, (d,) float32; zeros for a task at θ_p."""
        return self.task_vectors[task] if task in self.task_vectors else torch.zeros(self.d)

    def state(self) -> tuple[Described, dict[str, Tensor]]:
        """What the next round needs, as JSON and tensors by name."""
        return describe(self, self.kept)

    def resume(self, completed: int, described: Described, tensors: Mapping[str, Tensor]) -> None:
        """Take the state that was `state()` after round `completed`; `start` goes on from there."""
        restore(self, described, tensors)
        self.completed = completed

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
        """Run all rounds over a lazy, windowed grid; after `resume`, those that are left.

        Flower's own loop always begins with round 1, so this one takes its place. A resumed run begins with the test
        of the round that was done last: a checkpoint is written before it.

        The result's arrays stay empty: a model per task does not fit there; `task_vectors` and `heads` have them.

        Raises
        ------
        FederationError
            No usable clients, or more than `max_failed_fraction` of a round failed.
        """
        self._stream = grid if isinstance(grid, StreamGrid) else StreamGrid(grid, self.settings.window)
        if not self.clients:
            self.register(self._stream)
        self.num_rounds = self.num_rounds if num_rounds is None else num_rounds
        self._timeout = self.settings.round_timeout if timeout is None else timeout
        arrays = ArrayRecord() if initial_arrays is None else initial_arrays
        result, first = Result(), self.completed
        log(INFO, "Starting %s strategy:", type(self).__name__)
        self.summary()
        if first:
            # The run that was cut off may have asked its clients to train again after this checkpoint. Privacy counts
            # what was asked for, so one more release is counted for everybody.
            for client in self.clients:
                self.privacy.count(self.releases, client.name, client.tasks)
        for server_round in range(first, self.num_rounds + 1):
            if server_round > first:
                log(INFO, "[ROUND %s/%s]", server_round, self.num_rounds)
                self.train_round(server_round)
            self.test_round(server_round)
            if evaluate_fn and (found := evaluate_fn(server_round, arrays)) is not None:
                result.evaluate_metrics_serverapp[server_round] = found
        return result

    def train_round(self, server_round: int) -> None:
        """One round of training: ask the sampled clients, merge what they send."""
        messages = self.configure_train(server_round, ArrayRecord(), ConfigRecord(), self._grid)
        self.aggregate_train(server_round, self._grid.send_and_receive(messages, timeout=self._timeout))

    def test_round(self, server_round: int) -> None:
        """Let the clients test what a round gave. The start is tested by those who are asked to train in round 1."""
        if server_round == 0:
            return
        messages = self.configure_evaluate(server_round, ArrayRecord(), ConfigRecord(), self._grid)
        self.aggregate_evaluate(server_round, self._grid.send_and_receive(messages, timeout=self._timeout))

    @property
    def _grid(self) -> StreamGrid:
        """The grid of the run that goes on."""
        if self._stream is None:
            raise FederationError("the strategy has no grid yet: call start(grid)")
        return self._stream

    def register(self, grid: Grid, at_least: int = 0) -> list[Client]:
        """Ask every node who it is, and keep the usable ones; see `registration.register`."""
        self.clients = register(grid, self.settings, self.model.fingerprint, self.run_name, at_least)
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
        logs.now_about(round=server_round, phase="train")

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterator[Message]:
        """Begin a round; each client's message is built only when the grid asks for it."""
        self.begin(server_round)
        asks = (self.settings, self.model.fingerprint, self.run_name)
        self.clients = rejoined(grid, self.clients, *asks, self._asked)
        # What clients receive now is what the round before gave, so they test that one.
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
        # In the order of names, not of arrival: then a run gives the same bits again.
        updates = [
            ClientUpdate(reply.vectors, reply.num_examples, name)
            for name, reply in sorted(current.answered.items())
            if reply.vectors is not None
        ]
        updates = self.influence.bound(updates)
        self.graph = self.merge(updates) if updates else None
        self._merge_heads()
        current.server_seconds += time.monotonic() - merging
        self._report_accuracy()
        self.finish_round()
        return None, None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterator[Message]:
        """Ask every client to test what it would get: after every round, or only after the last if tests ride along.

        With `evaluate` = ride, clients test what they receive before they train on it, which saves a phase per round.
        """
        self._round = RoundBooks(server_round, "evaluate", server_round, time.monotonic())
        logs.now_about(round=server_round, phase="evaluate")
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
            vectors=self.downlink_vector(client),
            heads={task: self.heads[task] for task in tasks if task in self.heads},
            evaluate=evaluate,
            settings=self.settings.for_clients(),
            run_name=self.run_name,
            attempt=self.attempt,
            trained=self.trained.get(client.name, 0),
        )
        records = wire.encode_downlink(downlink, self.settings.wire.vector_dtype, self.settings.wire.compression)
        current.asked[client.node_id] = client
        if kind == MessageType.TRAIN:
            self.privacy.count(self.releases, client.name, tasks)
        current.bytes_down[client.name] = wire.count_bytes(records)
        ttl = self.settings.round_timeout + GRACE
        current.server_seconds += time.monotonic() - began
        return Message(records, client.node_id, kind, ttl=ttl, group_id=str(current.number))

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
        current.check_failures(self.settings.max_failed_fraction)

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
        if training:
            self.trained[client.name] = current.number
        self.observe(current.accept(client, reply, wire.count_bytes(records)))

    def _fail(self, client: Client, reason: str, status: str) -> None:
        with logs.about(client=client.name, partition=client.partition):
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

    def finish_round(self) -> None:
        """Report a round of training that is over, and let it be kept."""
        number = self._round.number
        tested = self.is_tested(number) or number == self.num_rounds
        finished = self._round.finish(set(self.classes), self.graph, tested)
        self.observe({**finished, **self.influence.event(), **self.privacy.event(self.releases)})
        self.completed = number
        self.after_round(self)
