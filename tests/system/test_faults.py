"""What real life does to a run, done to real processes of this machine; docs/when-things-go-wrong.md has the table.

Most of it takes minutes, because Flower takes a minute to give a dead node up: `pytest -m slow` runs these.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from matu_flwr.cli import app as matu
from matu_flwr.launch.flower import LaunchError
from matu_flwr.launch.launcher import run_app
from matu_flwr.launch.processes import processes
from matu_flwr.models.artefacts import read_task_vector
from matu_flwr.run.checkpoint import CheckpointError, checkpoints, find_checkpoint, read_checkpoint
from matu_flwr.run.history import HistoryError, read_history
from matu_flwr.run.recorder import is_going_on
from tests.support.deployment import APP, Deployment, ended, events, finished, kill_process
from tests.support.federation import tiny_values
from tests.support.whole_run import run

pytestmark = pytest.mark.system

ROUND_TIMEOUT = 100.0  # seconds; Flower finds a killed ClientApp after 68
TASKS = ("dots", "gratings", "squares", "stripes")


def values(folder: Path, **others) -> dict:
    """Settings of a run on real nodes; clients keep something of their own."""
    own = {"matu__error_feedback": True, "round_timeout": ROUND_TIMEOUT, "node_timeout": 240.0}
    told = tiny_values(folder, server_evaluate=False, evaluate_every=100, **own | others)
    return told | {"out-dir": str(folder / "out")}


def outcome(out_dir: Path, round_: int) -> dict[str, tuple[str, str]]:
    """Status and reason by client."""
    found = [e for e in events(out_dir) if e["event"] == "client" and e["round"] == round_ and e["phase"] == "train"]
    return {e["client"]: (e["status"], e["error"] or "") for e in found}


def assert_only_client_2_failed(out_dir: Path, round_: int, reason: str) -> None:
    """The others' work of the round counted, the round ended, and the reason is there for the user."""
    found = outcome(out_dir, round_)
    assert [found[f"client-00{i}"][0] for i in range(3)] == ["ok", "ok", "failed"]
    assert re.search(reason, found["client-002"][1]), found
    (done,) = [e for e in events(out_dir) if e["event"] == "round" and e["round"] == round_]
    assert (done["clients"], done["failed"]) == (3, 1)


# --- a client, a node, `flwr stop`: one federation of three, one fault a round ---------------------------------------


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    with Deployment(tmp_path_factory.mktemp("faults"), 3) as found:
        yield found


@pytest.fixture(scope="module")
def faulty(deployed):
    """Output folder of a run in which client 2 fails in every way, and how long it took to get over it, in seconds."""
    took: dict[str, float] = {}
    # Two replies are enough for a round. All three take part, because all are there when the run starts.
    told = values(deployed.folder / "run-1", rounds=8, min_nodes=2)
    deployed.wait_for(lambda: deployed.online() == 3, "three nodes")
    out_dir = Path(told["out-dir"])
    for round_, what in ((2, "raise"), (3, "900"), (4, str(ROUND_TIMEOUT + 20)), (6, "900")):
        deployed.order(2, round_, what)
    deployed.submit(told)
    os.kill(deployed.at_fault(2, 3), signal.SIGKILL)
    took["client killed, until the round is over"] = deployed.wait_for(lambda: finished(out_dir, 3), "round 3")
    deployed.at_fault(2, 4)
    took["client hangs, until the round is over"] = deployed.wait_for(lambda: finished(out_dir, 4), "round 4")
    took["until a hanging client is back"] = deployed.wait_for(lambda: finished(out_dir, 5), "round 5")
    orphan = deployed.at_fault(2, 6)
    deployed.kill("supernode-2")
    kill_process(orphan)
    deployed.start_node(2)
    took["node killed, until the round is over"] = deployed.wait_for(lambda: finished(out_dir, 6), "round 6")
    took["until a node that was started anew has trained"] = deployed.wait_for(lambda: finished(out_dir, 7), "round 7")
    deployed.wait_for(lambda: ended(out_dir), "the end")
    for what, seconds in took.items():
        print(f"{what}: {seconds:.0f} s")  # the table in docs/when-things-go-wrong.md is written from it
    return out_dir


