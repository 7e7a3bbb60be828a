"""Which clients take part: before the first round, every node tells its name, its tasks and which θ_p it has built."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from logging import WARNING

from flwr.app import Message
from flwr.common.logger import log
from flwr.serverapp import Grid

from matu_flwr import wire
from matu_flwr.config.settings import Settings
from matu_flwr.federation.stream_grid import StreamGrid
from matu_flwr.texts import Brief

QUESTION = "query.who_are_you"


class FederationError(Brief, RuntimeError):
    """A federation cannot start or go on. The text lists the reasons by client."""


@dataclass(frozen=True)
class Client:
    """A registered client.

    Attributes
    ----------
    name : str
        The name that it gave; unique in the run.
    partition : int
        Its partition id; negative for a client without one.
    node_id : int
        Flower's id of its node, which may change when the node is started again.
    tasks : dict of str to TaskInfo
        What it said about each of its tasks.
    """

    name: str
    partition: int
    node_id: int
    tasks: dict[str, wire.TaskInfo]


def register(grid: Grid, settings: Settings, fingerprint: str, run_name: str, at_least: int = 0) -> list[Client]:
    """Wait for enough nodes, ask each who it is, and keep the usable clients, ordered by partition.

    Enough is `min_nodes` or `at_least`, whichever is larger. A client is known by the name and partition that it gives,
    because Flower draws new node ids in every simulation.

    Raises
    ------
    FederationError
        Too few nodes were there within `node_timeout` seconds, or none of them can take part.
    """
    deadline = time.monotonic() + settings.node_timeout
    wanted = max(settings.min_nodes, at_least)
    while len(nodes := sorted(grid.get_node_ids())) < wanted:
        if time.monotonic() > deadline:
            raise FederationError(
                f"{len(nodes)} nodes are connected after {settings.node_timeout:g} s, expected at least "
                + (f"min-nodes = {wanted}" if wanted > at_least else f"the {at_least} clients of the checkpoint")
            )
        time.sleep(0.5)
    stream = grid if isinstance(grid, StreamGrid) else StreamGrid(grid, settings.window)
    question = wire.encode_question(settings.for_clients(), run_name)
    messages = (Message(question, node, QUESTION, ttl=settings.node_timeout) for node in nodes)
    refused: dict[str, str] = {}
    clients: dict[str, Client] = {}
    for reply in stream.send_and_receive(messages, timeout=settings.node_timeout):
        node = stream.node_of(reply)
        who = f"node {node}"
        if reply.has_error():
            refused[who] = reason_of(reply)
            continue
        try:
            told = wire.decode_announcement(reply.content, fingerprint, who)
        except wire.WireError as error:
            refused[who] = str(error)
            continue
        if told.client in clients:
            refused[who] = f"the name {told.client!r} is taken by node {clients[told.client].node_id}"
            continue
        clients[told.client] = Client(told.client, told.partition, node, told.tasks)
    refused |= {f"node {node}": reason for node, reason in stream.lost.items()}
    ordered = sorted(clients.values(), key=lambda c: (c.partition < 0, c.partition, c.name))
    kept = _agreeing(ordered, refused)
    for who, reason in refused.items():
        log(WARNING, "%s takes no part: %s", who, reason)
    if not kept:
        reasons = "".join(f"\n  {who}: {reason}" for who, reason in sorted(refused.items()))
        raise FederationError(f"none of {len(nodes)} nodes can take part:{reasons}")
    return kept


def rejoined(
    grid: Grid, clients: list[Client], settings: Settings, fingerprint: str, run_name: str, asked: set[int]
) -> list[Client]:
    """The same clients, with the node ids that they have now.

    Without SuperNode authentication, a node that is started again gets a new id. So when the node of a known client is
    gone, new nodes are asked who they are. A new node takes the client's place if it gives the same name and the same
    tasks; any other takes no part. `asked` holds the ids of new nodes that have answered, and is added to.
    """
    there = set(grid.get_node_ids())
    gone = {client.name: client for client in clients if client.node_id not in there}
    new = sorted(there - {client.node_id for client in clients} - asked)
    if not gone or not new:
        return clients
    stream = grid if isinstance(grid, StreamGrid) else StreamGrid(grid, settings.window)
    question = wire.encode_question(settings.for_clients(), run_name)
    wait = min(settings.node_timeout, settings.round_timeout)
    messages = (Message(question, node, QUESTION, ttl=wait) for node in new)
    back: dict[str, int] = {}
    for reply in stream.send_and_receive(messages, timeout=wait):
        node = stream.node_of(reply)
        try:
            if reply.has_error():
                raise wire.WireError(reason_of(reply))
            told = wire.decode_announcement(reply.content, fingerprint, f"node {node}")
        except wire.WireError as error:
            log(WARNING, "node %d takes no part: %s", node, error)
            continue
        asked.add(node)
        known = gone.get(told.client)
        # Only a known client with the same tasks may return: others would change what the run measures.
        if known is None or known.tasks != told.tasks or told.client in back:
            log(WARNING, "node %d (%s) takes no part: it is new, or has other tasks than before", node, told.client)
        else:
            log(WARNING, "client %s is back, as node %d", told.client, node)
            back[told.client] = node
    return [replace(c, node_id=back[c.name]) if c.name in back else c for c in clients]


def _agreeing(clients: list[Client], refused: dict[str, str]) -> list[Client]:
    """The clients whose tasks agree with those of the task's first holder. The others are entered in `refused`."""
    first: dict[str, Client] = {}
    kept = []
    for client in clients:
        reasons = (_difference(task, info, first[task]) for task, info in client.tasks.items() if task in first)
        reason = next((reason for reason in reasons if reason), "")
        if reason:
            refused[client.name] = reason
        else:
            first = dict.fromkeys(client.tasks, client) | first
            kept.append(client)
    return kept


def _difference(task: str, info: wire.TaskInfo, first: Client) -> str:
    """Why a client's task is not the same as at its first holder; "" if it is the same."""
    expected = first.tasks[task]
    if info.classes != expected.classes:
        return (
            f"task {task!r} has classes {list(info.classes)[:8]}, client {first.name!r} has "
            f"{list(expected.classes)[:8]}: a task is one label set in one order"
        )
    if info.data != expected.data and info.data and expected.data:
        return (
            f"task {task!r} has other images or labels (digest {info.data}) than at client {first.name!r} "
            f"({expected.data}), expected shares of the same files: run `matu data check` on both nodes"
        )
    if info.head != expected.head:
        return (
            f"task {task!r} has another zero-shot head (digest {info.head or 'none'}) than at client {first.name!r} "
            f"({expected.head or 'none'}): text tower, heads file or prompt templates differ; give both the same"
        )
    return ""


def reason_of(reply: Message) -> str:
    """The last line of an error reply, with Flower's error code."""
    lines = (reply.error.reason or "").strip().splitlines()
    return f"{lines[-1] if lines else 'unknown error'} (code {reply.error.code})"
