"""Flower's SuperLink with more patience: `python superlink.py ARGUMENTS` is `flower-superlink ARGUMENTS`.

Flower gives the process of an app 30 seconds from its start to its first word, and its token is good for that long. On
a busy machine Python alone may need longer to import Flower and Ray. The process is then refused (ApiError:1008),
another one is started, which is refused too, and so on for ever. Flower has no option for the time.

This file runs as a script and imports nothing of this package, which may not be importable where Flower runs.
"""

from __future__ import annotations

import sys
from types import ModuleType

FIRST_WORD = 600
"""Seconds that a process gets until its first word; Flower's own are 30."""
SIGN_OF_LIFE = 120
"""Seconds without a sign of life after which a process counts as dead; Flower's own are 60."""


def wait_longer(state: ModuleType) -> bool:
    """Set the times of the module that keeps Flower's tokens. False if it has no such names: then they stay."""
    if not (hasattr(state, "HEARTBEAT_DEFAULT_INTERVAL") and hasattr(state, "HEARTBEAT_PATIENCE")):
        return False
    # The first word must come within the interval, each later sign of life within PATIENCE intervals. A ModuleType has
    # no such names for the type checker; they were looked for above.
    state.HEARTBEAT_DEFAULT_INTERVAL = FIRST_WORD  # type: ignore[attr-defined]
    state.HEARTBEAT_PATIENCE = SIGN_OF_LIFE / FIRST_WORD  # type: ignore[attr-defined]
    return True


def main() -> None:
    """Set the times, and become the SuperLink."""
    from flwr.supercore.corestate import in_memory_corestate
    from flwr.superlink.cli import flower_superlink

    if not wait_longer(in_memory_corestate):
        print("this Flower keeps its time limits elsewhere: its processes get 30 s to start", file=sys.stderr)
    flower_superlink()


if __name__ == "__main__":
    main()
