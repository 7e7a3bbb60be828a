"""What must not work: every way around TLS, node keys and the operators' certificate, tried on real processes."""

import base64
import contextlib
import datetime
import shutil
import socket
import ssl
import sys

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

from matu_flwr.deployment import keys
from matu_flwr.deployment.certificates import Pair, authority, issue
from tests.docker.deployed import NGINX, ROOT, START_PROXY, deployed, post, process, wait_for

pytestmark = [
    pytest.mark.system,
    pytest.mark.long,
    pytest.mark.skipif(NGINX is None, reason="no nginx here; Debian: apt-get install nginx-light"),
]
YEARS_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
CONTROL = ("start-run", "list-runs", "stop-run", "stream-logs", "register-node", "unregister-node", "list-nodes")
FLEET = ("activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages", "get-run")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with deployed(tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture(scope="module")
def north(server, tmp_path_factory):
    """A site that has made its keys and is not registered."""
    folder = tmp_path_factory.mktemp("sites") / "north"
    keys.site(folder, "north", server.ca)
    return folder


def written(folder, pair: Pair):
    (folder / "crt").write_bytes(pair.certificate_bytes())
    (folder / "key").write_bytes(pair.key_bytes())
    return folder / "crt", folder / "key"


def signer(server, name: str) -> Pair:
    return keys._read_pair(server.keys / "authority", name)


def reached_superlink(server) -> list[str]:
    """Lines of the SuperLink's log about requests of control routes."""
    return [line for line in (server.folder / "superlink.log").read_text().splitlines() if "/v1/control/" in line]


# --- operators -----------------------------------------------------------------------------------------------------


def test_an_operator_reaches_the_control_routes_and_nothing_else(server):
    assert post(server.control, "/v1/control/list-runs", ca=server.ca, client=server.alice).status == 200
    others = [f"/v1/fleet/{name}" for name in FLEET]
    for path in (*others, "/v1/runtime/acquire-task", "/v1/responses", "/docs", "/openapi.json", "/health", "/"):
        answer = post(server.control, path, ca=server.ca, client=server.alice)
        assert (answer.status, answer.body) == (403, b"not for operators\n"), path


@pytest.mark.parametrize("route", CONTROL)
def test_no_control_route_without_a_certificate(server, route):
    answer = post(server.control, f"/v1/control/{route}", ca=server.ca)
    assert answer.status == 400
    assert b"No required SSL certificate was sent" in answer.body


@pytest.mark.parametrize("who", ["wrong authority", "expired", "not yet valid", "server", "servers' authority", "site"])
def test_no_control_route_with_a_certificate_that_is_not_an_operator_s(server, north, tmp_path, who):
    operators, servers = signer(server, "operators-ca"), signer(server, "ca")
    stranger = authority("matu-flwr operators")  # the right name, another key
    tomorrow = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    pairs = {
        "wrong authority": lambda: written(tmp_path, issue(stranger, "alice", "client")),
        "expired": lambda: written(tmp_path, issue(operators, "alice", "client", days=30, now=YEARS_AGO)),
        "not yet valid": lambda: written(tmp_path, issue(operators, "alice", "client", now=tomorrow)),
        "server": lambda: (server.keys / "proxy/proxy.crt", server.keys / "proxy/proxy.key"),
        "servers' authority": lambda: written(tmp_path, issue(servers, "alice", "client")),
        "site": lambda: (north / "supernode/runtime.crt", north / "supernode/runtime.key"),
    }
    answer = post(server.control, "/v1/control/list-runs", ca=server.ca, client=pairs[who]())
    assert answer.status == 400
    assert b"The SSL certificate error" in answer.body


# --- sites ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", CONTROL)
def test_a_site_gets_no_control_route_even_with_an_operator_s_certificate(server, route):
    before = reached_superlink(server)
    for client in (None, server.alice):
        answer = post(server.fleet, f"/v1/control/{route}", ca=server.ca, client=client)
        assert (answer.status, answer.body) == (403, b"not for sites\n")
    assert reached_superlink(server) == before


@pytest.mark.parametrize(
    "path",
    [
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet/..%2fcontrol%2flist-runs",
        "/v1/fleet/pull-messages/../../control/list-runs",
        "//v1//control//list-runs",
        "/v1/%63ontrol/list-runs",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages%00",
        "/v1/fleet/pull-messages%0a",
        "/v1/Fleet/pull-messages",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/anything-new",
        "/v1/runtime/acquire-task",
        "/v1/runtime/push-task-output",
        "/v1/responses",
        "/docs",
        "/openapi.json",
        "/",
    ],
)
def test_a_site_gets_no_other_path_however_it_is_spelled(server, path):
    before = reached_superlink(server)
    assert post(server.fleet, path, ca=server.ca).status in (400, 403)
    assert reached_superlink(server) == before


def test_a_site_may_only_post(server):
    for method in ("GET", "PUT", "DELETE", "OPTIONS"):
        assert post(server.fleet, "/v1/fleet/pull-messages", ca=server.ca, method=method).status == 403


@pytest.mark.parametrize("route", FLEET)
def test_a_fleet_route_reaches_the_superlink_which_asks_for_a_node_s_signature(server, route):
    answer = post(server.fleet, f"/v1/fleet/{route}", ca=server.ca)
    assert answer.status == 401
    assert b"Invalid SuperNode authentication" in answer.body


def signed(key: ec.EllipticCurvePrivateKey, when: datetime.datetime) -> dict[str, str]:
    """Headers of a node with this key, as Flower's SuperNode makes them."""
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature = key.sign(when.isoformat().encode(), ec.ECDSA(hashes.SHA256()))
    return {
        "flwr-public-key": base64.b64encode(public).decode(),
        "flwr-signature": base64.b64encode(signature).decode(),
        "flwr-timestamp": when.isoformat(),
    }


def test_a_signature_of_an_unregistered_key_gets_nothing(server, north):
    key = load_ssh_private_key((north / "supernode/node.key").read_bytes(), None)
    headers = signed(key, datetime.datetime.now(datetime.UTC))
    for route in ("pull-messages", "get-run", "get-fab"):
        assert post(server.fleet, f"/v1/fleet/{route}", ca=server.ca, headers=headers).status == 401


# --- TLS -----------------------------------------------------------------------------------------------------------


def test_plain_http_is_refused_on_both_ports(server):
    for port, path in ((server.fleet, "/v1/fleet/pull-messages"), (server.control, "/v1/control/list-runs")):
        answer = post(port, path, ca=None)
        assert answer.status == 400
        assert b"plain HTTP request was sent to HTTPS port" in answer.body


def test_old_tls_is_refused(server):
    context = ssl.create_default_context(cafile=server.ca)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("localhost", server.fleet)) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="localhost")


