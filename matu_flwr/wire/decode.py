"""Turns Flower records into `Downlink`, `Uplink` and `Announcement`, and checks every part of them."""

from __future__ import annotations

from flwr.app import RecordDict

from matu_flwr.config.settings import Scalar
from matu_flwr.merging import PayloadKind, SeparateTaskVectors, UnifiedTaskVector
from matu_flwr.names import CLASS_RULE, NAME_RULE, clashing, is_class_name, is_name, repeated_class
from matu_flwr.texts import short
from matu_flwr.wire.payloads import (
    MAX_CLASS_TEXT,
    MAX_CLASSES,
    MAX_DIGEST,
    MAX_EXAMPLES,
    MAX_TASKS,
    Announcement,
    Downlink,
    Expected,
    TaskInfo,
    Uplink,
)
from matu_flwr.wire.reader import Reader, json_list


def decode_settings(records: RecordDict) -> tuple[dict[str, Scalar], str]:
    """Read the settings and the name of the run in a message from the server.

    A client needs the settings first: only they say which backbone and tasks to expect in the rest of the message.

    Raises
    ------
    WireError
        One of the two is missing or not what it should be.
    """
    reader = Reader(records, Expected("server", 0, "", {}, 0))
    return reader.settings(), reader.scalar("experiment", str)


def decode_downlink(records: RecordDict, expected: Expected) -> Downlink:
    """Read and check a message from the server.

    Raises
    ------
    WireError
        Any part of the message is not as expected.
    """
    reader = Reader(records, expected)
    tasks = reader.tasks()
    return Downlink(
        round=reader.integer("round", 0, 2**31),
        fingerprint=reader.fingerprint(),
        tasks=tasks,
        vectors=reader.task_vectors(tasks),
        heads=reader.heads(tasks),
        evaluate=reader.scalar("evaluate", bool),
        settings=reader.settings(),
        run_name=reader.scalar("experiment", str),
        attempt=reader.integer("attempt", 0, 2**31),
        trained=reader.integer("trained", 0, 2**31),
    )


def decode_uplink(records: RecordDict, expected: Expected, *, payload: PayloadKind = "unified") -> Uplink:
    """Read and check a client's reply. Masks stay packed, eight bits to a byte.

    Parameters
    ----------
    records : RecordDict
        Content of the reply.
    expected : Expected
        What the server knows about this client.
    payload : {"unified", "separate", "nothing"}
        Which vectors the reply must hold. With "nothing", a reply with vectors is refused.

    Raises
    ------
    WireError
        Any part of the reply is not as expected.
    """
    reader = Reader(records, expected)
    tasks = reader.tasks()
    fingerprint = reader.fingerprint()
    num_examples = dict(zip(tasks, reader.integers("num-examples", len(tasks), 1, MAX_EXAMPLES), strict=True))
    # The number of examples is the client's weight in every mean. It may not change it after registration.
    for task, announced in (expected.examples or {}).items():
        if task in num_examples and num_examples[task] != announced:
            raise reader.error(f"{num_examples[task]} examples of task {task!r}", f"{announced}, as it announced")
    vectors = reader.task_vectors(tasks)
    if payload == "unified" and not isinstance(vectors, UnifiedTaskVector):
        raise reader.error("no record 'unified'", "an ArrayRecord with the unified vector")
    if payload == "separate" and not isinstance(vectors, SeparateTaskVectors):
        raise reader.error("no record 'vectors'", "an ArrayRecord with a vector per task")
    if payload == "nothing" and vectors is not None:
        raise reader.error("vectors", "none in this round of this method")
    if vectors is not None:
        reader.check_rebuilt(vectors)
    heads = reader.heads(tasks)
    for task, head in heads.items():
        reader.check_head(task, head)
    return Uplink(
        round=reader.integer("round", 0, 2**31),
        fingerprint=fingerprint,
        vectors=vectors,
        num_examples=num_examples,
        heads=heads,
        metrics=reader.metrics(tasks),
        seconds=reader.seconds(),
    )


def decode_announcement(records: RecordDict, fingerprint: str, who: str) -> Announcement:
    """Read and check what a client announces about itself, its answer to `encode_question`.

    Raises
    ------
    WireError
        The client has another θ_p, a count is out of range, or a name, a class list or a digest is malformed.
    """
    # The server does not know this client yet: there are no vectors, tasks or round to compare with.
    reader = Reader(records, Expected(who, 0, fingerprint, {}, 0))
    reader.fingerprint()
    client = reader.scalar("client", str)
    tasks = reader.values("tasks", str)
    if len(tasks) > MAX_TASKS:
        raise reader.error(f"{len(tasks)} tasks", f"at most {MAX_TASKS}")
    for name in [client, *tasks]:
        if not is_name(name):
            raise reader.error(f"name {short(name)}", NAME_RULE)
    if not tasks or tasks != sorted(set(tasks)):
        raise reader.error(f"tasks {short(tasks)}", "at least one task, each once, sorted by name")
    if pair := clashing(tasks):
        raise reader.error(f"tasks {short(pair[0])} and {short(pair[1])}", "names that differ by more than their case")
    train = reader.integers("train", len(tasks), 1, MAX_EXAMPLES)
    test = reader.integers("test", len(tasks), 0, MAX_EXAMPLES)
    digests = {key: reader.values(key, str, len(tasks)) for key in ("heads", "data")}
    lists = {key: reader.values(key, str, len(tasks)) for key in ("classes", "absent")}
    for key, texts in lists.items():
        if (length := sum(map(len, texts))) > MAX_CLASS_TEXT:
            raise reader.error(f"{length} characters of {key}", f"at most {MAX_CLASS_TEXT}")
    infos = {}
    for row, task in enumerate(tasks):
        classes = _classes(reader, task, lists["classes"][row])
        absent = _absent(reader, task, lists["absent"][row], len(classes))
        head, data = (digests[key][row] for key in ("heads", "data"))
        for digest in (head, data):
            if digest and not (len(digest) <= MAX_DIGEST and digest.isascii() and digest.isalnum()):
                raise reader.error(
                    f"digest {short(digest)} of task {task!r}", f"at most {MAX_DIGEST} plain letters and digits"
                )
        infos[task] = TaskInfo(classes, train[row], test[row], head, data, absent)
    return Announcement(client, reader.integer("partition", -1, 2**31), fingerprint, infos)


def _classes(reader: Reader, task: str, text: str) -> tuple[str, ...]:
    """Read a task's class names: one or more, each of them once."""
    found = json_list(text, str)
    if found is None or not 1 <= len(found) <= MAX_CLASSES:
        raise reader.error(f"classes {short(text)} of task {task!r}", "a JSON list of class names")
    for name in found:
        if not is_class_name(name):
            raise reader.error(f"class {short(name)} of task {task!r}", CLASS_RULE)
    if (twice := repeated_class(found)) is not None:
        raise reader.error(f"class {short(twice)} of task {task!r} twice", "every class once")
    return tuple(found)


def _absent(reader: Reader, task: str, text: str, count: int) -> tuple[int, ...]:
    """Read which of a task's `count` classes have no training images: positions, ascending, and not all of them."""
    found = json_list(text, int)
    if found is None or found != sorted(set(found)) or len(found) >= count or not set(found) <= set(range(count)):
        raise reader.error(
            f"absent classes {short(text)} of task {task!r}", f"a JSON list of some of 0 to {count - 1}, ascending"
        )
    return tuple(found)
