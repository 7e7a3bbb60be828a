"""Known causes of a start that failed: what Flower, Ray or Python writes into a log, and what it means in words."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """What a log says, as a regular expression, and the sentence for a person. Groups of the match fill its gaps."""

    pattern: str
    sentence: str
    again: bool = False
    """Whether a second try has a chance, because the machine was only slow."""


SLOW_RAY = Cause(
    r"current node timed out during startup",
    "Ray, which runs the simulated clients, did not start within its 30 seconds: the machine is too busy, or short of "
    "memory or of room in its temporary folder; stop other work, then start the run again",
    again=True,
)
LATE = Cause(
    r"ApiError:1008",
    "the processes of the app start so slowly that Flower no longer accepts them when they are there (ApiError:1008): "
    "the machine is too busy, or its disk is too slow; stop other work, then start the run again",
)
CAUSES: tuple[Cause, ...] = (
    Cause(
        r"(?:No space left on device|Errno 28)",
        "a disk is full: make room in the output folder, in the temporary folder (TMPDIR) and in the app's folder",
    ),
    Cause(r"Disk quota exceeded", "your disk quota is used up: make room, or name an --out-dir on another disk"),
    Cause(
        r"AF_UNIX path (?:length cannot exceed|too long)",
        "the path of the temporary folder is too long for Ray's sockets: set TMPDIR to a short one, such as /tmp",
    ),
    Cause(
        r"[Aa]ddress already in use",
        "a port that was free a moment ago was taken by another program: start the run again",
        again=True,
    ),
    Cause(
        r"ActorPool is empty|Minimum resources required",
        "this machine has not the CPUs or GPUs that one client is to get: lower --cpus or --gpus",
    ),
    Cause(
        r"[Tt]oo many open files",
        "too many open files: raise the limit (ulimit -n 65536), or let fewer clients run at once (--cpus)",
    ),
    Cause(
        r"can't start new thread|Resource temporarily unavailable|fork: retry",
        "no more processes or threads may be started: raise the limit (ulimit -u, or that of the container), or let "
        "fewer clients run at once (--cpus)",
    ),
    Cause(
        r"Cannot allocate memory|MemoryError|std::bad_alloc|OutOfMemoryError",
        "the memory is used up: let fewer clients run at once (--cpus), or take a smaller backbone",
    ),
    Cause(
        r"ModuleNotFoundError: No module named '([^']+)'",
        "the app needs the Python package {0}, which is not installed beside {python}: install it there",
    ),
    # After the others: these two are the effect where one of them is the cause.
    SLOW_RAY,
    LATE,
)


def cause_of(text: str) -> Cause | None:
    """Return the first known cause that a log shows; None if it shows none."""
    return next((cause for cause in CAUSES if re.search(cause.pattern, text)), None)


def in_words(cause: Cause, text: str, python: str) -> str:
    """Return a cause's sentence, filled with what the log says. `python` is the interpreter in use."""
    found = re.search(cause.pattern, text)
    return cause.sentence.format(*(found.groups() if found else ()), python=python)
