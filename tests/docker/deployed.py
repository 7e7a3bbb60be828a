"""A SuperLink behind the proxy of the server's containers, as plain processes on this machine."""

import contextlib
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from matu_flwr.deployment import keys
from tests.support.running import process

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
START_PROXY = ROOT / "docker" / "proxy" / "start.py"
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
PROTOBUF = {"content-type": "application/protobuf", "accept": "application/protobuf"}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_for(done, what: str, log: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not happen within {seconds:g} s\n{log.read_text()[-3000:]}")
        time.sleep(0.2)


@dataclass
class Answer:
    status: int
    body: bytes


def post(
    port: int,
    path: str,
    *,
    ca: Path | None,
    client: tuple[Path, Path] | None = None,
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send one request with the path exactly as given; without `ca`, plain HTTP."""
    connection: http.client.HTTPConnection
    if ca is None:
        connection = http.client.HTTPConnection("localhost", port, timeout=20)
    else:
        context = ssl.create_default_context(cafile=ca)
        if client:
            context.load_cert_chain(*client)
        connection = http.client.HTTPSConnection("localhost", port, timeout=20, context=context)
    with contextlib.closing(connection):
        connection.request(method, path, body=b"", headers={**PROTOBUF, **(headers or {})})
        answer = connection.getresponse()
        return Answer(answer.status, answer.read())


@dataclass
class Deployment:
    """Ports and folders; `keys` as `matu keys init` made them, with the operator alice."""

    folder: Path
    superlink: int = field(default_factory=free_port)
    fleet: int = field(default_factory=free_port)
    control: int = field(default_factory=free_port)
    local: int = field(default_factory=free_port)

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    @property
    def ca(self) -> Path:
        return self.keys / "ca.crt"

    @property
    def alice(self) -> tuple[Path, Path]:
        return self.keys / "operators/alice/operator.crt", self.keys / "operators/alice/operator.key"

    @property
    def variables(self) -> dict[str, str]:
        return {
            "FLWR_HOME": str(self.folder / "flower"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)]),
        }

    def proxy_variables(self, **values: str) -> dict[str, str]:
        """Environment of the server's proxy."""
        found = {
            "FLEET": str(self.fleet),
            "CONTROL": str(self.control),
            "SUPERLINK": f"127.0.0.1:{self.superlink}",
            "KEYS": str(self.keys / "proxy"),
            "RESOLVER": "127.0.0.1",  # asked for nothing: the address above is one
            "NGINX": str(NGINX),
            "TMPDIR": str(self.folder),
        }
        return found | values

    def flwr(self, *arguments: str) -> dict:
        """Run a `flwr` command as the operator and read its JSON answer."""
        command = [str(BIN / "flwr"), *arguments, "--format", "json"]
        done = subprocess.run(
            command, env={**os.environ, **self.variables}, capture_output=True, text=True, check=False, timeout=60
        )
        start = done.stdout.find("{")
        assert start >= 0, done.stdout + done.stderr
        return json.loads(done.stdout[start:])

    def supernode(self, site: Path, *, address: str = "", ca: Path | None = None) -> list[str | Path]:
        """Return the command of a site's SuperNode, as in the site's compose file."""
        return [
            BIN / "flower-supernode",
            *(
                "--superlink",
                address or f"localhost:{self.fleet}",
                "--root-certificates",
                ca or site / "supernode/ca.crt",
            ),
            *("--auth-supernode-private-key", site / "supernode/node.key"),
            *("--isolation", "process", "--host", "127.0.0.1", "--port", str(free_port())),
            *("--ssl-certfile", site / "supernode/runtime.crt", "--ssl-keyfile", site / "supernode/runtime.key"),
            *("--ssl-ca-certfile", site / "supernode/local-ca.crt"),
            *("--superexec-auth-secret-file", site / "supernode/superexec.secret"),
            *("--node-config", f"site='{site.name}'"),
        ]


@contextlib.contextmanager
def deployed(folder: Path) -> Iterator[Deployment]:
    """A SuperLink with TLS and node authentication, the server's proxy before it, and an operator's proxy."""
    here = Deployment(folder)
    keys.init(here.keys, ["localhost"])
    keys.operator(here.keys, "alice")
    (folder / "flower").mkdir()
    (folder / "flower" / "config.toml").write_text(
        f'[superlink]\ndefault = "federation"\n\n[superlink.federation]\naddress = "127.0.0.1:{here.local}"\n'
        "insecure = true\n"
    )
    own = here.keys / "superlink"
    superlink = [
        BIN / "flower-superlink",
        *("--host", "127.0.0.1", "--port", str(here.superlink), "--isolation", "process", "--enable-supernode-auth"),
        *("--ssl-ca-certfile", own / "ca.crt", "--ssl-certfile", own / "superlink.crt"),
        *("--ssl-keyfile", own / "superlink.key", "--superexec-auth-secret-file", own / "superexec.secret"),
        *("--database", folder / "state.db", "--disable-runtime-dependency-installation"),
    ]
    operator = {
        "LOCAL": str(here.local),
        "CONTROL": f"127.0.0.1:{here.control}",
        "SERVER_NAME": "localhost",
        "KEYS": str(here.keys / "operators/alice"),
    }
    with contextlib.ExitStack() as stack:
        log = folder / "superlink.log"
        stack.enter_context(process(superlink, log, here.variables))
        proxy = [sys.executable, START_PROXY]
        stack.enter_context(process([*proxy, "server"], folder / "proxy.log", here.proxy_variables()))
        stack.enter_context(process([*proxy, "operator"], folder / "operator.log", here.proxy_variables(**operator)))

        def ready() -> bool:
            with contextlib.suppress(OSError):
                return post(here.control, "/v1/control/list-runs", ca=here.ca, client=here.alice).status == 200
            return False

        wait_for(ready, "an answer of the SuperLink through the proxy", log)
        yield here
