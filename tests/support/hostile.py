"""Clients that send what they should not: well-formed replies with flipped signs or blown up, and one with NaN."""

from collections.abc import Callable, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, Message

Attack = Callable[[np.ndarray], np.ndarray]
AS_FLOATS = {"wire__vector_dtype": "float32", "wire__compression": "none"}  # so that an attack can calculate with them


def flip(values: np.ndarray) -> np.ndarray:
    """The opposite of what was learned, five times over."""
    return -5 * values


def scale(values: np.ndarray) -> np.ndarray:
    """A thousand times what was learned."""
    return 1000 * values


def nan(values: np.ndarray) -> np.ndarray:
    """One value that is no number."""
    changed = values.copy()
    changed.flat[0] = np.nan
    return changed


def hostile(attacks: Mapping[int, Attack], *, silent: bool = False) -> Callable[[Message, dict], Message | None]:
    """A `tamper` of `LocalGrid`: changes vectors and heads of some partitions' training replies.

    `silent`: these clients' training replies come empty instead, and are refused: the run that an attack is compared
    with.
    """

    def tamper(reply: Message, node_config: dict) -> Message | None:
        attack = attacks.get(node_config["partition-id"])
        if attack is None or reply.has_error() or not {"unified", "vectors"} & reply.content.keys():
            return reply
        if silent:
            for kind in list(reply.content):
                del reply.content[kind]
            return reply
        for kind in ("unified", "vectors", "heads"):
            if kind in reply.content:
                record = reply.content[kind]
                reply.content[kind] = ArrayRecord({name: Array(attack(a.numpy())) for name, a in record.items()})
        return reply

    return tamper
