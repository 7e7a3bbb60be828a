"""What the compose files promise, and the small scripts in the images, without Docker."""

import importlib.util
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, HEARTBEAT_PATIENCE

DOCKER = Path(__file__).resolve().parents[2] / "docker"
FILES = ("compose.server.yml", "compose.site.yml", "compose.one-host.yml")
BIN = Path(sys.executable).parent
FOR_PEOPLE = {"keys", "operator", "operator-proxy"}


def services():
    found = []
    for name in FILES:
        content = yaml.safe_load((DOCKER / name).read_text())
        found += [pytest.param(service, made, id=f"{name}:{service}") for service, made in content["services"].items()]
    return found


@pytest.mark.parametrize(("name", "service"), services())
def test_every_service_is_confined(name, service):
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"] > 0
    assert "privileged" not in service
    assert "user" not in service
    assert ("ports" in service) == (name == "proxy")
    if name not in FOR_PEOPLE:
        assert service["mem_limit"]
        assert service["cpus"]
        assert service["healthcheck"]["test"]
        assert service["restart"] == "unless-stopped"
    for volume in service.get("volumes", []):
        if volume.endswith((":/keys", ":/data", ":/keys:ro", ":/data:ro")):
            assert volume.endswith(":ro"), volume


def test_who_has_data_has_no_way_out_and_who_has_a_way_out_has_no_data():
    for name in FILES[1:]:
        content = yaml.safe_load((DOCKER / name).read_text())
        for service in content["services"].values():
            has_data = any(":/data" in volume for volume in service.get("volumes", []))
            if has_data:
                assert [content["networks"][network]["internal"] for network in service["networks"]] == [True]
    server = yaml.safe_load((DOCKER / FILES[0]).read_text())
    assert server["networks"]["server"]["internal"] is True
    for name in ("superlink", "serverapp"):
        assert server["services"][name]["networks"] == ["server"]


def test_each_container_gets_the_folder_of_its_own_keys():
    server = yaml.safe_load((DOCKER / FILES[0]).read_text())["services"]
    for name in ("superlink", "serverapp", "proxy"):
        mounts = [volume for volume in server[name]["volumes"] if volume.endswith(":/keys:ro")]
        assert mounts == [f"${{MATU_KEYS:-./keys}}/{name}:/keys:ro"]


@pytest.mark.system
def test_flower_knows_every_flag_that_is_used():
    used: dict[str, set[str]] = {}
    for name in FILES:
        for service in yaml.safe_load((DOCKER / name).read_text())["services"].values():
            command = service.get("command", [])
            if command and command[0].startswith("flower-"):
                flags = {word.partition("=")[0] for word in command[1:] if word.startswith("--")}
                used.setdefault(command[0], set()).update(flags)
    script = (DOCKER / "supernode.sh").read_text()
    used["flower-supernode"] = set(re.findall(r"^ +(--[a-z-]+)", script, re.MULTILINE))
    assert set(used) == {"flower-superlink", "flower-supernode", "flower-superexec"}
    for command, flags in used.items():
        said = subprocess.run([BIN / command, "--help"], capture_output=True, text=True, check=True).stdout
        known = set(re.findall(r"--[a-z-]+[a-z]", said))
        assert len(flags) >= 4
        assert flags <= known, f"{command} does not know {sorted(flags - known)}"


def test_a_node_waits_longer_than_the_superlink_keeps_its_place():
    waits = re.search(r"\$\{BACKOFF:-(\d+)\}", (DOCKER / "supernode.sh").read_text())
    assert int(waits[1]) > HEARTBEAT_DEFAULT_INTERVAL * HEARTBEAT_PATIENCE


# --- scripts -------------------------------------------------------------------------------------------------------


def test_backoff_passes_a_failure_on_and_says_why_it_waited():
    command = [DOCKER / "backoff.sh", "0", "sh", "-c", "exit 7"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 7
    assert "sh ended with 7; waiting 0 s, because the SuperLink keeps a lost node's place" in done.stderr


def test_backoff_does_not_wait_after_success():
    done = subprocess.run([DOCKER / "backoff.sh", "600", "true"], capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_backoff_passes_sigterm_on_and_lets_the_command_end_in_order():
    script = "trap 'echo ended in order; exit 0' TERM; echo ready; while :; do sleep 0.05; done"
    command = [DOCKER / "backoff.sh", "600", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout.readline() == "ready\n"
        running.send_signal(signal.SIGTERM)
        rest, _ = running.communicate(timeout=60)
    assert rest == "ended in order\n"
    assert running.returncode == 143


def test_backoff_ends_its_waiting_at_sigterm():
    command = [DOCKER / "backoff.sh", "600", "sh", "-c", "exit 1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        assert "waiting 600 s" in running.stderr.readline()
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 143


@pytest.fixture(scope="module")
def start():
    spec = importlib.util.spec_from_file_location("proxy_start", DOCKER / "proxy/start.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_proxy_s_configuration_takes_values_and_nothing_that_is_more_than_a_value(start):
    assert start.configuration("listen @FLEET@ ssl;", {"FLEET": "8443"}) == "listen 8443 ssl;"
    with pytest.raises(ValueError, match="SUPERLINK is not set in the environment, and the proxy's configuration"):
        start.configuration("@SUPERLINK@", {})
    for value in ("8443; location / { return 200; }", "", "a b", "$uri", "x\n"):
        with pytest.raises(ValueError, match=r"^FLEET='.*' is not a port, address, name or path$"):
            start.configuration("listen @FLEET@;", {"FLEET": value})


def test_the_proxy_passes_exactly_the_routes_that_a_supernode_with_a_key_calls():
    """Flower's SuperNode calls these; registering is for operators."""
    import flwr.supernode.fleet_http_client as client

    called = set(re.findall(r'path="/v1/fleet/([a-z-]+)"', Path(client.__file__).read_text()))
    pattern = re.search(r'location ~ "(\^/v1/fleet/.*\$)" \{', (DOCKER / "proxy/server.conf").read_text())[1]
    passed = {route for route in called if re.fullmatch(pattern, f"/v1/fleet/{route}")}
    assert called - passed == {"register-node", "unregister-node"}
    assert not re.fullmatch(pattern, "/v1/fleet/anything-new")


def test_the_image_installs_what_the_package_needs_but_ray():
    said = subprocess.run(
        [sys.executable, DOCKER / "requirements.py"], cwd=DOCKER.parent, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert [line for line in said if line.startswith("flwr")] == ["flwr>=1.41.0,<1.43"]
    assert any(line.startswith("torch>=") for line in said)
    assert any(line.startswith("peft") for line in said)
    assert not any("ray" in line for line in said)
