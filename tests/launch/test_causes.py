"""What logs say, and what it means."""

import pytest

from matu_flwr.launch.causes import CAUSES, cause_of, in_words

EXCERPTS = {
    "Exception: The current node timed out during startup. This could happen because some of the raylet failed to "
    "startup or the GCS has become overloaded.": "Ray, which runs the simulated clients, did not start within its 30",
    "INFO: [/v1/runtime/pull-task-input][ApiError:1008] Authentication failed.": "start so slowly that",
    "OSError: AF_UNIX path length cannot exceed 107 bytes: /scratch/x": "too long for Ray's sockets: set TMPDIR",
    "ERROR [uvicorn.error] [Errno 98] error while attempting to bind on address ('127.0.0.1', 4711): "
    "address already in use": "a port that was free a moment ago was taken",
    "OSError: [Errno 28] No space left on device": "a disk is full: make room",
    "OSError: [Errno 122] Disk quota exceeded: '/home/a'": "your disk quota is used up",
    "ValueError: ActorPool is empty. Stopping Simulation.": "lower --cpus or --gpus",
    "OSError: [Errno 24] Too many open files": "ulimit -n 65536",
    "RuntimeError: can't start new thread": "no more processes or threads may be started",
    "OSError: [Errno 12] Cannot allocate memory": "the memory is used up",
    "ModuleNotFoundError: No module named 'peft'": "needs the Python package peft, which is not installed beside /py",
}


@pytest.mark.parametrize("log", EXCERPTS)
def test_a_known_cause_is_one_sentence(log):
    text = f"INFO: begin\n{log}\nINFO: end"
    found = cause_of(text)
    assert found is not None
    words = in_words(found, text, "/py")
    assert EXCERPTS[log] in words
    assert "\n" not in words
    assert "{" not in words


def test_every_cause_has_an_excerpt():
    assert {cause_of(log) for log in EXCERPTS} == set(CAUSES)


def test_a_cause_goes_before_its_effect():
    found = cause_of("The current node timed out during startup\nOSError: [Errno 28] No space left on device")
    assert found is not None
    assert found.sentence.startswith("a disk is full")


def test_an_unknown_log_has_no_cause():
    assert cause_of("RuntimeError: told to fail\nINFO: 1008 images") is None