@pytest.mark.slow
def test_a_client_that_raises(faulty):
    assert_only_client_2_failed(faulty, 2, r"told to fail|code 2")


@pytest.mark.slow
def test_a_client_that_is_killed(faulty):
    assert_only_client_2_failed(faulty, 3, r"ClientApp stopped responding\. \(code 8\)")


@pytest.mark.slow
def test_a_client_that_hangs_and_comes_back(faulty):
    assert_only_client_2_failed(faulty, 4, r"no reply within 100 s|Message unavailable|expired")
    assert {status for status, _ in outcome(faulty, 5).values()} == {"ok"}


@pytest.mark.slow
def test_a_node_that_is_killed_and_started_again(faulty):
    """It has another id now, as nodes without authentication have, and is known by its name."""
    assert_only_client_2_failed(faulty, 6, r"code 5|no reply within")
    assert {status for status, _ in outcome(faulty, 7).values()} == {"ok"}


@pytest.mark.slow
def test_after_all_that_the_run_has_completed(faulty):
    assert events(faulty)[-1]["status"] == "completed", events(faulty)[-1]["error"]
    assert [read_task_vector(faulty, task).isfinite().all().item() for task in TASKS] == [True] * 4


@pytest.mark.slow
def test_flwr_stop_and_resume(deployed):
    """The same federation, stopped in round 2, goes on as if nothing had been."""
    told = values(deployed.folder / "run-2", rounds=2, min_nodes=3)
    whole = deployed.folder / "whole"
    run(whole, told | {"state-dir": str(deployed.folder / "whole-state")})
    out_dir = Path(told["out-dir"])
    deployed.order(1, 2, "20")
    run_id = deployed.submit(told)
    deployed.at_fault(1, 2)
    stopped = time.monotonic()
    assert deployed.flwr("stop", run_id, "here")["success"]
    deployed.wait_for(lambda: deployed.status(run_id) == "finished:stopped", "the stop")
    deployed.wait_for(lambda: not is_going_on(out_dir), "the end of the ServerApp")  # Flower says stopped before it is
    said = CliRunner().invoke(matu, ["status", str(out_dir)]).output
    # Flower interrupts the ServerApp and kills it soon after: it mostly has the time for a last word.
    assert "stopped from outside (SystemExit)" in said or "cut off; go on with it" in said
    assert "checkpoint  round 1 of 2" in said
    deployed.submit({"resume-from": str(out_dir)})
    deployed.wait_for(lambda: any(e["event"] == "resume" for e in events(out_dir)), "the resumed run")
    deployed.wait_for(lambda: ended(out_dir), "the end")
    print(f"stopped in round 2 of 2, until the end: {time.monotonic() - stopped:.0f} s")
    assert events(out_dir)[-1]["status"] == "completed", events(out_dir)[-1]["error"]
    for task in TASKS:
        assert torch.equal(read_task_vector(out_dir, task), read_task_vector(whole, task))


