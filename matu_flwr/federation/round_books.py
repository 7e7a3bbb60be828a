"""The record of a round: which clients were asked, what they answered, and the history's events about it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from matu_flwr import wire
from matu_flwr.events import AccuracyEvent, ClientEvent, RepliedTask, RoundEvent, Screened
from matu_flwr.federation.registration import Client, FederationError
from matu_flwr.merging import TaskGraph


@dataclass(frozen=True)
class Arrived:
    """A reply that can be read, with its bytes by kind."""

    client: Client
    reply: wire.Uplink
    counts: dict[str, int]


@dataclass
class RoundBooks:
    """What is collected while the messages of one round go out and its replies come in.

    Attributes
    ----------
    number : int
        The round.
    phase : str
        "train" or "evaluate".
    evaluated_round : int
        The round whose models are tested in this one.
    started : float
        When the round began, in seconds of the monotonic clock.
    asked : dict of int to Client
        The clients that were asked, by node id.
    bytes_down : dict of str to dict
        Bytes sent to each client, by kind.
    bytes_up : int
        Bytes of all accepted replies together.
    failures : dict of str to str
        Why nothing usable came, by client.
    arrived : dict of str to Arrived
        Replies to training that can be read and wait for the screen, which needs all of the round, by client.
    answered : dict of str to Uplink
        Accepted replies, by client.
    server_seconds : float
        Time that the server itself worked.
    screen_seconds : float
        The part of it that the screen took.
    client_seconds : dict of str to float
        Time that clients worked, by activity, over all of them.
    """

    number: int
    phase: str
    evaluated_round: int
    started: float
    asked: dict[int, Client] = field(default_factory=dict)
    bytes_down: dict[str, dict[str, int]] = field(default_factory=dict)
    bytes_up: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    arrived: dict[str, Arrived] = field(default_factory=dict)
    answered: dict[str, wire.Uplink] = field(default_factory=dict)
    server_seconds: float = 0.0
    screen_seconds: float = 0.0
    client_seconds: dict[str, float] = field(default_factory=dict)

    def heard(self, client: Client) -> bool:
        """Whether a usable reply of this client has come already."""
        return client.name in self.answered or client.name in self.arrived

    def accept(self, client: Client, reply: wire.Uplink, counts: dict[str, int]) -> ClientEvent:
        """Enter an accepted reply and its bytes by kind (`counts`). Returns the event for the history."""
        self.answered[client.name] = reply
        self.bytes_up += counts["total"]
        for activity, seconds in reply.seconds.items():
            self.client_seconds[activity] = self.client_seconds.get(activity, 0.0) + seconds
        tasks = {task: self._task(task, reply) for task in reply.num_examples}
        return self._client(client, "ok", None, counts, dict(reply.seconds), tasks)

    def fail(self, client: Client, reason: str, status: str, screened: Screened | None = None) -> ClientEvent:
        """Enter that nothing usable came from a client, and why. Returns the event for the history.

        `screened` is what the screen found, if the reply was refused by it.
        """
        self.failures[client.name] = reason
        event = self._client(client, status, reason, None, {}, {})
        if screened is not None:
            event["screen"] = screened
        return event

    def _client(
        self,
        client: Client,
        status: str,
        error: str | None,
        bytes_up: dict[str, int] | None,
        seconds: dict[str, float],
        tasks: dict[str, RepliedTask],
    ) -> ClientEvent:
        return {
            "event": "client",
            "round": self.number,
            "phase": self.phase,
            "client": client.name,
            "partition": client.partition,
            "status": status,
            "error": error,
            "bytes_down": self.bytes_down[client.name],
            "bytes_up": bytes_up,
            "seconds": seconds,
            "tasks": tasks,
        }

    def check_failures(self, allowed: float) -> None:
        """Stop the run if too many clients failed.

        Parameters
        ----------
        allowed : float in [0, 1]
            Share of the asked clients that may fail. With exactly this share, the run goes on.

        Raises
        ------
        FederationError
            A larger share failed. The text gives the reason for each client.
        """
        if not self.asked or len(self.failures) <= allowed * len(self.asked):
            return
        names = [c.name for c in sorted(self.asked.values(), key=lambda c: (c.partition, c.name))]
        reasons = "".join(f"\n  {name}: {self.failures[name]}" for name in names if name in self.failures)
        raise FederationError(
            f"round {self.number}: {len(self.failures)} of {len(self.asked)} clients failed, more than "
            f"max-failed-fraction = {allowed:g} allows:{reasons}"
        )

    def _task(self, task: str, reply: wire.Uplink) -> RepliedTask:
        metrics = reply.metrics[task]
        event: RepliedTask = {"examples": reply.num_examples[task]}
        if self.phase == "train":
            event["train_loss"] = metrics.train_loss
        if metrics.test_examples:
            event["test_correct"] = metrics.test_correct
            event["test_examples"] = metrics.test_examples
            event["test_loss"] = metrics.test_loss
            event["evaluated_round"] = self.evaluated_round
        if reply.vectors is not None:
            event["rescaler"] = reply.vectors.rescalers[task]
        return event

    def accuracy(self) -> AccuracyEvent | None:
        """Accuracy over the test images of all clients together. None if nobody tested."""
        counts: dict[str, list[float]] = {}
        for _, reply in sorted(self.answered.items()):
            for task, metrics in reply.metrics.items():
                if metrics.test_examples:
                    correct, examples, loss = counts.get(task, [0, 0, 0.0])
                    counts[task] = [
                        correct + metrics.test_correct,
                        examples + metrics.test_examples,
                        loss + metrics.test_loss * metrics.test_examples,
                    ]
        if not counts:
            return None
        return accuracy_event(
            self.evaluated_round,
            {task: correct / examples for task, (correct, examples, _) in sorted(counts.items())},
            {task: loss / examples for task, (_, examples, loss) in sorted(counts.items())},
            "clients",
        )

    def finish(self, tasks: set[str], graph: TaskGraph | None, tested: bool) -> RoundEvent:
        """The event of a finished round of training.

        Parameters
        ----------
        tasks : set of str
            All tasks of the federation.
        graph : TaskGraph, optional
            Which tasks are related, if the method finds that out.
        tested : bool
            Whether an accuracy of this round will follow.
        """
        held = {task for reply in self.answered.values() for task in reply.num_examples}
        return {
            "event": "round",
            "round": self.number,
            "clients": len(self.asked),
            "failed": len(self.failures),
            "bytes_up": self.bytes_up,
            "bytes_down": sum(counts["total"] for counts in self.bytes_down.values()),
            "seconds": {
                "total": time.monotonic() - self.started,
                "server": self.server_seconds,
                "screen": self.screen_seconds,
                **{f"clients.{name}": seconds for name, seconds in sorted(self.client_seconds.items())},
            },
            "tested": tested,
            "tasks_without_holder": sorted(tasks - held),
            "order": graph.tasks if graph else [],
            "similarity": graph.similarity.tolist() if graph else None,
            "z": graph.z.tolist() if graph else None,
            "related": graph.related if graph else {},
        }


def accuracy_event(round_: int, accuracy: Mapping[str, float], loss: Mapping[str, float], source: str) -> AccuracyEvent:
    """The event with the accuracy and loss of every tested task after a round. Round 0 is before any training."""
    worst = min(accuracy, key=lambda task: (accuracy[task], task))
    return {
        "event": "accuracy",
        "round": round_,
        "accuracy": accuracy,
        "loss": loss,
        "mean_accuracy": math.fsum(accuracy.values()) / len(accuracy),
        "worst_task": worst,
        "worst_accuracy": accuracy[worst],
        "source": source,
    }
