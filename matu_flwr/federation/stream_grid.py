"""A Grid that builds messages one by one and hands over replies one by one, to save memory.

Flower's `send_and_receive` first collects all replies in a list. Here at most `window` messages are on their way: the
next one is built only when a reply has come, and a reply can be dropped before the next one is fetched. It works the
same way in simulation and in deployment.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError
from typing_extensions import override

from matu_flwr.texts import printable

# Seconds to wait before looking again for replies: short at first, and longer as long as none comes.
FIRST_WAIT, LONGEST_WAIT = 0.02, 0.25
# Seconds for which a message lives on after its timeout. We give up on a client first, and say so in our own words:
# what Flower reports of a message that has expired does not say what happened.
GRACE = 5.0
# What comes after the last message.
END = object()
# What Flower raises when it builds a message of bytes that are none. The node wrote these bytes, and the SuperLink does
# not look into them. Errors of the network are of other kinds, and end the run.
UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    DecodeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class StreamGrid(Grid):
    """A Grid around another one that keeps only a few messages on their way at a time.

    Parameters
    ----------
    inner : Grid
        The grid that Flower gave.
    window : int
        The largest number of messages on their way. The server holds at most so many requests and replies.

    Attributes
    ----------
    lost : dict of int to str
        Messages of the last `send_and_receive` that got no reply: the reason by node id.
    """

    def __init__(self, inner: Grid, window: int) -> None:
        self.inner = inner
        self.window = window
        self.lost: dict[int, str] = {}
        self._node_of: dict[str, int] = {}
        # Node by reply that was handed over and is still in use.
        self._replied: weakref.WeakKeyDictionary[Message, int] = weakref.WeakKeyDictionary()

    def node_of(self, reply: Message) -> int:
        """Id of the node that was asked for `reply`, one of those that `send_and_receive` gave.

        What the reply itself says of its sender counts for nothing: the sender wrote it. Nor is it always the node: the
        SuperLink itself sends the error about a node that is lost.
        """
        return self._replied[reply]

    @override
    def send_and_receive(
        self, messages: Iterable[Message | None], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Send `messages` as the window allows, and yield each reply when it comes.

        Flower's own method returns a list. An iterator is enough, because strategies only iterate over the result.

        `messages` may give None, which means that there is nothing to send yet: it is asked again a little later. A
        message that lives shorter than `timeout` is waited for only as long as it lives.
        """
        self.lost, self._node_of = {}, {}
        pending = iter(messages)
        # Deadline, in seconds of the monotonic clock, by message id.
        flight: dict[str, float] = {}
        patience: dict[str, float] = {}
        wait = FIRST_WAIT
        exhausted = False
        while True:
            while not exhausted and len(flight) < self.window:
                message = next(pending, END)
                if message is END:
                    exhausted = True
                if not isinstance(message, Message):
                    break
                node, ttl = message.metadata.dst_node_id, message.metadata.ttl
                pushed = [str(identifier) for identifier in self.inner.push_messages([message]) if identifier]
                # The grid has copied the payload: keeping it here too would double the memory of the window.
                del message
                if pushed:
                    self._node_of[pushed[0]] = node
                    patience[pushed[0]] = min(timeout, ttl) if timeout is not None else float("inf")
                    flight[pushed[0]] = time.monotonic() + patience[pushed[0]]
                else:
                    self.lost[node] = "the message was refused; the node may have left"
            if exhausted and not flight:
                return
            arrived = False
            for identifier in list(flight):
                reply, unreadable = self._pulled(identifier)
                if reply is not None or unreadable:
                    arrived = True
                    del flight[identifier]
                if unreadable:
                    self.lost[self._node_of[identifier]] = unreadable
                elif reply is not None:
                    self._replied[reply] = self._node_of[identifier]
                    yield reply
                del reply
                if identifier in flight and time.monotonic() > flight[identifier]:
                    del flight[identifier]
                    self.lost[self._node_of[identifier]] = f"no reply within {patience[identifier]:g} s"
            wait = FIRST_WAIT if arrived else min(wait * 1.5, LONGEST_WAIT)
            if not arrived:
                time.sleep(wait)

    def _pulled(self, identifier: str) -> tuple[Message | None, str]:
        """The reply to a message, None if there is none yet; or what is wrong with a reply that cannot be read."""
        try:
            # One id a call: a pull of several would hold all their replies at once.
            reply = next(iter(self.inner.pull_messages([identifier])), None)
            if reply is not None and not reply.has_error() and not isinstance(reply.content, RecordDict):
                raise TypeError(f"its content is of type {type(reply.content).__name__}")
        except UNREADABLE as error:
            return None, printable(f"its reply cannot be read ({type(error).__name__}: {error})")
        return reply, ""

    # --- all other calls go to the inner grid ---

    @override
    def set_run(self, *args: Any, **kwargs: Any) -> None:
        self.inner.set_run(*args, **kwargs)

    @property
    @override
    def run(self) -> Any:
        return self.inner.run

    @override
    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return self.inner.create_message(*args, **kwargs)

    @override
    def get_node_ids(self) -> Iterable[int]:
        return self.inner.get_node_ids()

    @override
    def get_nodes(self) -> Any:
        return self.inner.get_nodes()

    @override
    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        # Flower's HTTP grid goes through the messages twice, which a generator would not survive.
        return self.inner.push_messages(list(messages))

    @override
    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self.inner.pull_messages(message_ids)
