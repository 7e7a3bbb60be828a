"""The base class of all strategies: the loop over the rounds, the messages to clients, and the checks of their replies.

A method adds two acts: `downlink_vector` (what a client receives) and `merge` (what the replies become). It may also
keep state of its own. `strategies/matu.py` is the best example.
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
from typing_extensions import override

from matu_flwr import logs, wire
from matu_flwr.backbones import LinearHead
from matu_flwr.client.rule import Rule
from matu_flwr.config.settings import Scalar, Settings
from matu_flwr.events import Event, Screened
from matu_flwr.federation.influence import Influence, OfferedHeads
from matu_flwr.federation.model_info import ModelInfo
from matu_flwr.federation.privacy_books import PrivacyBooks, Releases
from matu_flwr.federation.quorum import check_usable, too_few, without_tasks
from matu_flwr.federation.registration import Client, FederationError, reason_of, register, rejoined
from matu_flwr.federation.round_books import Arrived, RoundBooks
from matu_flwr.federation.screen import Before, References, Screen, refusal
from matu_flwr.federation.state import Described, describe, restore
from matu_flwr.federation.stream_grid import GRACE, StreamGrid
from matu_flwr.merging import ClientUpdate, TaskGraph, TaskVectors
from matu_flwr.seeds import derive_seed
from matu_flwr.texts import printable

# Characters of a failed client's reason that are shown and kept.
REASON = 1000


class ManyTaskStrategy(Strategy):
    """Base of the strategies for clients that hold different sets of tasks.

    Parameters
    ----------
    settings : Settings
        All settings of the run.
    model : ModelInfo
        What the server has to know about the model. A `Backbone` will do.
    run_name : str
        Name under which clients keep their own state. Unique for each run; a resumed run keeps its name.
    attempt : int
        How often the run was resumed.
    observer : callable, optional
        Called with every event of the run (`matu_flwr.events`).
    after_round : callable, optional
        Called with the strategy after every round of training. The caller can write a checkpoint then.

    Attributes
    ----------
    clients : list of Client
        Ordered by partition id; filled by `register`.
    task_vectors : dict of str to Tensor
        τ^t by task, (d,) float32. A task that is missing here is at θ_p.
    heads : dict of str to LinearHead
        Averaged heads by task.
    graph : TaskGraph, optional
        The task graph of the last round of training, if the method makes one.
    trained : dict of str to int
        By client, the last round in which the server accepted its reply to training.
    completed : int
        Number of rounds that are done. `start` goes on with the next one.
    """

    rule: ClassVar[type[Rule]]
    """The method's client side."""
    about: ClassVar[str] = ""
    """The method in a few words, for lists."""
    paper: ClassVar[str] = ""
    """Address of the publication."""
    section: ClassVar[str] = ""
    """Name of the section of the settings that holds this method's own options."""
    sets: ClassVar[Mapping[str, Scalar]] = {}
    """Settings that the method fixes, by flat key. A run that gives them other values is refused."""
    kept: ClassVar[tuple[str, ...]] = ("task_vectors", "heads", "trained", "releases", "references")
    """Names of the attributes that a checkpoint holds, because the next round needs them. A method adds its own."""
    robust_mean: ClassVar[bool] = False
    """Whether `merge` uses `influence.mean` to average over holders, so that `robust.mean` can have an effect."""

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
        # Length of a vector on the wire. A method sets it lower where a part of the backbone stays at the clients.
        self.d = model.d
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
        self.screen = Screen(settings, self.rule)
        self.references: References = {}
        self._round = RoundBooks(0, "train", 0, time.monotonic())
        self._stream: StreamGrid | None = None
        self._timeout = settings.round_timeout
        # The tasks that this round does not change, with the number of their usable replies.
        self._too_few: dict[str, int] = {}
        # Ids of the nodes that came after the start and have said who they are, so that nobody is asked twice.
        self._asked: set[int] = set()

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Refuse settings under which the method would make no sense.

        Raises
        ------
        SettingsError
            The text names the setting and says what to do.
        """

    # --- the two acts of a method ---

    @abstractmethod
    def downlink_vector(self, client: Client) -> TaskVectors | None:
        """The vectors from which the client's tasks start.

        Returns
        -------
        TaskVectors, optional
            (d,) float32 each. None: all tasks start at θ_p, or from what the client keeps.
        """

    @abstractmethod
    def merge(self, updates: list[ClientUpdate]) -> TaskGraph | None:
        """Put what one round's updates give into `task_vectors`.

        New tensors replace old ones there and in the other attributes of `kept`. The screen may put the old ones back.
        A method that changes a tensor in place asks `screen.allows` before, for each task.

        Parameters
        ----------
        updates : list of ClientUpdate
            At least one, in the order of client names. Bounds on a client's influence have been applied.

        Returns
        -------
        TaskGraph, optional
            Which tasks are related, if the method finds that out.
        """

    def gain(self, tasks: int) -> float:
        """How many times as long as the longest update a merge over so many tasks can be: 1, as is any mean."""
        return 1.0

    def is_tested(self, server_round: int) -> bool:
        """Whether clients test the models of this round. The start and the end are tested in any case."""
        return server_round % self.settings.evaluate_every == 0

    def task_vector(self, task: str) -> Tensor:
        """τ^t, (d,) float32. Zeros for a task that is at θ_p."""
        return self.task_vectors[task] if task in self.task_vectors else torch.zeros(self.d)

    def state(self) -> tuple[Described, dict[str, Tensor]]:
        """What the next round needs: the attributes in `kept`.

        Returns
        -------
        tuple
            JSON that refers to tensors by name, and these tensors.
        """
        return describe(self, self.kept)

    def resume(self, completed: int, described: Described, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state()` gave after round `completed`. `start` goes on with the next round."""
        restore(self, described, tensors)
        self.completed = completed

    # --- the run ---

    @override
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
        """Run all rounds; after `resume`, only those that are left.

        This loop replaces Flower's, which always begins with round 1. A resumed run begins with the test of the last
        completed round, because the checkpoint was written before that test.

        The arrays of the result stay empty, since they have no place for a model per task. Read `task_vectors` and
        `heads` instead.

        Raises
        ------
        FederationError
            There are too few usable clients, at the start or in a round.
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
        """Run one round of training: ask the sampled clients, and merge what they send."""
        messages = self.configure_train(server_round, ArrayRecord(), ConfigRecord(), self._grid)
        self.aggregate_train(server_round, self._grid.send_and_receive(messages, timeout=self._timeout))

    def test_round(self, server_round: int) -> None:
        """Let the clients test the models that the last round gave.

        The models of the rounds before, θ_p among them, are tested by the clients that receive them, just before they
        train on them. That saves messages.
        """
        if 0 < server_round == self.num_rounds:
            messages = self.configure_evaluate(server_round, ArrayRecord(), ConfigRecord(), self._grid)
            self.aggregate_evaluate(server_round, self._grid.send_and_receive(messages, timeout=self._timeout))

    @property
    def _grid(self) -> StreamGrid:
        if self._stream is None:
            raise FederationError("the strategy has no grid yet: call start(grid)")
        return self._stream

    def register(
        self,
        grid: Grid,
        at_least: int = 0,
        *,
        declared: Mapping[str, tuple[str, ...]] | None = None,
        bound: Mapping[str, str] | None = None,
        keys_stay: bool = False,
    ) -> list[Client]:
        """Ask every node who it is, and keep the usable clients; see `registration.register`."""
        asks = (self.settings, self.model.fingerprint, self.run_name)
        self.clients = register(grid, *asks, at_least, declared=declared, bound=bound, keys_stay=keys_stay)
        return self.clients

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Class names of every task that a client holds, in the order of task names."""
        known = {task: info.classes for client in self.clients for task, info in client.tasks.items()}
        return dict(sorted(known.items()))

    def holders(self, task: str) -> list[Client]:
        """The clients that hold `task`, ordered by partition."""
        return [client for client in self.clients if task in client.tasks]

    def sample(self, server_round: int) -> list[Client]:
        """The clients that train in this round: `fraction_train` of all, at least one, drawn from the run's seed."""
        count = max(1, round(self.settings.fraction_train * len(self.clients)))
        if count >= len(self.clients):
            return list(self.clients)
        # Drawn by position among the partitions, since node ids differ from run to run.
        rng = np.random.default_rng(derive_seed(self.settings.seed, "sample", server_round))
        return [self.clients[i] for i in sorted(rng.choice(len(self.clients), count, replace=False))]

    # --- Flower's five acts ---

    def begin(self, server_round: int) -> None:
        """Open the record of a round of training."""
        self._round = RoundBooks(server_round, "train", server_round - 1, time.monotonic())
        self.screen.begin()
        logs.now_about(round=server_round, phase="train")

    @override
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterator[Message]:
        """Begin a round of training. The grid asks for the messages one by one, and each is built only then."""
        self.begin(server_round)
        asks = (self.settings, self.model.fingerprint, self.run_name)
        self.clients = rejoined(grid, self.clients, *asks, self._asked)
        # What clients receive now is the result of the round before, so that is the round they test.
        evaluate = self.is_tested(server_round - 1) or server_round == 1
        # The longest work first. Otherwise all might wait for a client with many tasks that was asked last.
        clients = sorted(self.sample(server_round), key=lambda client: -len(client.tasks))
        return (self._message(client, MessageType.TRAIN, evaluate) for client in clients)

    @override
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Read the replies one by one, then merge them.

        Raises
        ------
        FederationError
            More than `max_failed_fraction` of the clients failed, or too few for `min_nodes` did not. Nothing has been
            merged then.
        """
        current = self._round
        self._collect(replies)
        merging = time.monotonic()
        # In the order of names, not of arrival: sums of floats depend on the order, and a repeated run must give the
        # same bits.
        updates = [
            ClientUpdate(reply.vectors, reply.num_examples, name)
            for name, reply in sorted(current.answered.items())
            if reply.vectors is not None
        ]
        # A task with too few replies keeps its task vector and its head.
        self._too_few = too_few(current, self.settings.min_clients)
        updates = self.influence.bound(without_tasks(updates, self._too_few))
        self._merge(updates)
        current.server_seconds += time.monotonic() - merging
        self._report_accuracy()
        self.finish_round()
        return None, None

    @override
    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterator[Message]:
        """Ask every client to test what it would receive now."""
        self._round = RoundBooks(server_round, "evaluate", server_round, time.monotonic())
        logs.now_about(round=server_round, phase="evaluate")
        return (self._message(client, MessageType.EVALUATE, True) for client in self.clients)

    @override
    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Read the replies one by one, and report the accuracies."""
        self._collect(replies)
        self._report_accuracy()
        return None

    @override
    def summary(self) -> None:
        """Log the number of clients and tasks, and the settings of the method, as a tree."""
        log(INFO, "\t├── Clients: %d, tasks: %d", len(self.clients), len(self.classes))
        for key, value in self.method_settings().items():
            log(INFO, "\t├── %s: %s", key, value)
        log(INFO, "\t└── d: %s, fingerprint: %s…", f"{self.model.d:,}", self.model.fingerprint[:12])

    def method_settings(self) -> Mapping[str, Any]:
        """The method's own settings by name, for `summary`."""
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
        # The message must outlive our own timeout: see `GRACE`.
        ttl = self.settings.round_timeout + GRACE
        current.server_seconds += time.monotonic() - began
        return Message(records, client.node_id, kind, ttl=ttl, group_id=str(current.number))

    def _collect(self, replies: Iterable[Message]) -> None:
        """Check every reply, note which clients failed and why, and stop the run if too many did."""
        current = self._round
        for reply in replies:
            began = time.monotonic()
            node = self._stream.node_of(reply) if self._stream else reply.metadata.src_node_id
            client = current.asked.get(node)
            if client is None or current.heard(client):
                log(WARNING, "node %d sent a reply that nobody asked for, or a second one: it is ignored", node)
            elif reply.has_error():
                self._fail(client, reason_of(reply), "failed")
            else:
                self._open(client, reply.content)
            current.server_seconds += time.monotonic() - began
        self._screen()
        for node, reason in self._stream.lost.items() if self._stream else ():
            if node in current.asked:
                self._fail(current.asked[node], reason, "failed")
        for client in current.asked.values():
            if not current.heard(client) and client.name not in current.failures:
                self._fail(client, "no reply", "failed")
        current.check_failures(self.settings.max_failed_fraction)
        check_usable(current, self.settings.min_nodes, len(self.clients))

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
            tests={task: info.test for task, info in client.tasks.items()},
            losses=training and self.settings.privacy.noise_multiplier == 0,
            heads=training and self.rule.shares_heads(self.settings, current.number),
        )
        try:
            payload = self.rule.payload(self.settings, current.number) if training else "nothing"
            reply = wire.decode_uplink(records, expected, payload=payload)
        except wire.WireError as error:
            self._fail(client, str(error), "refused")
            return
        arrived = Arrived(client, reply, wire.count_bytes(records))
        if not training:
            self.observe(current.accept(client, reply, arrived.counts))
            return
        with logs.about(client=client.name, partition=client.partition):
            logs.detail("the reply of client %s is here", client.name)
        began = time.monotonic()
        self.screen.measure(client.name, reply, self.heads)
        current.screen_seconds += time.monotonic() - began
        current.arrived[client.name] = arrived

    def _screen(self) -> None:
        """Accept the replies to training, but for those that are too far from the others of their round."""
        current, began = self._round, time.monotonic()
        refused = self.screen.judge(current.number, self.references) if current.arrived else {}
        current.screen_seconds += time.monotonic() - began
        for name, arrived in current.arrived.items():
            if name in refused:
                self._fail(arrived.client, refusal(refused[name]), "refused", refused[name])
            else:
                self.trained[name] = current.number
                self.observe(current.accept(arrived.client, arrived.reply, arrived.counts))
        current.arrived.clear()
        current.server_seconds += time.monotonic() - began

    def _fail(self, client: Client, reason: str, status: str, screened: Screened | None = None) -> None:
        reason = printable(reason, REASON)
        with logs.about(client=client.name, partition=client.partition):
            log(WARNING, "client %s %s in round %d: %s", client.name, status, self._round.number, reason)
        self.observe(self._round.fail(client, reason, status, screened))

    # --- the results of a round ---

    def _merge(self, updates: list[ClientUpdate]) -> None:
        """Merge vectors and heads, and roll back what is not finite or jumped."""
        own = [name for name in self.kept if name not in ManyTaskStrategy.kept]
        before, heads = Before(self, ["task_vectors", *own]), dict(self.heads)
        self.screen.expect(self.gain(len({task for update in updates for task in update.num_examples})))
        self.graph = self.merge(updates) if updates else None
        self._merge_heads()
        began = time.monotonic()
        if updates:
            self.screen.roll_back(self, before)
        self.screen.roll_back_heads(self.heads, heads)
        self._round.screen_seconds += time.monotonic() - began
        for task, reason in self.screen.rolled_back.items():
            log(WARNING, "task %s keeps what it had before round %d: %s", task, self._round.number, reason)

    def _merge_heads(self) -> None:
        """Take the mean of each task's heads over the replies that have one."""
        absent = {c.name: {task: info.absent for task, info in c.tasks.items()} for c in self._round.asked.values()}
        offered = [
            OfferedHeads(
                name,
                {task: head for task, head in reply.heads.items() if task not in self._too_few},
                reply.num_examples,
                absent[name],
            )
            for name, reply in self._round.answered.items()
        ]
        self.heads |= self.influence.merge_heads(offered, self.heads)

    def _report_accuracy(self) -> None:
        event = self._round.accuracy()
        if event is not None:
            self.observe(event)

    def finish_round(self) -> None:
        """Report the round of training that is over, and call `after_round`."""
        number = self._round.number
        tested = self.is_tested(number) or number == self.num_rounds
        finished = self._round.finish(set(self.classes), self.graph, tested)
        if self._too_few:
            finished["too_few"] = self._too_few
        self.observe({**finished, **self.screen.event(), **self.influence.event(), **self.privacy.event(self.releases)})
        self.completed = number
        self.after_round(self)
