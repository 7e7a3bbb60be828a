"""Which clients take part: before the first round, every node tells its name, its tasks and which θ_p it has built.

Nodes are asked as they connect, until enough of them can take part. `federation.agreement` decides who can.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from logging import WARNING
from typing import Any

from flwr.app import Message
from flwr.common.logger import log
from flwr.serverapp import Grid

from matu_flwr import digests, wire
from matu_flwr.config.settings import Settings
from matu_flwr.federation.agreement import Claim, Rules, Verdict, judge, name_is_wrong, without_namesakes
from matu_flwr.federation.stream_grid import StreamGrid
from matu_flwr.texts import Brief, printable

QUESTION = "query.who_are_you"
# Seconds between two looks at who is connected.
LOOK = 0.5
# Seconds after which a node that cannot take part is asked again. It reads its data anew for every message, so that it
# can be mended meanwhile.
ASK_AGAIN = 20.0
# Seconds that a node has at least to answer when it is asked again.
LEAST_WAIT = 30.0
# Seconds without a new node after which no more are expected in a simulation: there, all nodes start at once.
SETTLED = 2.0
# Flower gives the nodes of a simulation a heartbeat of 1e300 seconds, and those of a deployment one of a minute.
SIMULATED = 1e100
# How many refusals an error lists.
SHOWN = 40


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
    key : str
        Digest of the public key of its node; "" if the grid knows none.
    registered : bool
        Whether an operator registered this key under the client's name.
    """

    name: str
    partition: int
    node_id: int
    tasks: dict[str, wire.TaskInfo]
    key: str = ""
    registered: bool = False


@dataclass(frozen=True)
class Connected:
    """A node as the SuperLink knows it; see `Claim`."""

    node_id: int
    key: str
    registered: str
    simulated: bool


def connected(grid: Grid) -> dict[int, Connected]:
    """The nodes that are connected now, by their ids, in ascending order."""
    return {
        info.node_id: Connected(
            info.node_id,
            digests.of_bytes(info.public_key)[: digests.SHORT] if info.public_key else "",
            info.name if info.HasField("name") else "",
            info.heartbeat_interval > SIMULATED,
        )
        for info in sorted(grid.get_nodes(), key=lambda info: info.node_id)
    }


def rules_of(
    settings: Settings,
    nodes: Mapping[int, Connected],
    declared: Mapping[str, tuple[str, ...]] | None = None,
    bound: Mapping[str, str] | None = None,
    keys_stay: bool = False,
) -> Rules:
    """What the server knows: the settings, its suite, who had which key, and whether keys stayed before."""
    return Rules(
        declared=declared or {},
        bound=bound or {},
        # Only where nodes authenticate themselves can an operator register a key under a name.
        keys_stay=keys_stay or settings.bind_names or any(node.registered for node in nodes.values()),
        most_tasks=settings.max_tasks_total,
        most_own_tasks=settings.max_tasks_per_client,
    )


def register(
    grid: Grid,
    settings: Settings,
    fingerprint: str,
    run_name: str,
    at_least: int = 0,
    *,
    declared: Mapping[str, tuple[str, ...]] | None = None,
    bound: Mapping[str, str] | None = None,
    keys_stay: bool = False,
) -> list[Client]:
    """Ask nodes who they are until enough of them can take part; return these clients, ordered by partition.

    Nodes are asked as they connect, and those that cannot take part are asked again from time to time. Once all that
    are connected have answered and enough can take part, nobody else is waited for. A client is known by the name and
    partition that it gives, because Flower draws new node ids in every simulation.

    Parameters
    ----------
    grid : Grid
        Flower's.
    settings : Settings
        `min_nodes` says how many are enough, and `node_timeout` for how long they are waited for.
    fingerprint, run_name : str
        Of the server's backbone; of the run.
    at_least : int
        Enough is `min_nodes` or this number, whichever is larger: the number of clients of a checkpoint.
    declared, bound, keys_stay
        The suite's tasks with their classes, the keys that had the names before, and whether nodes keep their keys; see
        `agreement.Rules`.

    Raises
    ------
    FederationError
        Too few clients can take part after `node_timeout` seconds, or the holders of a task cannot agree what it is and
        nobody else is expected. The text says of everybody why it takes no part.
    """
    stream = grid if isinstance(grid, StreamGrid) else StreamGrid(grid, settings.window)
    hall = _Registration(stream, settings, fingerprint, run_name, max(settings.min_nodes, at_least))
    hall.known = {"declared": declared, "bound": bound, "keys_stay": keys_stay}
    hall.resumed = at_least
    for reply in stream.send_and_receive(hall.questions(), timeout=settings.node_timeout):
        hall.hear(reply)
    verdict = hall.verdict
    if verdict.ties or len(verdict.accepted) < hall.wanted:
        raise FederationError(hall.failure())
    clients = [
        Client(told.client, told.partition, claim.node_id, told.tasks, claim.key, bool(claim.registered))
        for claim in verdict.accepted.values()
        for told in (claim.told,)
    ]
    return sorted(clients, key=lambda c: (c.partition < 0, c.partition, c.name))