@pytest.mark.slow
def test_status_of_a_superlink(deployed, faulty, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", deployed.environment["FLWR_HOME"])
    said = CliRunner().invoke(matu, ["status", "--superlink", "here"]).output
    assert "nodes of here" in said
    assert said.count("online") >= 3
    assert "finished:completed" in said


# --- the SuperLink ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_superlink_that_is_killed_and_started_again(tmp_path):
    """In process isolation with a database ServerApp and clients live on, and the run completes."""
    with Deployment(tmp_path / "federation", 2, "process") as deployed:
        told = values(tmp_path / "run", rounds=3, min_nodes=2)
        out_dir = Path(told["out-dir"])
        deployed.order(1, 2, "15")
        deployed.submit(told)
        deployed.at_fault(1, 2)
        deployed.kill("superlink")
        time.sleep(4)
        deployed.start_superlink()
        seconds = deployed.wait_for(lambda: finished(out_dir, 2), "round 2")
        print(f"superlink killed and back after 4 s, until the round is over: {seconds:.0f} s")
        deployed.wait_for(lambda: ended(out_dir), "the end")
    assert events(out_dir)[-1]["status"] == "completed", events(out_dir)[-1]["error"]
    for round_ in (1, 2, 3):
        assert {status for status, _ in outcome(out_dir, round_).values()} == {"ok"}


# --- the disk --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 128 MB: a run of three rounds needs less than half of it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("mounting a small file system needs root and Linux")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", folder], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.decode()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_disk_that_is_full(tmp_path, small_disk):
    """The run ends with a clear reason, the checkpoint before it is whole, and with room again it goes on."""
    whole = tiny_values(tmp_path, rounds=3, server_evaluate=False, matu__error_feedback=True)
    run(tmp_path / "whole", whole | {"state-dir": str(tmp_path / "state-1")})
    out_dir, filler = small_disk / "out", small_disk / "filler"
    told = whole | {"state-dir": str(tmp_path / "state-2")}
    filling = threading.Event()

    def fill(reply, config):
        """Others fill the disk in round 2."""
        if finished(out_dir, 1) and not filling.is_set():
            filling.set()
            free = shutil.disk_usage(small_disk).free
            filler.write_bytes(b"\0" * max(free - 200_000, 0))  # room for events, none for a checkpoint
        return reply

    with pytest.raises(
        CheckpointError, match=r"^the checkpoint of round 2 cannot be written to .*; make room there, then resume from "
    ):
        run(out_dir, told, run_id=2, tamper=fill)
    assert read_checkpoint(checkpoints(out_dir)[0]).round == 1
    end = read_history(out_dir / "history.jsonl")[-1]
    assert end["status"] == "failed"
    assert end["error"].startswith("the checkpoint of round 2 cannot be written")
    filler.unlink()
    run(out_dir, {"resume-from": str(out_dir)}, run_id=3)
    for task in TASKS:
        assert torch.equal(read_task_vector(out_dir, task), read_task_vector(tmp_path / "whole", task))


def test_a_disk_without_room_for_an_event(tmp_path, small_disk):
    told = tiny_values(tmp_path, rounds=2, server_evaluate=False)
    out_dir, filler = small_disk / "out", small_disk / "filler"

    def fill(reply, config):
        if finished(out_dir, 1) and not filler.exists():
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(b"\0" * 4096):
                    pass
        return reply

    with pytest.raises(HistoryError, match=r"history\.jsonl cannot be written: \[Errno 28\] No space left on device"):
        run(out_dir, told, tamper=fill)
    assert read_history(out_dir / "history.jsonl")[-1]["event"] != "end"
    assert find_checkpoint(out_dir)[1].round == 1


# --- a simulation actor ----------------------------------------------------------------------------------------------


def actors() -> list[int]:
    """Ray's processes for the clients of the simulation that this process has launched."""
    everything = processes()
    below = {os.getpid()}
    while found := {p.pid for p in everything if p.parent in below} - below:
        below |= found
    named = []
    for pid in sorted(below):
        with contextlib.suppress(OSError):  # ended meanwhile
            if b"ClientAppActor" in Path(f"/proc/{pid}/cmdline").read_bytes():
                named.append(pid)
    return named


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the process by /proc")
def test_a_simulation_actor_that_is_killed(tmp_path):
    """Flower gives the dead actor out again and again: the run ends, and says why, instead of going on with few."""
    told = tiny_values(tmp_path, rounds=6, server_evaluate=False, evaluate_every=100)
    out_dir, home = tmp_path / "out", tmp_path / "flower"
    told["state-dir"] = str(tmp_path / "state")
    over = threading.Event()
    killed: list[float] = []

    def kill_one() -> None:
        while not over.is_set():
            if finished(out_dir, 1) and (there := actors()):
                os.kill(there[0], signal.SIGKILL)
                killed.append(time.monotonic())
                return
            time.sleep(0.05)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with (tmp_path / "screen.txt").open("w") as screen:
        console = Console(file=screen, width=120)
        with pytest.raises(LaunchError) as failure:
            run_app(APP, out_dir, run_config=told, num_nodes=6, home=home, console=console)
        over.set()
        killer.join()
        print(f"actor killed, until the run has ended: {time.monotonic() - killed[0]:.0f} s")
        assert re.search(
            r"the run failed: round \d: \d of 6 clients failed, more than max-failed-fraction", str(failure.value)
        )
        assert "The actor is dead because its worker process has died" in str(failure.value)
        last = read_checkpoint(checkpoints(out_dir)[0]).round
        assert last >= 1
        run_app(APP, out_dir, run_config={"resume-from": str(out_dir)}, num_nodes=6, home=home, console=console)
    end = read_history(out_dir / "history.jsonl")[-1]
    assert end["status"] == "completed", end["error"]


# --- clocks ----------------------------------------------------------------------------------------------------------

CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
#include <sys/time.h>
static long skew(void) { const char *text = getenv("CLOCK_SKEW"); return text ? atol(text) : 0; }
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, now);
    if (!status && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += skew();
    return status;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec time;
    int status = clock_gettime(CLOCK_REALTIME, &time);
    now->tv_sec = time.tv_sec; now->tv_usec = time.tv_nsec / 1000;
    return status;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"""


@pytest.fixture(scope="module")
def skewed_clock(tmp_path_factory):
    """A library that, loaded before all others, moves a process's wall clock by CLOCK_SKEW seconds."""
    if (compiler := shutil.which("cc")) is None or sys.platform != "linux":
        pytest.skip("a clock is moved by a small C library; there is no compiler here, or no Linux")
    folder = tmp_path_factory.mktemp("clock")
    (folder / "clock.c").write_text(CLOCK)
    library = folder / "clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, folder / "clock.c", "-ldl"], check=True)
    return library


def test_the_clock_is_moved(skewed_clock):
    """So that the test below tests something."""
    environment = os.environ | {"LD_PRELOAD": str(skewed_clock), "CLOCK_SKEW": "7200"}
    code = "import time, datetime; print(time.time(), datetime.datetime.now(datetime.UTC).timestamp())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    for found in map(float, done.stdout.split()):
        assert 7000 < found - time.time() < 7400


# Seconds, by partition. Flower takes a node's clock up to 5 s ahead and 305 s behind; the round timeout, which is about
# a message's ttl, is 100.
SKEWS = (0, -200, 2)
TOO_MUCH = (20, -7200)


@pytest.mark.slow
def test_nodes_whose_clocks_are_wrong(tmp_path, skewed_clock):
    """A node is refused at the door or trains as any other: nothing is lost in between."""
    with Deployment(tmp_path / "federation", 0) as deployed:
        skews = SKEWS + TOO_MUCH
        deployed.nodes, deployed.node_ports = len(skews), deployed.free_ports(len(skews))
        for partition, skew in enumerate(skews):
            deployed.start_node(partition, LD_PRELOAD=str(skewed_clock), CLOCK_SKEW=str(skew))
        for partition in range(len(SKEWS), len(skews)):
            process = deployed.running[f"supernode-{partition}"]
            deployed.wait_for(lambda process=process: process.poll() is not None, "the refusal")
        assert (tmp_path / "federation" / "superlink.log").read_text().count('register-node HTTP/1.1" 401') >= 2
        told = values(tmp_path / "run", rounds=2, min_nodes=len(SKEWS))
        out_dir = Path(told["out-dir"])
        deployed.submit(told)
        deployed.wait_for(lambda: ended(out_dir), "the end")
    assert events(out_dir)[-1]["status"] == "completed", events(out_dir)[-1]["error"]
    for round_ in (1, 2):
        assert outcome(out_dir, round_) == {f"client-00{i}": ("ok", "") for i in range(len(SKEWS))}
