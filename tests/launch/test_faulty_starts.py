"""Starts that go wrong, with commands in the place of Flower's that do as they are told."""

import io
import json
import os
import signal
import stat
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from matu_flwr.launch import flower, launcher
from matu_flwr.launch.flower import LaunchError
from matu_flwr.launch.launcher import claimed, run_app
from matu_flwr.launch.processes import processes
from tests.support.running import running_with

# Both read what to do from a folder of files, and write there what they were asked.
SUPERLINK = """
import os, socket, sys, time
from pathlib import Path
told = Path(os.environ["TOLD"])
starts = sorted((told / "superlink").iterdir())
first = starts[0].read_text()
if len(starts) > 1:
    starts[0].unlink()
if first == "port taken":
    sys.exit("[Errno 98] error while attempting to bind on address: address already in use")
if first == "broken":
    sys.exit("a fault that nobody knows")
port = int(sys.argv[sys.argv.index("--port") + 1])
with socket.create_server(("127.0.0.1", port)):
    print("Uvicorn running on", port, flush=True)
    print(first, flush=True)
    until = time.time() + (0.5 if first == "dies" else 60)
    while time.time() < until:
        time.sleep(0.05)
"""
FLWR = """
#!{python}
import json, os, sys, tomllib
from pathlib import Path
told = Path(os.environ["TOLD"])
home = Path(os.environ["FLWR_HOME"])
with (told / "asked").open("a") as file:
    config = tomllib.loads((home / "config.toml").read_text())
    file.write(json.dumps([sys.argv[1:], config, str(home), os.getcwd()]) + chr(10))
if sys.argv[1] == "run":
    tries = sorted((told / "runs").iterdir())
    told_now = json.loads(tries[0].read_text())
    if len(tries) > 1:
        tries[0].unlink()
    (told / "now").write_text(json.dumps(told_now))
    config = tomllib.loads(Path(sys.argv[sys.argv.index("--run-config") + 1]).read_text())
    history = Path(config["out-dir"], "history.jsonl")
    if told_now.get("history") is not None:
        with history.open("x") as file:
            file.writelines(json.dumps(event) + chr(10) for event in told_now["history"])
    print(json.dumps({{"success": True, "run-id": "7"}}))
now = json.loads((told / "now").read_text())
if sys.argv[1] == "list":
    print(json.dumps({{"success": True, "runs": [{{"status": now["status"], "status-details": now["details"]}}]}}))
if sys.argv[1] == "log":
    print(now.get("log", ""))
"""
END = {
    **{"event": "end", "time": "", "status": "completed", "error": None, "seconds": 1.0, "peak_memory_bytes": 1000},
    **{"artefacts": {}, "similarity": None, "related": {}},
}
COMPLETED = {"history": [END], "status": "finished:completed", "details": ""}
RAY = {
    "history": [],
    "status": "finished:failed",
    "details": "Simulation failed with exception: The current node timed out during startup.",
}