class _Registration:
    """Who was asked, what they said, and whether that is enough."""

    def __init__(self, stream: StreamGrid, settings: Settings, fingerprint: str, run_name: str, wanted: int) -> None:
        self.stream, self.settings, self.fingerprint, self.wanted = stream, settings, fingerprint, wanted
        self.question = wire.encode_question(settings.for_clients(), run_name)
        # Arguments of `rules_of`.
        self.known: dict[str, Any] = {}
        # How many clients the checkpoint has, if a run is resumed.
        self.resumed = 0
        self.verdict = Verdict({})
        self._nodes: dict[int, Connected] = {}
        self._claims: dict[int, Claim] = {}
        # Why a node's last answer was none.
        self._failed: dict[int, str] = {}
        # When a node was last asked, and whether it still has to answer.
        self._asked: dict[int, float] = {}
        self._pending: set[int] = set()
        self._started = self._changed = time.monotonic()
        self._looked = -LOOK
        self._told: dict[int, tuple[str, str]] = {}

    def questions(self) -> Iterator[Message | None]:
        """Messages to the nodes that are to be asked; None while there is nobody to ask and it is not over."""
        while not self._is_over():
            node = next(self._to_ask(), None)
            if node is None:
                yield None
            else:
                # Everybody gets the whole time once. Later questions must not hold up the end for as long again.
                left = self._started + self.settings.node_timeout - time.monotonic()
                ttl = max(left, LEAST_WAIT) if node in self._asked else self.settings.node_timeout
                self.stream.lost.pop(node, None)
                self._asked[node] = time.monotonic()
                self._pending.add(node)
                yield Message(self.question, node, QUESTION, ttl=min(ttl, self.settings.node_timeout))

    def hear(self, reply: Message) -> None:
        """Note a node's answer, or why it gave none."""
        node = self.stream.node_of(reply)
        known = self._nodes.get(node)
        self._pending.discard(node)
        self._claims.pop(node, None)
        self._failed.pop(node, None)
        if known is None:
            return
        try:
            self._claims[node] = claim_of(reply, known, self.fingerprint)
        except wire.WireError as error:
            self._failed[node] = str(error).removeprefix(f"node {node}: ")

    def _to_ask(self) -> Iterator[int]:
        """Nodes that were never asked; once everybody has answered, also those that cannot take part, and are due."""
        now = time.monotonic()
        yield from (node for node in self._nodes if node not in self._asked)
        # In a simulation all nodes read the same files as this run did before: they cannot be mended meanwhile.
        if not self._pending and not self._simulated:
            yield from (
                node
                for node in self._nodes
                if node not in self.verdict.accepted and now - self._asked[node] > ASK_AGAIN
            )

    def _is_over(self) -> bool:
        """Whether nobody has to be asked or waited for any more. Keeps `verdict` up to date."""
        now = time.monotonic()
        if now - self._looked >= LOOK:
            found = connected(self.stream)
            self._changed = self._changed if found.keys() == self._nodes.keys() else now
            self._nodes, self._looked = found, now
            # Nodes may come and go for as long as they like: nothing is kept of those that have gone.
            for kept in (self._claims, self._failed, self._asked, self._told):
                for node in kept.keys() - found.keys():
                    del kept[node]
        for node, reason in self.stream.lost.items():
            if node in self._pending:
                self._pending.discard(node)
                # What it said before is no longer true of a node that does not answer.
                self._claims.pop(node, None)
                self._failed[node] = reason
        # What the first few say may look different once all have answered: until then nobody is judged.
        late = now - self._started > self.settings.node_timeout
        if self._pending or (not late and any(node not in self._asked for node in self._nodes)):
            return False
        # A node that has gone keeps nobody from its name: it may be the same machine, started anew.
        self.verdict = judge(self._claims.values(), rules_of(self.settings, self._nodes, **self.known))
        self._tell()
        enough = len(self.verdict.accepted) >= self.wanted
        if enough and not self.verdict.ties:
            return True
        if late or (self._simulated and now - self._changed > SETTLED):
            return True
        # Somebody who comes later could decide a tie, as long as somebody is expected.
        return bool(self.verdict.ties) and len(self._nodes) >= self.wanted

    @property
    def _simulated(self) -> bool:
        return bool(self._nodes) and all(node.simulated for node in self._nodes.values())

    def reasons(self) -> dict[int, tuple[str, str]]:
        """Who takes no part, and why, by node id."""
        found = {node: (f"node {node}", reason) for node, reason in self._failed.items()}
        found |= {node: (self._claims[node].who, reason) for node, reason in self.verdict.refused.items()}
        return {node: (who, printable(reason, 2000)) for node, (who, reason) in sorted(found.items())}

    def _tell(self) -> None:
        """Log every new reason once."""
        new = {node: told for node, told in self.reasons().items() if self._told.get(node) != told}
        for who, reason in new.values():
            log(WARNING, "%s takes no part: %s", who, reason)
        self._told |= new
        usable = len(self.verdict.accepted)
        if new and usable < self.wanted and not self._simulated:
            left = self.settings.node_timeout - (time.monotonic() - self._started)
            log(WARNING, "%d of %d clients can take part; waiting up to %.0f s for more", usable, self.wanted, left)

    def failure(self) -> str:
        """Say that there are too few clients, or that they do not agree, and why each of them takes no part."""
        why = (
            f"the {self.resumed} clients of the checkpoint"
            if self.wanted == self.resumed
            else f"min-nodes = {self.wanted}"
        )
        usable, waited = len(self.verdict.accepted), time.monotonic() - self._started
        reasons = [f"{who}: {reason}" for who, reason in self.reasons().values()]
        if self.verdict.ties:
            lines = "".join(f"\n  {tie}" for tie in self.verdict.ties)
            return f"the clients do not agree, and the run does not start:{lines}"
        listed = "".join(f"\n  {text}" for text in reasons[:SHOWN])
        more = f"\n  and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
        return (
            f"{usable} of {len(self._nodes)} connected nodes can take part after {waited:.0f} s, wanted {self.wanted} "
            f"({why}){':' if reasons else ''}{listed}{more}\n"
            + ("put right what stands there, " if reasons else "")
            + f"start more nodes, raise node-timeout (now {self.settings.node_timeout:g} s)"
            + ("" if self.wanted == self.resumed else ", or lower min-nodes")
        )