def test_a_client_refuses_a_server_of_another_authority_and_one_whose_certificate_is_over(server, tmp_path):
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        post(server.fleet, "/v1/fleet/pull-messages", ca=server.keys / "authority/operators-ca.crt")
    shutil.copytree(server.keys / "proxy", tmp_path / "proxy")
    old = issue(signer(server, "ca"), "localhost", "server", ["localhost"], days=30, now=YEARS_AGO)
    (tmp_path / "proxy/proxy.crt").write_bytes(old.certificate_bytes())
    (tmp_path / "proxy/proxy.key").write_bytes(old.key_bytes())
    other = type(server)(server.folder, superlink=server.superlink)
    variables = other.proxy_variables(KEYS=str(tmp_path / "proxy"), TMPDIR=str(tmp_path))
    log = tmp_path / "proxy.log"
    with process([sys.executable, START_PROXY, "server"], log, variables):
        said = []

        def answered():
            with contextlib.suppress(ConnectionRefusedError):
                try:
                    post(other.fleet, "/health", ca=server.ca)
                except ssl.SSLCertVerificationError as error:
                    said.append(str(error))
                return True
            return False

        wait_for(answered, "the proxy", log)
    assert "certificate has expired" in said[0]


def test_the_proxy_refuses_a_superlink_of_another_authority(server, tmp_path):
    shutil.copytree(server.keys / "proxy", tmp_path / "proxy")
    (tmp_path / "proxy/ca.crt").write_bytes(authority("another").certificate_bytes())
    other = type(server)(server.folder, superlink=server.superlink)
    variables = other.proxy_variables(KEYS=str(tmp_path / "proxy"), TMPDIR=str(tmp_path))
    log = tmp_path / "proxy.log"
    with process([sys.executable, START_PROXY, "server"], log, variables):

        def answered():
            with contextlib.suppress(ConnectionRefusedError):
                return post(other.fleet, "/health", ca=server.ca).status == 204
            return False

        wait_for(answered, "the proxy", log)
        assert post(other.fleet, "/v1/fleet/pull-messages", ca=server.ca).status == 502
    assert "upstream SSL certificate verify error" in log.read_text()


# --- real SuperNodes -----------------------------------------------------------------------------------------------


def status(server, node_id: str) -> str:
    """Status of a node, as an operator sees it."""
    return {node["node-id"]: node["status"] for node in server.flwr("supernode", "list")["nodes"]}[node_id]


def refused(server, site, log) -> None:
    """Start the site's node and wait until it has ended because the SuperLink does not take it."""
    with process(server.supernode(site), log, server.variables) as node:
        wait_for(lambda: node.poll() is not None, "the end of the refused node", log)
    assert node.returncode != 0
    assert "[code: 2004] Failed to activate SuperNode" in log.read_text()


def test_a_node_comes_in_with_a_registered_key_only_and_is_out_when_it_is_unregistered(server, north, tmp_path):
    refused(server, north, tmp_path / "before.log")
    registered = server.flwr("supernode", "register", str(north / "north.pub"), "--name", "north")
    node_id = str(registered["node-id"])
    assert status(server, node_id) == "registered"

    log = tmp_path / "registered.log"
    with process(server.supernode(north), log, server.variables) as node:
        wait_for(lambda: status(server, node_id) == "online", "the node online", log)
        assert server.flwr("supernode", "unregister", node_id)["success"]
        assert status(server, node_id) == "unregistered"
        wait_for(lambda: node.poll() is not None, "the end of the unregistered node", log)
    refused(server, north, tmp_path / "after.log")


def test_a_node_does_not_talk_to_a_server_that_it_cannot_verify(server, north, tmp_path):
    log = tmp_path / "wrong-ca.log"
    command = server.supernode(north, ca=server.keys / "authority/operators-ca.crt")
    before = (server.folder / "proxy.log").read_text().count("/v1/fleet/")
    with process(command, log, server.variables) as node:
        wait_for(lambda: node.poll() is not None, "the end of the node", log)
    assert "certificate verify failed" in log.read_text()
    assert (server.folder / "proxy.log").read_text().count("/v1/fleet/") == before


def test_flwr_run_with_what_a_site_has_starts_nothing(server):
    """The site knows the fleet port and ca.crt."""
    config = server.folder / "flower" / "config.toml"
    config.write_text(
        f'{config.read_text()}\n[superlink.site]\naddress = "localhost:{server.fleet}"\n'
        f'root-certificates = "{server.ca}"\n'
    )
    answer = server.flwr("run", str(ROOT), "site")
    assert not answer["success"]
    assert "403 Forbidden" in answer["error-message"]
    assert server.flwr("list")["runs"] == []
