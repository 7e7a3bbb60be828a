"""A SuperLink and SuperNodes on this machine, whose clients fail as they are told."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matu_flwr.config.toml import as_toml
from matu_flwr.launch.environment import flower_variables
from matu_flwr.launch.flower import free_port
from matu_flwr.launch.processes import groups_below, processes, stop_groups
from matu_flwr.launch.staging import stage
from matu_flwr.run.history import read_history

APP = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

# Before the app's own code a client does what stands in $FAULTS/<partition>-<round>: raise, or sleep so many seconds.
# It says in <partition>-<round>.pid that it is there, and does it once.
FAULTY = """
def fault(message, context, call_next):
    import os, pathlib, time
    from matu_flwr import wire
    if message.metadata.message_type != "train":
        return call_next(message, context)
    round_ = message.content["scalars"]["round"]
    order = pathlib.Path(os.environ["FAULTS"], f"{context.node_config['partition-id']}-{round_}")
    if order.exists():
        what = order.read_text()
        order.unlink()
        order.with_suffix(".pid").write_text(str(os.getpid()))
        if what == "raise":
            raise RuntimeError("told to fail")
        time.sleep(float(what))
    return call_next(message, context)


app = ClientApp(mods=[log_about_this_run, fault])
"""
APP_LINE = "\napp = ClientApp(mods=[log_about_this_run])\n"  # in client_app.py


class Deployment:
    """Processes of one federation; a context manager that stops them all.

    Parameters
    ----------
    folder : Path
        Everything lies there: logs, Flower's files, the faults to come.
    nodes : int
        SuperNodes, by partition id.
    isolation : {"subprocess", "process"}
        "process": SuperExecs are processes of their own, and the SuperLink has a database.
    """

    def __init__(self, folder: Path, nodes: int, isolation: str = "subprocess") -> None:
        self.folder, self.nodes, self.isolation = folder, nodes, isolation
        self.port = free_port()
        self.node_ports = self.free_ports(nodes)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.groups: set[int] = set()
        home = folder / "flower"
        home.mkdir(parents=True)
        address = (
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        (home / "config.toml").write_text(address)
        self.faults = folder / "faults"
        self.faults.mkdir()
        variables = flower_variables(os.environ, home, home, None)
        self.environment = variables | {"FAULTS": str(self.faults)}
        self.app = stage(APP, folder / "app")
        client = self.app / "client_app.py"
        text = client.read_text()
        assert text.count(APP_LINE) == 1
        client.write_text(text.replace(APP_LINE, FAULTY))

    def __enter__(self) -> "Deployment":
        self.start_superlink()
        for partition in range(self.nodes):
            self.start_node(partition)
        return self

    def __exit__(self, *_: Any) -> None:
        for process in self.running.values():
            self.groups |= groups_below(process.pid)
        stop_groups(self.groups)
        for process in self.running.values():
            process.wait()

    @staticmethod
    def free_ports(count: int) -> list[int]:
        """Ports that nobody listens on."""
        return [free_port() for _ in range(count)]

    # --- processes ---

    def start(self, name: str, *command: str, **variables: str) -> None:
        """Start a Flower command under a name; a killed one may be started again."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [str(BIN / command[0]), *command[1:]],
                env=self.environment | variables,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.groups.add(self.running[name].pid)

    def start_superlink(self) -> None:
        options = ["--insecure", "--host", "127.0.0.1", "--port", str(self.port), "--isolation", self.isolation]
        if self.isolation == "process":
            options += ["--database", str(self.folder / "state.db")]
        self.start("superlink", "flower-superlink", *options, "--disable-runtime-dependency-installation")
        if self.isolation == "process" and "superlink-exec" not in self.running:
            self.wait_for(lambda: listens(self.port), "the SuperLink")
            self.start("superlink-exec", *self.superexec(self.port))

    def start_node(self, partition: int, **variables: str) -> None:
        port = self.node_ports[partition]
        options = ["--insecure", "--superlink", f"127.0.0.1:{self.port}", "--port", str(port)]
        options += ["--isolation", self.isolation]
        options += ["--node-config", f"partition-id={partition} num-partitions={self.nodes}"]
        self.start(f"supernode-{partition}", "flower-supernode", *options, **variables)
        if self.isolation == "process":
            self.wait_for(lambda: listens(port), f"SuperNode {partition}")
            self.start(f"supernode-{partition}-exec", *self.superexec(port), **variables)

    @staticmethod
    def superexec(port: int) -> list[str]:
        return ["flower-superexec", "--insecure", "--runtime-api-address", f"127.0.0.1:{port}"]

    def kill(self, name: str) -> None:
        """SIGKILL for the process itself; what it started may live on."""
        self.groups |= groups_below(self.running[name].pid)
        self.running[name].kill()
        self.running[name].wait()

    # --- runs ---

    def flwr(self, *arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [str(BIN / "flwr"), *arguments, "--format", "json"],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        start = done.stdout.find("{")
        assert start >= 0, done.stdout + done.stderr
        return json.loads(done.stdout[start:])

    def submit(self, values: dict[str, Any]) -> str:
        """Start a run as soon as the SuperLink takes it; returns its id."""
        config = self.folder / "run.toml"
        config.write_text(as_toml(values))
        answer: dict[str, Any] = {}

        def taken() -> bool:
            nonlocal answer
            answer = self.flwr("run", str(self.app), "here", "--run-config", str(config))
            return bool(answer.get("success"))

        self.wait_for(taken, "flwr run")
        return str(answer["run-id"])

    def online(self) -> int:
        """How many nodes are connected."""
        return sum(node["status"] == "online" for node in self.flwr("supernode", "list", "here")["nodes"])

    def status(self, run_id: str) -> str:
        """Flower's word on a run."""
        return str(self.flwr("list", "here", "--run-id", run_id)["runs"][0]["status"])

    def log_of(self, run_id: str) -> str:
        """What the ServerApp logged."""
        command = [str(BIN / "flwr"), "log", run_id, "here", "--show"]
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=120, check=False
        )
        return done.stdout

    def wait_for(self, done: Callable[[], bool], what: str, seconds: float = 600) -> float:
        """Wait; returns the seconds that it took. The logs are in the error."""
        began = time.monotonic()
        while not done():
            if time.monotonic() - began > seconds:
                logs = sorted(self.folder.glob("*.log"))
                said = "\n".join(f"--- {log.name}\n{log.read_text()[-2500:]}" for log in logs)
                raise AssertionError(f"{what} did not happen within {seconds:g} s\n{said}")
            time.sleep(0.2)
        return time.monotonic() - began

    # --- faults ---

    def order(self, partition: int, round_: int, what: str) -> None:
        """Have a client raise, or sleep before it trains, once."""
        (self.faults / f"{partition}-{round_}").write_text(what)

    def at_fault(self, partition: int, round_: int) -> int:
        """Wait until a client is where it was ordered to; returns its process id."""
        path = self.faults / f"{partition}-{round_}.pid"
        self.wait_for(lambda: path.exists() and path.read_text() != "", f"round {round_} at client {partition}")
        return int(path.read_text())


def listens(port: int) -> bool:
    """Whether somebody listens on a port of this machine."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def events(out_dir: Path) -> list[dict[str, Any]]:
    """The history so far."""
    path = out_dir / "history.jsonl"
    return read_history(path) if path.exists() else []


def finished(out_dir: Path, round_: int) -> bool:
    """Whether a round is in the history."""
    return any(event["event"] == "round" and event["round"] == round_ for event in events(out_dir))


def ended(out_dir: Path) -> bool:
    """Whether the run has said its last word."""
    return bool(events(out_dir)) and events(out_dir)[-1]["event"] == "end"


def kill_process(pid: int) -> None:
    """SIGKILL for one process, if it is still there."""
    if any(process.pid == pid for process in processes()):
        os.kill(pid, signal.SIGKILL)
