"""The lazy, windowed grid: bounded flight, replies one by one, nothing lost in silence."""

import itertools

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from hypothesis import given
from hypothesis import strategies as st

from matu_flwr.strategies import StreamGrid
from tests.support.laws import examples
from tests.support.local_grid import remade, set_task_identity


class SlowGrid(Grid):
    """Answers a message after `delays[i]` looks at the in-box; None is never; "refused" takes no message."""

    def __init__(self, delays):
        set_task_identity()
        self.delays, self.number = delays, itertools.count()
        self.waiting, self.most = {}, 0
        self.asked_ids = []

    def set_run(self, run):
        self.run_set = run

    @property
    def run(self):
        return "the run"

    def create_message(self, *args, **kwargs):
        return "legacy"

    def get_node_ids(self):
        return [1, 2]

    def get_nodes(self):
        return ["nodes"]

    def push_messages(self, messages):
        assert isinstance(messages, list), "Flower's HTTP grid iterates twice: no generators"
        ids = []
        for message in messages:
            i = next(self.number)
            if self.delays[i] == "refused":
                ids.append("")
                continue
            message.metadata.__dict__["_message_id"] = str(i)
            self.waiting[str(i)] = [self.delays[i], message]
            ids.append(str(i))
        self.most = max(self.most, len(self.waiting))
        return ids

    def pull_messages(self, message_ids):
        self.asked_ids.append(len(list(message_ids)))
        found = []
        for identifier in message_ids:
            entry = self.waiting[identifier]
            if entry[0] is not None:
                entry[0] -= 1
                if entry[0] < 0:
                    found.append(Message(RecordDict(), reply_to=self.waiting.pop(identifier)[1]))
        return found

    def send_and_receive(self, messages, *, timeout=None):
        raise AssertionError("not used")


def message(node):
    set_task_identity()
    return Message(RecordDict({"c": ConfigRecord({"x": 1})}), node, "train")


@examples(25)  # an empty in-box is waited for
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 5))
def test_every_reply_comes_once_and_the_window_holds(delays, window):
    inner = SlowGrid(delays)
    stream = StreamGrid(inner, window)
    built = []

    def messages():
        for node in range(len(delays)):
            built.append(node)
            yield message(node + 100)

    seen = []
    for reply in stream.send_and_receive(messages()):
        assert len(built) <= len(seen) + window, "a payload is built only when the window has room"
        seen.append(stream.node_of(reply))
    assert sorted(seen) == [node + 100 for node in range(len(delays))]
    assert inner.most <= window
    assert set(inner.asked_ids) == {1}, "one id a call: several would be held at once"
    assert stream.lost == {}


def test_nothing_is_sent_before_somebody_asks():
    inner = SlowGrid([0])
    StreamGrid(inner, 2).send_and_receive([message(1)])
    assert inner.waiting == {}


def test_refused_and_timed_out_messages_are_named_by_node():
    inner = SlowGrid([0, "refused", None, 0])
    stream = StreamGrid(inner, 2)
    seen = [stream.node_of(reply) for reply in stream.send_and_receive(map(message, (7, 8, 9, 10)), timeout=0.2)]
    assert sorted(seen) == [7, 10]
    assert stream.lost == {8: "the message was refused; the node may have left", 9: "no reply within 0.2 s"}


class Forging(SlowGrid):
    """The replies of node 8 come out of `forge`."""

    def __init__(self, count, forge):
        super().__init__([0] * count)
        self.forge = forge

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        return [self.forge(reply) if reply.metadata.src_node_id == 8 else reply for reply in replies]


def odd_records(reply):
    """A ConfigRecord in the place of the RecordDict."""
    reply.__dict__["_content"] = ConfigRecord({"x": 1})
    return reply


def empty(reply):
    reply.__dict__["_content"] = None
    return reply


@pytest.mark.parametrize(
    ("forge", "said"),
    [
        (lambda reply: remade(reply, "RecordDict", lambda content: content + b"\xff"), "UnicodeDecodeError"),
        (lambda reply: remade(reply, "RecordDict", lambda content: content + b"["), "JSONDecodeError"),
        (lambda reply: remade(reply, "RecordDict", lambda content: b"Unknown" + content[10:]), "KeyError"),
        (lambda reply: remade(reply, "Message", lambda content: content + b"\xff"), "DecodeError"),
        (odd_records, "TypeError: its content is of type ConfigRecord"),
        (empty, "ValueError"),
    ],
)
def test_a_reply_that_is_no_message_is_its_sender_s_loss_alone(forge, said):
    stream = StreamGrid(Forging(3, forge), 2)
    seen = [stream.node_of(reply) for reply in stream.send_and_receive(map(message, (7, 8, 9)), timeout=5)]
    assert sorted(seen) == [7, 9]
    assert list(stream.lost) == [8]
    assert stream.lost[8].startswith(f"its reply cannot be read ({said}")
    assert stream.lost[8].isprintable()


def test_a_reply_comes_from_the_node_that_was_asked_whatever_it_says():
    def impersonate(reply):
        reply.metadata.__dict__["_src_node_id"] = 7
        reply.metadata.__dict__["_reply_to_message_id"] = "0"
        return reply

    stream = StreamGrid(Forging(2, impersonate), 2)
    assert [stream.node_of(reply) for reply in stream.send_and_receive(map(message, (7, 8)))] == [7, 8]


def test_the_network_is_nobody_s_fault():
    def broken(reply):
        raise ConnectionError("no route to host")

    with pytest.raises(ConnectionError):
        list(StreamGrid(Forging(1, broken), 2).send_and_receive([message(8)]))


def test_the_rest_is_the_inner_grids():
    inner = SlowGrid([0])
    stream = StreamGrid(inner, 1)
    stream.set_run("r")
    assert inner.run_set == "r"
    assert (stream.run, stream.create_message(), list(stream.get_node_ids())) == ("the run", "legacy", [1, 2])
    assert stream.get_nodes() == ["nodes"]
    assert list(stream.push_messages(iter([message(5)]))) == ["0"]
    assert len(list(stream.pull_messages(["0"]))) == 1
