"""Flower records to payloads, checked."""

from __future__ import annotations

import json

from flwr.app import RecordDict

from matu_flwr.config.settings import Scalar
from matu_flwr.merging import PayloadKind, SeparateTaskVectors, UnifiedTaskVector
from matu_flwr.wire.payloads import (
    MAX_CLASSES,
    MAX_EXAMPLES,
    MAX_NAME,
    Announcement,
    Downlink,
    Expected,
    TaskInfo,
    Uplink,
)
from matu_flwr.wire.reader import Reader, short


def decode_settings(records: RecordDict) -> tuple[dict[str, Scalar], str]:
    """Settings and the run's name in any message of the server: what a client needs before it can open the rest."""
    reader = Reader(records, Expected("server", 0, "", {}, 0))
    return reader.settings(), reader.scalar("experiment", str)


def decode_downlink(records: RecordDict, expected: Expected) -> Downlink:
    """Open and check a message from the server.

    Raises
    ------
    WireError
        Anything in the payload is not as expected.
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
    """Open and check a client's reply; masks stay packed.

    Parameters
    ----------
    records : RecordDict
        Content of the reply.
    expected : Expected
        What the server knows of this client.
    payload : {"unified", "separate", "nothing"}
        What the reply has to hold. Where that is nothing, vectors are refused too.

    Raises
    ------
    WireError
        Anything in the payload is not as expected.
    """
    reader = Reader(records, expected)
    tasks = reader.tasks()
    fingerprint = reader.fingerprint()
    num_examples = dict(zip(tasks, reader.integers("num-examples", len(tasks), 1, MAX_EXAMPLES), strict=True))
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
    return Uplink(
        round=reader.integer("round", 0, 2**31),
        fingerprint=fingerprint,
        vectors=vectors,
        num_examples=num_examples,
        heads=reader.heads(tasks),
        metrics=reader.metrics(tasks),
        seconds=reader.seconds(),
    )


def decode_announcement(records: RecordDict, fingerprint: str, who: str) -> Announcement:
    """Open and check a client's answer.

    Raises
    ------
    WireError
        Another θ_p, absurd counts, names that are no names.
    """
    reader = Reader(records, Expected(who, 0, fingerprint, {}, 0))
    reader.fingerprint()
    client = reader.scalar("client", str)
    tasks = reader.values("tasks", str)
    for name in [client, *tasks]:
        if not name or len(name) > MAX_NAME or not name.isprintable() or set(name) & set("/\\"):
            raise reader.error(f"name {short(name)}", f"1 to {MAX_NAME} printable characters without slashes")
    if not tasks or tasks != sorted(set(tasks)):
        raise reader.error(f"tasks {short(tasks)}", "at least one, each once, in the order of names")
    train = reader.integers("train", len(tasks), 1, MAX_EXAMPLES)
    test = reader.integers("test", len(tasks), 0, MAX_EXAMPLES)
    digests = {key: reader.values(key, str, len(tasks)) for key in ("heads", "data")}
    infos = {}
    for row, (task, text) in enumerate(zip(tasks, reader.values("classes", str, len(tasks)), strict=True)):
        try:
            classes = json.loads(text)
        except (ValueError, RecursionError):  # not JSON, a number of thousands of digits, thousands of brackets
            classes = None
        if (
            not isinstance(classes, list)
            or not 1 <= len(classes) <= MAX_CLASSES
            or any(type(name) is not str or not name.isprintable() for name in classes)
        ):
            raise reader.error(f"classes {short(text)} of task {task!r}", "a JSON list of class names")
        head, data = (digests[key][row] for key in ("heads", "data"))
        for digest in (head, data):
            if len(digest) > MAX_NAME or not digest.isprintable():
                raise reader.error(
                    f"digest {short(digest)} of task {task!r}", f"at most {MAX_NAME} printable characters"
                )
        infos[task] = TaskInfo(tuple(classes), train[row], test[row], head, data)
    return Announcement(client, reader.integer("partition", -1, 2**31), fingerprint, infos)
