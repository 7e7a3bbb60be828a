"""Saying what a run waits for, when nothing has happened for a while."""

from __future__ import annotations

import time
from collections.abc import Callable

from matu_flwr.events import Event

# Seconds without an event after which the screen says what is being waited for. Each further line comes after twice
# the time of the one before.
PATIENCE = 30.0


class Waiting:
    """Tells a person what is being waited for.

    Parameters
    ----------
    say : callable
        Shows a line.
    clock : callable
        Returns seconds; for tests.
    """

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._since = clock()
        self._patience = self._next = PATIENCE

    def hear(self) -> None:
        """Note that something has happened."""
        # A run whose rounds take five minutes is not silent because nothing happens for one.
        self._patience = max(self._patience, 1.5 * self.seconds)
        self._since, self._next = self._clock(), self._patience

    def look(self, what: str) -> None:
        """Say that `what` is being waited for, if nothing has happened for long enough."""
        if self.seconds >= self._next:
            self._say(f"waiting for {what}, {self.seconds:.0f} s so far")
            self._next = 2 * self.seconds

    @property
    def seconds(self) -> float:
        """Seconds since something happened."""
        return self._clock() - self._since


class Stage:
    """Works out from the events what a run is waiting for."""

    def __init__(self) -> None:
        self._rounds = 0
        self._round = 0
        self._answered: list[str] = []

    def hear(self, event: Event) -> None:
        """Take the next event."""
        if event["event"] == "plan":
            self._rounds, self._round = event["rounds"], 1
        elif event["event"] == "resume":
            self._round = event["round"] + 1
        elif event["event"] == "client":
            self._answered.append(event["client"])
        elif event["event"] == "round":
            self._round, self._answered = event["round"] + 1, []

    def __str__(self) -> str:
        """What comes next, in words; "" before the first event."""
        if not self._round:
            return ""
        if self._round > self._rounds > 0:
            return "the tests after the last round, and for the results"
        heard = f" ({', '.join(self._answered[:8])} answered)" if self._answered else ""
        return f"the clients of round {self._round}{heard}"
