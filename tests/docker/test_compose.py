"""The containers for real: the demo's federation, and what it must not let through. Run by `make test-docker`."""

import importlib.util
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.docker

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("matu_demo", ROOT / "docker/demo/run.py")
demo_module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(demo_module)
SERVICES = ("superlink", "serverapp", "proxy", *(f"{s}-{p}" for s in demo_module.SITES for p in ("node", "app")))


@pytest.fixture(scope="module")
def demo():
    """The demo after its run."""
    try:
        demo_module.compose_command()
    except demo_module.DemoError as error:
        pytest.skip(str(error))
    demo_module.build(os.environ.get("MATU_BUILD_ARGS", ""))
    with demo_module.Demo() as running:
        running.make_keys_and_images()
        running.start_server()
        running.ids = running.register_sites()
        running.start_sites()
        running.wait_for_run(running.start_run(2))
        yield running


def inside(demo, service: str, *command: str) -> subprocess.CompletedProcess:
    """Run a command in a running container."""
    identifier = demo.run("ps", "--quiet", service).strip()
    return subprocess.run(["docker", "exec", identifier, *command], capture_output=True, text=True, check=False)


def test_the_run_has_trained_every_site_s_tasks(demo):
    summary = json.loads(demo.operator("cat", "/results/demo/summary.json"))
    assert sorted(summary["tasks"]) == ["dots", "gratings", "squares", "stripes"]
    for name, task in summary["tasks"].items():
        assert task["final_accuracy"] > task["initial_accuracy"], (name, task)
    assert "round 2/2" in demo.operator("matu", "show", "/results/demo")


def test_every_health_check_is_content(demo):
    deadline = time.monotonic() + 120
    while (found := {service: demo.health(service) for service in SERVICES}) != dict.fromkeys(SERVICES, "healthy"):
        assert time.monotonic() < deadline, found
        time.sleep(3)


def test_no_container_is_root_or_can_write_into_its_image(demo):
    for service in SERVICES:
        assert inside(demo, service, "id", "-u").stdout.strip() == "10001", service
        assert "Read-only file system" in inside(demo, service, "touch", "/opt/x").stderr, service
        status = inside(demo, service, "cat", "/proc/self/status").stdout
        assert "CapEff:\t0000000000000000" in status, service
        assert "NoNewPrivs:\t1" in status, service


def test_images_and_keys_are_read_only(demo):
    assert "Read-only file system" in inside(demo, "north-app", "touch", "/data/x").stderr
    for service in SERVICES:
        assert "Read-only file system" in inside(demo, service, "touch", "/keys/x").stderr, service
    assert inside(demo, "north-node", "ls", "/data").returncode != 0


CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"


def test_code_of_the_app_has_no_way_out(demo):
    """A ClientApp reaches its node and nothing else in containers, a ServerApp only what is on the server's network."""

    def reaches(service, host, port):
        return inside(demo, service, "python3", "-c", CONNECT, host, port).returncode == 0

    assert reaches("north-app", "supernode", "9094")
    assert reaches("north-node", "proxy", "8443")
    addresses = inside(demo, "proxy", "hostname", "-i").stdout.split()
    assert len(addresses) == 2
    for host in ("proxy", "superlink", *addresses):
        assert not reaches("north-app", host, "8443")
        assert not reaches("north-node", host, "8000")
    # The proxy's address on the other network: nothing is passed on from an internal one.
    assert sorted(reaches("serverapp", address, "8443") for address in addresses) == [False, True]


def test_only_the_proxy_has_ports_and_the_control_port_is_on_the_loopback(demo):
    ports = {}
    for service in SERVICES:
        identifier = demo.run("ps", "--quiet", service).strip()
        command = ["docker", "inspect", "--format", "{{json .HostConfig.PortBindings}}", identifier]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        if found := json.loads(said):
            ports[service] = found
    assert list(ports) == ["proxy"]
    assert {bind[0]["HostIp"] for bind in ports["proxy"].values()} == {"127.0.0.1"}


def test_what_a_site_holds_opens_no_control_route(demo):
    """From the node's container, with all that the site has."""
    script = (
        "import ssl, sys, http.client\n"
        "context = ssl.create_default_context(cafile='/keys/ca.crt')\n"
        "if sys.argv[2] == 'certificate': context.load_cert_chain('/keys/runtime.crt', '/keys/runtime.key')\n"
        "c = http.client.HTTPSConnection('proxy', int(sys.argv[1]), context=context, timeout=10)\n"
        "c.request('POST', '/v1/control/start-run', body=b'', headers={'content-type': 'application/protobuf'})\n"
        "print(c.getresponse().status)\n"
    )
    for port, expected in (("8443", "403"), ("8444", "400")):
        for certificate in ("certificate", "none"):
            done = inside(demo, "north-node", "python", "-c", script, port, certificate)
            assert done.stdout.strip() == expected, (port, certificate, done.stderr)


def test_a_killed_node_waits_for_its_lease_and_comes_back_as_itself(demo):
    kill = "import os, pathlib\nfor p in pathlib.Path('/proc').glob('[0-9]*/cmdline'):\n"
    kill += " words = p.read_bytes().split(b'\\0')\n"
    kill += " if len(words) > 1 and words[1].endswith(b'/flower-supernode'): os.kill(int(p.parent.name), 9)\n"
    assert inside(demo, "south-node", "python", "-c", kill).returncode == 0
    node = demo.ids["south"]
    began = time.monotonic()
    while demo.statuses()[node] == "online":
        assert time.monotonic() - began < 120
        time.sleep(2)
    while demo.statuses()[node] != "online":
        assert time.monotonic() - began < 300, demo.run("logs", "--tail=40", "south-node")
        time.sleep(2)
    said = demo.run("logs", "south-node")
    assert "ended with 137; waiting 75 s" in said
    assert "Failed to activate" not in said, "it knocked before the lease was over"
