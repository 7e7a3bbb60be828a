"""A Grid that calls the ClientApp in this process: strategy and client code together, without Ray or a SuperLink.

The Flower internals that this needs (Run, NodeInfo, TaskIdentity, message ids, the inflatable helpers) are used here
only.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import HEARTBEAT_INTERVAL_INF
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity


def set_task_identity() -> None:
    """What a Flower process does before it makes messages."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


class LocalGrid(Grid):
    """Simulates `len(node_configs)` nodes; `wire` sends every message through Flower's own serialiser.

    `tamper(reply, node_config)` may change a client's reply, or return None to lose it. `refused` nodes take no
    message. `typed` are the run-config values that a person typed. `known` may say more of some nodes, by id, as
    fields of Flower's NodeInfo. `simulated`: nodes have Flower's endless heartbeat, as those of a simulation.
    """

    def __init__(
        self,
        client_app: ClientApp,
        node_configs: list[dict],
        *,
        wire: bool = False,
        tamper: Callable[[Message, dict], Message | None] | None = None,
        node_ids: list[int] | None = None,
        refused: frozenset[int] = frozenset(),
        run_id: int = 1,
        typed: dict | None = None,
        known: dict[int, dict] | None = None,
        simulated: bool = True,
    ) -> None:
        set_task_identity()
        self._run = replace(Run.create_empty(run_id), override_config=typed or {})
        self.app, self.wire, self.tamper, self.refused = client_app, wire, tamper, refused
        ids = node_ids or [1000 + i for i in range(len(node_configs))]
        self.contexts = {
            node: Context(run_id, node, dict(config), RecordDict(), {})
            for node, config in zip(ids, node_configs, strict=True)
        }
        self.known, self.simulated = known or {}, simulated
        self.replies: dict[str, Message] = {}
        self.most_waiting = 0
        self.seen: list[Message] = []

    def set_run(self, run):
        pass

    @property
    def run(self):
        return self._run

    def create_message(self, *args, **kwargs):
        raise AssertionError("legacy call")

    def get_node_ids(self):
        return list(self.contexts)

    def get_nodes(self):
        interval = HEARTBEAT_INTERVAL_INF if self.simulated else 30.0
        return [
            NodeInfo(**{"node_id": i, "heartbeat_interval": interval} | self.known.get(i, {})) for i in self.contexts
        ]

    def push_messages(self, messages: Iterable[Message]):
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            if node in self.refused or node not in self.contexts:
                ids.append("")
                continue
            identifier = str(uuid4())
            message.metadata.__dict__["_message_id"] = identifier
            if self.wire:
                message = through_the_wire(message, identifier)
            context = self.contexts[node]
            try:
                reply = self.app(message, context)
            except Exception as error:  # what a SuperNode does
                reply = Message(Error(2, f"{type(error).__name__}: {error}"), reply_to=message)
            if self.tamper is not None:
                reply = self.tamper(reply, context.node_config)
            if reply is not None:
                self.replies[identifier] = through_the_wire(reply, "") if self.wire else reply
            ids.append(identifier)
        self.most_waiting = max(self.most_waiting, len(self.replies))
        return ids

    def pull_messages(self, message_ids):
        return [self.replies.pop(identifier) for identifier in list(message_ids) if identifier in self.replies]

    def send_and_receive(self, messages, *, timeout=None):
        return self.pull_messages(self.push_messages(messages))


def through_the_wire(message: Message, identifier: str) -> Message:
    """Deflate and inflate a message as Flower's transport does."""
    parts = {key: part.deflate() for key, part in get_all_nested_objects(message).items()}
    copy = inflate_object_from_contents(message.object_id, parts)
    copy.metadata.__dict__["_message_id"] = identifier
    return copy


def remade(reply: Message, name: str, change: Callable[[bytes], bytes]) -> Message:
    """The reply as Flower builds it where its sender wrote other bytes into the part of this class."""
    parts = {key: part.deflate() for key, part in get_all_nested_objects(reply).items()}
    for key, content in parts.items():
        if content.startswith(name.encode()):
            parts[key] = change(content)
    return inflate_object_from_contents(reply.object_id, parts)