class Told:
    """What the commands are told to do, and a run with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "told"
        self.app, self.out = folder / "app", folder / "out"
        for name in ("superlink", "runs"):
            (self.folder / name).mkdir(parents=True)
        self.app.mkdir()
        (self.app / "pyproject.toml").write_text("")

    def run(self, *runs: dict, superlinks: tuple[str, ...] = ("good",)) -> str:
        for number, run in enumerate(runs):
            (self.folder / "runs" / str(number)).write_text(json.dumps(run))
        for number, superlink in enumerate(superlinks):
            (self.folder / "superlink" / str(number)).write_text(superlink)
        screen = io.StringIO()
        try:
            run_app(self.app, self.out, run_config={}, num_nodes=2, console=Console(file=screen, width=300))
        except LaunchError as error:
            screen.write(f"error: {error}\n")
        home = self.asked()[0][2] if (self.folder / "asked").exists() else ""
        assert not [p.name for p in (self.app / ".flwr").glob("run-*")]
        assert not home or not running_with("FLWR_HOME", home)
        return screen.getvalue()

    def asked(self) -> list:
        return [json.loads(line) for line in (self.folder / "asked").read_text().splitlines()]


@pytest.fixture
def told(tmp_path, monkeypatch):
    found = Told(tmp_path)
    place = tmp_path / "bin"
    place.mkdir()
    python = place / "python"
    python.symlink_to(os.path.realpath(sys.executable))
    (place / "superlink.py").write_text(SUPERLINK)
    for name in ("flwr", "flower-superexec", "flwr-simulation"):
        (place / name).write_text(FLWR.format(python=python).lstrip())
        (place / name).chmod(0o755)
    monkeypatch.setenv("TOLD", str(found.folder))
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(
        flower, "superlink_command", lambda port: [str(python), str(place / "superlink.py"), "--port", str(port)]
    )
    for name in ("POLL_AT_START", "POLL_IN_SILENCE"):
        monkeypatch.setattr(launcher, name, 0.1)
    return found


def test_a_run_completes_and_leaves_only_its_results(told):
    assert "completed in 1 s" in told.run(COMPLETED)
    assert sorted(path.name for path in told.out.iterdir() if path.name[0] != ".") == [
        *("flower.log", "history.jsonl", "launch.json", "run-config.toml", "superlink.log")
    ]
    assert not Path(told.asked()[0][2]).exists()


def test_no_question_can_start_a_superlink(told):
    told.run(COMPLETED)
    for words, config, home, here in told.asked():
        # A distant SuperLink: Flower starts only those whose address is ":local:".
        connection = config["superlink"][config["superlink"]["default"]]
        assert connection["address"].startswith("127.0.0.1:"), words
        assert connection["insecure"] is True
        assert here == home


def test_flower_starts_no_superlink_for_such_an_address(monkeypatch):
    from flwr.cli import local_superlink
    from flwr.cli.typing import SuperLinkConnection

    monkeypatch.setattr(local_superlink, "_start_local_superlink", lambda *_: pytest.fail("started one"))
    connection = SuperLinkConnection(name="this-run", address="127.0.0.1:1", insecure=True)
    assert local_superlink.ensure_local_superlink(connection).address == "127.0.0.1:1"


def test_a_taken_port_is_replaced_by_another(told):
    assert "completed" in told.run(COMPLETED, superlinks=("port taken", "port taken", "good"))


def test_ports_that_are_always_taken_end_the_start_with_the_cause(told):
    text = told.run(COMPLETED, superlinks=("port taken",))
    assert "error: a port that was free a moment ago was taken by another program" in text
    assert len(text.splitlines()) == 1


def test_a_superlink_that_does_not_start_is_shown_with_its_last_lines(told):
    text = told.run(COMPLETED, superlinks=("broken",))
    assert "error: flower-superlink ended with 1" in text
    assert "a fault that nobody knows" in text


def test_somebody_else_at_the_port_is_not_taken_for_our_superlink(told, monkeypatch):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as other:
        ports = iter([other.getsockname()[1]])
        free = flower.free_port
        monkeypatch.setattr(flower, "free_port", lambda: next(ports, 0) or free())
        assert "completed" in told.run(COMPLETED, superlinks=("port taken", "good"))


def test_a_slow_ray_gets_another_try(told):
    text = told.run(RAY, COMPLETED)
    assert "Ray, which runs the simulated clients, did not start" in text
    assert "(trying again, 2 of 3)" in text
    assert "completed in 1 s" in text
    assert "error" not in text


def test_a_ray_that_never_starts_ends_the_run_with_the_cause(told):
    text = told.run(RAY)
    assert text.splitlines()[-1].startswith("error: Ray, which runs the simulated clients, did not start within its 30")
    assert "its log is" in text.splitlines()[-1]


def test_a_run_that_got_as_far_as_its_plan_is_not_tried_again(told):
    failed = {**END, "status": "failed", "error": "The current node timed out during startup"}
    text = told.run({**RAY, "history": [failed]}, COMPLETED)
    assert "error: the run failed: The current node timed out during startup" in text
    assert "trying again" not in text


def test_processes_that_come_too_late_end_the_run(told):
    late = "[/v1/runtime/pull-task-input][ApiError:1008] Authentication failed.\n" * 12
    text = told.run({"status": "pending", "details": ""}, superlinks=(late,))
    assert "error: the processes of the app start so slowly that Flower no longer accepts them" in text


def test_a_start_that_never_comes_ends(told, monkeypatch):
    monkeypatch.setattr(launcher, "START_TIMEOUT", 0.3)
    text = told.run({"status": "starting", "details": ""})
    assert "the process of the ServerApp has not started within" in text


def test_a_superlink_that_dies_ends_the_run_without_a_question(told, monkeypatch):
    monkeypatch.setattr(launcher, "POLL_AT_START", 60.0)
    text = told.run({"status": "running", "details": ""}, superlinks=("dies",))
    assert "error: the run stopped without an end event; Flower says finished:lost: its SuperLink is gone" in text
    assert [words[0] for words, *_ in told.asked()] == ["run"]


def test_a_silence_is_explained(told, monkeypatch):
    monkeypatch.setattr("matu_flwr.launch.waiting.PATIENCE", 0.1)
    monkeypatch.setattr(launcher, "START_TIMEOUT", 1.0)
    text = told.run({"status": "starting", "details": ""})
    assert "waiting for Flower to start the process of the ServerApp, " in text


def test_an_odd_environment_is_named_and_not_handed_on(told, monkeypatch):
    monkeypatch.setenv("RAY_REDIS_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("FLWR_DATABASE", "state.db")
    text = told.run(COMPLETED)
    assert (
        "not handed on to Flower, because it would lead its processes astray: FLWR_DATABASE, RAY_REDIS_ADDRESS" in text
    )
    assert "completed" in text


def test_a_ray_cluster_that_is_not_there_ends_the_start_at_once(told, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    text = told.run(COMPLETED)
    assert "error: RAY_ADDRESS = 127.0.0.1:1, but no Ray cluster answers there" in text
    assert not told.out.exists()


def test_ctrl_c_stops_everything(told):
    # Workers of pytest-xdist ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def press() -> None:
        # Not by the clock, which says nothing on a busy machine: when Flower has been asked about the run.
        while not (told.folder / "asked").exists() or not any("list" in words for words, *_ in told.asked()):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press, daemon=True)
    presser.start()
    try:
        text = told.run({"status": "running", "details": ""})
    finally:
        signal.signal(signal.SIGINT, before)
    presser.join()
    assert f"error: stopped by you; the history so far is in {told.out}" in text


def test_a_folder_serves_one_command_at_a_time(told):
    told.out.mkdir()
    with claimed(told.out, "a run"):
        text = told.run(COMPLETED)
    assert f"error: another command is at work on a run in {told.out}: wait for it, or name another --out-dir" in text
    assert "completed" in told.run(COMPLETED)


def test_missing_commands_of_flower_are_named(told):
    (Path(sys.executable).parent / "flwr-simulation").unlink()
    assert "error: there is no command flwr-simulation beside" in told.run(COMPLETED)


def test_a_full_disk_is_a_sentence(told, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(launcher, "stage", full)
    assert f"error: the run in {told.out} cannot be started: [Errno 28] No space left on device" in told.run(COMPLETED)


def test_what_a_run_writes_follows_the_umask(told):
    before = os.umask(0o027)
    try:
        told.run(COMPLETED)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (told.out, *told.out.iterdir())}
    assert modes.pop("out") == 0o750
    assert {name for name, mode in modes.items() if mode != 0o640 and not name.endswith(".lock")} == set()


def test_no_process_is_left(told):
    before = {process.pid for process in processes()}
    told.run(COMPLETED)
    assert not {p.pid for p in processes() if p.parent == os.getpid()} - before
