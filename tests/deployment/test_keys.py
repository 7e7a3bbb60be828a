"""Credentials: who signs what, for which names and how long, who may read the files, and what is refused."""

import datetime
import ipaddress
import os
import ssl
import stat

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from typer.testing import CliRunner

from matu_flwr.cli import app
from matu_flwr.deployment import keys
from matu_flwr.deployment.certificates import KeysError, authority, issue

DAY = datetime.timedelta(days=1)


def certificate(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def names(found):
    return found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def handshake(server, client_ca, hostname, *, client=None, server_ca=None):
    """A TLS handshake in memory; returns what the client and the server said, None where they were content."""
    inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    inside.load_cert_chain(*server)
    if client_ca:
        inside.verify_mode = ssl.CERT_REQUIRED
        inside.load_verify_locations(client_ca)
    outside = ssl.create_default_context(cafile=server_ca)
    outside.verify_flags |= ssl.VERIFY_X509_STRICT  # Python 3.13's default
    if client:
        outside.load_cert_chain(*client)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = outside.wrap_bio(to_client, to_server, server_hostname=hostname)
    other = inside.wrap_bio(to_server, to_client, server_side=True)
    errors = [None, None]
    for _ in range(6):
        for index, end in enumerate((one, other)):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                errors[index] = errors[index] or str(error)
    return errors


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deployment") / "keys"
    keys.init(folder, ["fl.example.org", "10.1.2.3", "2001:db8::7"])
    keys.operator(folder, "alice")
    keys.site(folder / "north", "north", folder / "ca.crt")
    return folder


def test_the_server_s_certificate_has_the_names_that_sites_type(made):
    found = certificate(made / "proxy/proxy.crt")
    assert names(found).get_values_for_type(x509.DNSName) == ["fl.example.org", "localhost"]
    addresses = names(found).get_values_for_type(x509.IPAddress)
    assert addresses == [ipaddress.ip_address(a) for a in ("10.1.2.3", "2001:db8::7", "127.0.0.1")]
    superlink = names(certificate(made / "superlink/superlink.crt"))
    assert superlink.get_values_for_type(x509.DNSName) == ["superlink", "localhost"]


def test_each_certificate_is_good_for_one_side_only_and_signed_by_its_authority(made):
    servers, operators = (certificate(made / "authority" / name) for name in ("ca.crt", "operators-ca.crt"))
    local = certificate(made / "north/clientapp/local-ca.crt")
    expected = {
        "proxy/proxy.crt": (servers, ExtendedKeyUsageOID.SERVER_AUTH),
        "superlink/superlink.crt": (servers, ExtendedKeyUsageOID.SERVER_AUTH),
        "operators/alice/operator.crt": (operators, ExtendedKeyUsageOID.CLIENT_AUTH),
        "north/supernode/runtime.crt": (local, ExtendedKeyUsageOID.SERVER_AUTH),
    }
    for path, (signer, purpose) in expected.items():
        found = certificate(made / path)
        found.verify_directly_issued_by(signer)
        assert list(found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [purpose]
        assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        lifetime = found.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
        assert 397 * DAY < lifetime < 398 * DAY
        key = load_pem_private_key((made / path).with_suffix(".key").read_bytes(), None)
        assert key.public_key() == found.public_key()
    assert servers.public_key() != operators.public_key()
    subject = certificate(made / "operators/alice/operator.crt").subject
    assert subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "alice"


def test_a_node_key_is_one_that_flower_takes_and_its_public_half_is_the_file_to_send(made):
    private = load_ssh_private_key((made / "north/supernode/node.key").read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(private.curve, ec.SECP384R1)
    public = load_ssh_public_key((made / "north/north.pub").read_bytes())
    assert public == private.public_key()
    mine = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    assert (made / "north/north.pub").read_bytes() == mine + b"\n"


def test_the_two_ends_of_a_superexec_share_a_secret_and_nobody_else(made):
    server, site = ((made / p / "superexec.secret").read_bytes() for p in ("superlink", "north/supernode"))
    assert len(server) == len(site) == 32
    assert server == (made / "serverapp/superexec.secret").read_bytes()
    assert site == (made / "north/clientapp/superexec.secret").read_bytes()
    assert server != site


def test_only_the_authority_folder_has_an_authority_s_key(made):
    paths = ("authority/ca.crt", "authority/operators-ca.crt", "north/clientapp/local-ca.crt")
    authorities = [certificate(made / path).public_key() for path in paths]
    found = [path for path in made.rglob("*.key") if path.name != "node.key"]
    outside = [path for path in found if path.parent.name != "authority"]
    assert len(outside) == 4
    for path in outside:
        assert load_pem_private_key(path.read_bytes(), None).public_key() not in authorities, path


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_nobody_else_reads_a_secret_whatever_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        keys.init(tmp_path / "keys", ["fl.example.org"])
        keys.operator(tmp_path / "keys", "alice")
        keys.site(tmp_path / "keys/north", "north", tmp_path / "keys/ca.crt")
    finally:
        os.umask(before)
    secret = {".key", ".secret"}
    for path in (tmp_path / "keys").rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600 if path.suffix in secret else 0o644), path
    assert not list((tmp_path / "keys").rglob(".*"))


def test_tls_accepts_what_was_made(made):
    operator = (made / "operators/alice/operator.crt", made / "operators/alice/operator.key")
    proxy = (made / "proxy/proxy.crt", made / "proxy/proxy.key")
    for host in ("fl.example.org", "10.1.2.3", "localhost"):
        options = {"client": operator, "server_ca": made / "operators/alice/ca.crt"}
        assert handshake(proxy, made / "proxy/operators-ca.crt", host, **options) == [None, None]


def test_tls_refuses_another_name_another_authority_and_a_server_s_certificate_as_an_operator_s(made):
    proxy = (made / "proxy/proxy.crt", made / "proxy/proxy.key")
    operators_ca = made / "proxy/operators-ca.crt"
    trust = {"server_ca": made / "ca.crt"}
    assert "mismatch" in handshake(proxy, None, "evil.example.org", **trust)[0].lower()
    wrong = handshake(proxy, None, "localhost", server_ca=operators_ca)
    assert "CERTIFICATE_VERIFY_FAILED" in wrong[0]
    missing = handshake(proxy, operators_ca, "localhost", **trust)
    assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in missing[1]
    for stranger in (proxy, (made / "north/supernode/runtime.crt", made / "north/supernode/runtime.key")):
        assert "CERTIFICATE_VERIFY_FAILED" in handshake(proxy, operators_ca, "localhost", client=stranger, **trust)[1]


def test_a_server_s_certificate_is_no_operator_s_even_if_one_authority_signed_both(tmp_path):
    signer = authority("one for all")
    server = issue(signer, "server", "server", ["localhost"])
    for name, content in {
        "ca": signer.certificate_bytes(),
        "crt": server.certificate_bytes(),
        "key": server.key_bytes(),
    }.items():
        (tmp_path / name).write_bytes(content)
    pair = (tmp_path / "crt", tmp_path / "key")
    said = handshake(pair, tmp_path / "ca", "localhost", client=pair, server_ca=tmp_path / "ca")
    assert "unsuitable certificate purpose" in said[1]


def test_a_certificate_ends_with_its_days_and_never_outlives_its_authority():
    start = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC)
    signer = authority("short", 10, now=start)
    assert issue(signer, "a", "server", days=3, now=start).certificate.not_valid_after_utc == start + 3 * DAY
    long = issue(signer, "b", "server", days=400, now=start).certificate
    assert long.not_valid_after_utc == signer.certificate.not_valid_after_utc == start + 10 * DAY
    assert long.not_valid_before_utc == start - datetime.timedelta(minutes=5)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_is_overwritten(made, tmp_path):
    before = contents(made)
    calls = {
        "authority": lambda: keys.init(made, ["fl.example.org"]),
        "proxy": lambda: keys.server(made, ["fl.example.org"]),
        "operators/alice": lambda: keys.operator(made, "alice"),
        "north/supernode": lambda: keys.site(made / "north", "other", made / "ca.crt"),
    }
    for path, call in calls.items():
        with pytest.raises(KeysError, match="exists already and is not overwritten; move it away") as refused:
            call()
        assert str(made / path) in str(refused.value)
    assert contents(made) == before


def test_a_file_that_is_half_there_stops_init_before_it_writes(tmp_path):
    (tmp_path / "ca.crt").write_text("of another deployment")
    with pytest.raises(KeysError, match=r"ca\.crt exists already"):
        keys.init(tmp_path, ["fl.example.org"])
    assert [path.name for path in tmp_path.iterdir()] == ["ca.crt"]


def test_the_server_s_certificates_are_renewed_without_a_new_authority(tmp_path):
    keys.init(tmp_path, ["fl.example.org"])
    authority_before = contents(tmp_path / "authority")
    old = certificate(tmp_path / "proxy/proxy.crt")
    (tmp_path / "old").mkdir()
    for name in ("proxy", "superlink", "serverapp"):
        (tmp_path / name).rename(tmp_path / "old" / name)
    keys.server(tmp_path, ["new.example.org"])
    new = certificate(tmp_path / "proxy/proxy.crt")
    new.verify_directly_issued_by(certificate(tmp_path / "ca.crt"))
    assert new.serial_number != old.serial_number
    assert contents(tmp_path / "authority") == authority_before


@pytest.mark.parametrize(
    "host", ["https://fl.example.org", "fl.example.org:8443", "*.example.org", "", "a b", "-a.org", "1.2.3", "ä.org"]
)
def test_a_host_that_is_none_is_refused_before_anything_is_written(tmp_path, host):
    with pytest.raises(KeysError, match="is neither a host name nor an IP address; give what sites type"):
        keys.init(tmp_path / "keys", ["fl.example.org", host])
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize("name", ["", "../north", "a/b", ".hidden", "a b", "x" * 64, "north\n"])
def test_a_name_that_could_leave_the_folder_is_refused(made, tmp_path, name):
    with pytest.raises(KeysError, match="cannot be the name of a site: expected at most 63 letters"):
        keys.site(tmp_path / "s", name, made / "ca.crt")
    with pytest.raises(KeysError, match="cannot be the name of an operator: expected"):
        keys.operator(made, name)


def test_a_site_takes_only_an_authority_s_certificate(made, tmp_path):
    both = tmp_path / "both.pem"
    both.write_bytes((made / "ca.crt").read_bytes() + (made / "authority/ca.key").read_bytes())
    text = tmp_path / "text"
    text.write_text("hello")
    for wrong in (made / "proxy/proxy.crt", both, text, made / "north/north.pub"):
        with pytest.raises(
            KeysError, match=r"is not the certificate of an authority; give the ca\.crt that the server's"
        ):
            keys.site(tmp_path / "s", "north", wrong)
    with pytest.raises(
        KeysError, match=r"cannot read .*: No such file or directory; ask the server's operator for ca\.crt"
    ):
        keys.site(tmp_path / "s", "north", tmp_path / "none")
    assert not (tmp_path / "s").exists()


def test_a_damaged_authority_is_named(tmp_path):
    with pytest.raises(KeysError, match=r"cannot read .*operators-ca\.crt: No such file .*`matu keys init` makes it"):
        keys.operator(tmp_path, "alice")
    keys.init(tmp_path, ["fl.example.org"])
    key = tmp_path / "authority/operators-ca.key"
    good = key.read_bytes()
    key.write_bytes(good[:-200])
    with pytest.raises(KeysError, match=r"operators-ca\.key is damaged: .*; restore it from the backup"):
        keys.operator(tmp_path, "alice")
    key.write_bytes((tmp_path / "authority/ca.key").read_bytes())
    with pytest.raises(KeysError, match=r"operators-ca\.key is not the key of .*operators-ca\.crt; restore both"):
        keys.operator(tmp_path, "alice")
    assert not (tmp_path / "operators").exists()


def test_a_folder_that_cannot_be_written_is_named_and_nothing_half_made_is_left(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KeysError, match=r"cannot write .*file/keys/authority: Not a directory"):
        keys.init(tmp_path / "file/keys", ["fl.example.org"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_the_commands_say_what_they_made_and_end_with_one_line_when_they_refuse(tmp_path):
    run = CliRunner()
    folder = str(tmp_path / "keys")
    done = run.invoke(app, ["keys", "init", "--host", "fl.example.org", "--folder", folder])
    assert done.exit_code == 0, done.output
    assert f"{folder}/proxy" in done.output
    assert "give ca.crt to every site and operator" in done.output
    assert run.invoke(app, ["keys", "operator", "alice", "--folder", folder]).exit_code == 0
    site = ["keys", "site", "north", "--ca", f"{folder}/ca.crt", "--folder", str(tmp_path / "north"), "--days", "5"]
    done = run.invoke(app, site)
    assert done.exit_code == 0, done.output
    assert "send north.pub, and nothing else" in done.output
    lifetime = certificate(tmp_path / "north/supernode/runtime.crt").not_valid_after_utc
    assert lifetime < datetime.datetime.now(datetime.UTC) + 5 * DAY
    again = run.invoke(app, site)
    assert again.exit_code == 1
    assert again.output.startswith("error: ")
    assert "exists already and is not overwritten" in again.output
    assert run.invoke(app, ["keys", "server", "--host", "x.org", "--folder", folder]).exit_code == 1
    assert run.invoke(app, ["keys", "init", "--folder", folder]).exit_code == 2
