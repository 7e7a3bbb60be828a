"""A whole federation in containers on this machine: three sites with different tasks, TLS, and one short run.

run.py [--rounds N] [--keep]   `make deploy-demo` runs this; it needs only Docker with compose.

It builds the images, makes keys and images in a temporary folder, starts the server, registers the sites as an
operator would, starts the sites, runs MaTU, shows the result, and takes everything down again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SITES = ("north", "south", "east")
# User and group in the images; see docker/Dockerfile.
USER = "10001:10001"
# Seconds until the run must have ended.
TIMEOUT = 900.0


class DemoError(RuntimeError):
    """A step of the demo failed; the text has what the command printed."""


def compose_command() -> list[str]:
    """Return `docker compose` or `docker-compose`, whichever is installed; DemoError if Docker does not answer."""
    if shutil.which("docker") is None:
        raise DemoError("there is no docker command here; install Docker with its compose plugin")
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:
        raise DemoError(
            "the docker command is here, but the Docker engine does not answer: start it, or ask for access to it"
        )
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0:
        return ["docker", "compose"]
    if found := shutil.which("docker-compose"):
        return [found]
    raise DemoError(
        "docker is installed, but neither `docker compose` nor `docker-compose` is; install the compose plugin"
    )


def build(arguments: str = "") -> None:
    """Build both images. `arguments` are passed to `docker build`, which needs some if it has no network."""
    for target, tag in (("proxy", "matu-flwr-proxy"), ("app", "matu-flwr")):
        command = ["docker", "build", "--quiet", "--file", "docker/Dockerfile", "--target", target, "--tag", tag]
        print(f"building {tag}", flush=True)
        done = subprocess.run(
            [*command, *arguments.split(), "."], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise DemoError(f"the image {tag} could not be built:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")


class Demo:
    """The containers, keys and images of the demo. Use it as a context manager, which removes them at the end.

    Attributes
    ----------
    folder : Path
        Temporary folder with `keys`, `sites/<site>/keys` and `sites/<site>/data`. The user in the containers owns it.
    fleet, control : int
        Ports of the proxy on this machine's loopback interface, for sites and for operators.
    """

    def __init__(self) -> None:
        self.compose = compose_command()
        self.folder = Path(tempfile.mkdtemp(prefix="matu-demo-"))
        self.project = self.folder.name.replace("_", "x").lower()
        self.fleet, self.control = _free_port(), _free_port()

    def __enter__(self) -> Demo:
        self.folder.chmod(0o755)
        self._as_root("chown", USER, "/demo")
        return self

    def __exit__(self, *error: object) -> None:
        self.run("--profile", "operator", "down", "--volumes", "--remove-orphans", "--timeout", "5", check=False)
        self._as_root("find", "/demo", "-mindepth", "1", "-delete")
        self.folder.rmdir()

    def run(self, *arguments: str, check: bool = True, show: bool = False, timeout: float = 600) -> str:
        """Run a compose command and return what it printed, or with `show` print it as it comes."""
        files = [f"--file={ROOT / 'docker' / name}" for name in ("compose.server.yml", "compose.one-host.yml")]
        variables = {
            "MATU_KEYS": str(self.folder / "keys"),
            "MATU_SITES": str(self.folder / "sites"),
            "MATU_FLEET_ADDRESS": "127.0.0.1",
            "MATU_FLEET_PORT": str(self.fleet),
            "MATU_CONTROL_PORT": str(self.control),
            "MATU_SERVER_NAME": "proxy",
        }
        command = [*self.compose, *files, f"--project-name={self.project}", *arguments]
        done = subprocess.run(
            command,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=None if show else subprocess.PIPE,
            stderr=subprocess.STDOUT if show else subprocess.PIPE,
            text=True,
            check=False,
            timeout=timeout,
        )
        if check and done.returncode != 0:
            raise DemoError(f"`{' '.join(arguments)}` failed: {done.stdout or ''}{(done.stderr or '')[-4000:]}")
        return done.stdout or ""

    def operator(self, *command: str) -> str:
        """Run a command in the operator's container."""
        return self.run("run", "--rm", "-T", "operator", *command)

    def flwr(self, *arguments: str) -> dict[str, Any]:
        """Run a `flwr` command as the operator and read its JSON answer."""
        said = self.operator("flwr", *arguments, "--format", "json")
        answer: dict[str, Any] = json.loads(said[said.index("{") :])
        if not answer.get("success"):
            raise DemoError(f"`flwr {arguments[0]}` failed: {answer.get('error-message')}")
        return answer

    def make_keys_and_images(self) -> None:
        """Do what the server's operator and the sites each do once, on their own machines."""
        lines = [
            "install -d -m 0700 keys/sites " + " ".join(f"sites/{site}/keys" for site in SITES),
            "matu keys init --host proxy --folder keys",
            "matu keys operator operator --folder keys",
            "python /images.py images",
        ]
        for site in SITES:
            lines += [
                f"matu keys site {site} --ca keys/ca.crt --folder sites/{site}/keys",
                f"cp sites/{site}/keys/{site}.pub keys/sites/",
                f"mv images/{site} sites/{site}/data",
            ]
        images = f"{ROOT / 'docker/demo/images.py'}:/images.py:ro"
        volumes = (f"--volume={self.folder}:/demo", f"--volume={images}")
        _docker(
            "run", "--rm", "--network=none", *volumes, "--workdir=/demo", "matu-flwr", "sh", "-ec", "\n".join(lines)
        )

    def start_server(self) -> None:
        """Start SuperLink, ServerApp and proxy, and return when the proxy answers."""
        self.run("up", "--detach", "superlink", "serverapp", "proxy")
        self._wait(lambda: self.health("proxy") == "healthy", "the proxy's health check", 180)

    def register_sites(self) -> dict[str, str]:
        """Register the public keys of the sites. Returns the node id of each site."""
        return {
            site: str(self.flwr("supernode", "register", f"/sites/{site}.pub", "--name", site)["node-id"])
            for site in SITES
        }

    def start_sites(self) -> None:
        """Start all nodes and ClientApps, and return when the SuperLink reports every node as online."""
        self.run("up", "--detach", *(f"{site}-{part}" for site in SITES for part in ("node", "app")))
        self._wait(lambda: list(self.statuses().values()).count("online") == len(SITES), "all nodes online", 240)

    def statuses(self) -> dict[str, str]:
        """Status of each node by id."""
        return {str(node["node-id"]): str(node["status"]) for node in self.flwr("supernode", "list")["nodes"]}

    def start_run(self, rounds: int) -> str:
        """Start a run of MaTU and return its id."""
        values = {
            "rounds": rounds,
            "min-nodes": len(SITES),
            "out-dir": "'/results/demo'",
            # The server has none of the sites' images, so it has nothing to test on.
            "server-evaluate": "false",
            "train.steps": 15,
        }
        config = " ".join(f"{key}={value}" for key, value in values.items())
        return str(self.flwr("run", ".", "--run-config", config)["run-id"])

    def wait_for_run(self, run_id: str) -> None:
        """Wait until the run has completed. If it fails, DemoError has the end of its log."""

        def status() -> str:
            run = self.flwr("list", "--run-id", run_id)["runs"][0]
            return str(run["status"])

        self._wait(lambda: status().startswith("finished"), "the end of the run", TIMEOUT, pause=5)
        if (ended := status()) != "finished:completed":
            raise DemoError(f"the run is {ended}:\n{self.operator('flwr', 'log', run_id, '--show')[-4000:]}")

    def health(self, service: str) -> str:
        """Return the state of a service's health check, as the Docker engine reports it."""
        identifier = self.run("ps", "--quiet", service).strip()
        form = "{{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}}"
        command = ["docker", "inspect", "--format", form, identifier]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def _wait(self, done: Any, what: str, seconds: float, pause: float = 2) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                raise DemoError(f"waited {seconds:g} s in vain for {what}\n{self.run('logs', '--tail=40')}")
            time.sleep(pause)

    def _as_root(self, *command: str) -> None:
        _docker("run", "--rm", "--network=none", "--user=0", f"--volume={self.folder}:/demo", "matu-flwr", *command)


def _docker(*arguments: str) -> None:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DemoError(f"`docker {' '.join(arguments)}` failed: {done.stdout}{done.stderr}")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def main() -> None:
    """Run the demo and print its steps and its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="wait for Enter before everything is taken down")
    options = parser.parse_args()
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {text}", flush=True)

    try:
        compose_command()
        build(os.environ.get("MATU_BUILD_ARGS", ""))
        with Demo() as demo:
            say("making keys, and images of three sites")
            demo.make_keys_and_images()
            say("starting SuperLink, ServerApp and proxy")
            demo.start_server()
            say("registering the sites' keys with the operator's certificate")
            demo.register_sites()
            say("starting the sites")
            demo.start_sites()
            say(f"running MaTU for {options.rounds} rounds")
            demo.wait_for_run(demo.start_run(options.rounds))
            say("the run has completed")
            print(demo.operator("matu", "show", "/results/demo"), flush=True)
            if options.keep:
                input(f"project {demo.project}, files in {demo.folder}; press Enter to take it down")
            say("taking everything down")
        say("done")
    except DemoError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