def claim_of(reply: Message, node: Connected, fingerprint: str) -> Claim:
    """Read a node's answer to the question who it is.

    Raises
    ------
    WireError
        The answer is an error, or not what it should be.
    """
    if reply.has_error():
        raise wire.WireError(reason_of(reply))
    told = wire.decode_announcement(reply.content, fingerprint, f"node {node.node_id}")
    return Claim(node.node_id, told, node.key, node.registered)


def rejoined(
    grid: Grid, clients: list[Client], settings: Settings, fingerprint: str, run_name: str, asked: set[int]
) -> list[Client]:
    """The same clients, with the node ids that they have now.

    Without SuperNode authentication, a node that is started again gets a new id. So when the node of a known client is
    gone, new nodes are asked who they are. A new node takes the client's place if it gives the same name and the same
    tasks, and if the name does not belong to another key; any other takes no part. If two new nodes give one name,
    neither gets it. `asked` holds the ids of new nodes that need not be asked again, and is added to.
    """
    there = connected(grid)
    gone = {client.name: client for client in clients if client.node_id not in there}
    new = sorted(set(there) - {client.node_id for client in clients} - asked)
    if not gone or not new:
        return clients
    stream = grid if isinstance(grid, StreamGrid) else StreamGrid(grid, settings.window)
    question = wire.encode_question(settings.for_clients(), run_name)
    wait = min(settings.node_timeout, settings.round_timeout)
    messages = (Message(question, node, QUESTION, ttl=wait) for node in new)
    claims = []
    for reply in stream.send_and_receive(messages, timeout=wait):
        node = stream.node_of(reply)
        try:
            claims.append(claim_of(reply, there[node], fingerprint))
        except wire.WireError as error:
            log(WARNING, "node %d takes no part: %s", node, printable(str(error).removeprefix(f"node {node}: ")))
    keys = {client.name: client.key for client in clients}
    namesakes = without_namesakes(claims, keys)
    keys_stay = rules_of(settings, there, keys_stay=any(client.registered for client in clients)).keys_stay
    back: dict[str, Claim] = {}
    for claim in sorted(claims, key=lambda claim: claim.node_id):
        name = claim.told.client
        known = gone.get(name)
        reason = namesakes.get(claim.node_id) or name_is_wrong(claim, keys.get(name, ""), keys_stay)
        # Only a known client with the same tasks may return: others would change what the run measures.
        if not reason and (known is None or (known.tasks, known.partition) != (claim.told.tasks, claim.told.partition)):
            reason = "it is new, or has other tasks than before"
        # When its namesake has gone, a node may be asked again.
        if claim.node_id not in namesakes:
            asked.add(claim.node_id)
        if reason:
            log(WARNING, "node %d (%s) takes no part: %s", claim.node_id, name, reason)
        else:
            log(WARNING, "client %s is back, as node %d", name, claim.node_id)
            back[name] = claim
    return [
        replace(client, node_id=found.node_id, key=found.key, registered=bool(found.registered))
        if (found := back.get(client.name))
        else client
        for client in clients
    ]


def reason_of(reply: Message) -> str:
    """The last line of an error reply, fit to be printed, with Flower's error code."""
    lines = (reply.error.reason or "").strip().splitlines()
    return f"{printable(lines[-1]) if lines else 'unknown error'} (code {reply.error.code})"
