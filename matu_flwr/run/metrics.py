"""A run's numbers for Prometheus: as a file beside the history, and on a port if the operator asks for one.

`metrics.prom` is replaced after every event except those of single clients. It has the text format that the textfile
collector of node_exporter reads. If `MATU_METRICS_ADDRESS=HOST:PORT` is set in the environment of the ServerApp, the
same numbers are served at /metrics while the run goes on. A problem with the metrics is logged and never fails the run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from logging import WARNING
from pathlib import Path

from flwr.common.logger import log
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest, start_http_server

from matu_flwr.events import AccuracyEvent, ClientEvent, EndEvent, Event, PlanEvent, ResumeEvent, RoundEvent
from matu_flwr.files import write_bytes
from matu_flwr.run.summary import float_of

METRICS = "metrics.prom"
ADDRESS = "MATU_METRICS_ADDRESS"


class RunMetrics:
    """Counters and gauges of one run, updated from the events of its history.

    Parameters
    ----------
    file : Path
        The file to write them to.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.registry = CollectorRegistry()
        self._run = self._gauge(
            "run_info", "Always 1; the labels describe the run.", "run", "strategy", "suite", "seed"
        )
        self._planned = self._gauge("rounds_planned", "Rounds of training that the run is planned to have.")
        self._round = self._gauge("round", "Last finished round of training.")
        self._clients = self._gauge("clients", "Number of clients that take part.")
        self._last = self._gauge(
            "last_event_timestamp_seconds", "Unix time at which the last event was written to the history."
        )
        self._ended = self._gauge("ended", "1 once the run has ended, 0 before.")
        self._failed = self._gauge("failed", "1 if the run ended without completing, 0 otherwise.")
        self._accuracy = self._gauge(
            "accuracy", "Accuracy of a task after the last round that was tested.", "task", "source"
        )
        self._loss = self._gauge(
            "train_loss", "Mean training loss of a task at a client in its last round.", "task", "client"
        )
        self._round_seconds = self._gauge("round_seconds", "Seconds of the last finished round, by part.", "part")
        self._client_seconds = self._gauge(
            "client_seconds", "Seconds of a client's work for its last reply, by activity.", "client", "activity"
        )
        self._replies = self._counter("replies", "Replies of a client, by status.", "client", "status")
        self._bytes = self._counter("bytes", "Bytes of the messages of finished rounds.", "direction")
        self._clipped = self._counter(
            "clipped_rounds", "Rounds in which something that a client sent was clipped.", "client"
        )
        self._rolled_back = self._counter(
            "rolled_back_rounds", "Rounds after which a task kept what it had before.", "task"
        )
        self._epsilon = self._gauge(
            "privacy_epsilon", "Epsilon of differential privacy spent so far.", "client", "task"
        )

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"matu_{name}", text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"matu_{name}", text, labels, registry=self.registry)

    def serve(self) -> Callable[[], None]:
        """Serve the metrics over HTTP if the environment asks for it. Returns a function that stops the server."""
        address = os.environ.get(ADDRESS, "")
        if not address:
            return lambda: None
        host, _, port = address.rpartition(":")
        try:
            server, thread = start_http_server(int(port), host or "127.0.0.1", self.registry)
        except (ValueError, OverflowError, OSError) as error:
            # A typing error is no reason to stop a run, and another run on this server may hold the port.
            log(
                WARNING,
                "metrics are not served: %s = %r, expected HOST:PORT with a free port: %s",
                ADDRESS,
                address,
                error,
            )
            return lambda: None

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop

    def observe(self, event: Event) -> None:
        """Update the metrics from one event of the history."""
        getattr(self, f"_enter_{event['event']}")(event)
        self._last.set(time.time())

    def write(self) -> None:
        """Replace the file by the present numbers. If that fails, a warning is logged."""
        try:
            write_bytes(self._file, generate_latest(self.registry))
        except OSError as error:
            log(WARNING, "cannot write the metrics: %s", error)

    def _enter_plan(self, event: PlanEvent) -> None:
        seed = str(event["seed"])
        self._run.labels(str(event["run_id"]), event["strategy"], event["suite"], seed).set(1)
        self._planned.set(event["rounds"])
        self._clients.set(len(event["clients"]))

    def _enter_client(self, event: ClientEvent) -> None:
        client = event["client"]
        self._replies.labels(client, event["status"]).inc()
        for activity, seconds in event["seconds"].items():
            self._client_seconds.labels(client, activity).set(float_of(seconds))
        for task, found in event["tasks"].items():
            if "train_loss" in found:
                self._loss.labels(task, client).set(float_of(found["train_loss"]))

    def _enter_accuracy(self, event: AccuracyEvent) -> None:
        for task, accuracy in event["accuracy"].items():
            self._accuracy.labels(task, event["source"]).set(float_of(accuracy))

    def _enter_round(self, event: RoundEvent) -> None:
        self._round.set(event["round"])
        self._bytes.labels("up").inc(event["bytes_up"])
        self._bytes.labels("down").inc(event["bytes_down"])
        for part, seconds in event["seconds"].items():
            self._round_seconds.labels(part).set(float_of(seconds))
        for task in event.get("rolled_back", {}):
            self._rolled_back.labels(task).inc()
        for client in {name for found in event.get("clipped", {}).values() for name in found}:
            self._clipped.labels(client).inc()
        if "privacy" in event:
            for client, spent in event["privacy"]["epsilon"].items():
                for task, epsilon in spent.items():
                    self._epsilon.labels(client, task).set(float_of(epsilon))

    def _enter_resume(self, event: ResumeEvent) -> None:
        """Enter nothing: the recorder has already entered the events before the resume from the history."""

    def _enter_end(self, event: EndEvent) -> None:
        self._ended.set(1)
        self._failed.set(event["status"] != "completed")
