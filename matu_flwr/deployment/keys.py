"""The credentials of a deployment: certificates, node keys and shared secrets, in one folder per container.

There are two certificate authorities. `ca` signs the certificates of servers, and `operators-ca` those of operators.
For the control routes, the proxy accepts only certificates that `operators-ca` has signed. A server's certificate, or
anything that a site has, does not open them. A site makes its private key itself, and the key never leaves the site.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from matu_flwr.deployment.certificates import (
    CERTIFICATE_DAYS,
    KeysError,
    Pair,
    alternative_name,
    authority,
    issue,
    new_key,
)
from matu_flwr.files import new_folder

# Permissions of files. Folders have 0700.
SECRET, PUBLIC = 0o600, 0o644
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
# In every server's certificate, because the health checks inside the containers use these names.
LOOPBACK = ("localhost", "127.0.0.1")


def init(folder: Path, hosts: Sequence[str], *, days: int = CERTIFICATE_DAYS) -> list[Path]:
    """Make the two authorities, and the credentials that the server's containers need.

    Parameters
    ----------
    folder : Path
        Where to write `authority/` (keep it on another machine than the server if you can), `ca.crt` (for every site
        and operator), and the folders that `server` makes.
    hosts : sequence of str
        DNS names and IP addresses under which sites and operators reach the server.
    days : int
        Days until the server's certificates expire. Those of the authorities expire after ten years.

    Returns
    -------
    list of Path
        The files and folders that were made.

    Raises
    ------
    KeysError
        One of them exists already, or a host is neither a DNS name nor an IP address.
    """
    _check_hosts(hosts)
    _check_absent(*(folder / name for name in ("authority", "ca.crt", "proxy", "superlink", "serverapp")))
    servers, operators = authority("matu-flwr servers"), authority("matu-flwr operators")
    kept = {
        "ca.crt": (servers.certificate_bytes(), PUBLIC),
        "ca.key": (servers.key_bytes(), SECRET),
        "operators-ca.crt": (operators.certificate_bytes(), PUBLIC),
        "operators-ca.key": (operators.key_bytes(), SECRET),
    }
    _write_folder(folder / "authority", kept)
    _write_file(folder / "ca.crt", servers.certificate_bytes(), PUBLIC)
    return [folder / "authority", folder / "ca.crt", *server(folder, hosts, days=days)]


def server(folder: Path, hosts: Sequence[str], *, days: int = CERTIFICATE_DAYS) -> list[Path]:
    """Make the credentials that the server's containers need, signed by the authority in `folder`.

    `init` does this first. Do it again when the certificates are about to expire, and move the three old folders away
    before: `proxy/` (the certificate that sites and operators see, and those that say whom to let through),
    `superlink/` (the certificate of the SuperLink in the server's own network) and `serverapp/` (the secret that the
    ServerApp shares with the SuperLink).

    Raises
    ------
    KeysError
        A folder exists already, a host is neither a DNS name nor an IP address, or the authority cannot be read.
    """
    _check_hosts(hosts)
    _check_absent(*(folder / name for name in ("proxy", "superlink", "serverapp")))
    signer = _read_pair(folder / "authority", "ca")
    ca = signer.certificate_bytes(), PUBLIC
    operators_ca = _read(folder / "authority" / "operators-ca.crt"), PUBLIC
    secret = secrets.token_bytes(32), SECRET
    proxy = issue(signer, hosts[0], "server", [*hosts, *LOOPBACK], days)
    superlink = issue(signer, "superlink", "server", ["superlink", *LOOPBACK], days)
    files = {"proxy.crt": (proxy.certificate_bytes(), PUBLIC), "proxy.key": (proxy.key_bytes(), SECRET)}
    _write_folder(folder / "proxy", {**files, "ca.crt": ca, "operators-ca.crt": operators_ca})
    files = {"superlink.crt": (superlink.certificate_bytes(), PUBLIC), "superlink.key": (superlink.key_bytes(), SECRET)}
    _write_folder(folder / "superlink", {**files, "ca.crt": ca, "superexec.secret": secret})
    _write_folder(folder / "serverapp", {"ca.crt": ca, "superexec.secret": secret})
    return [folder / name for name in ("proxy", "superlink", "serverapp")]


def operator(folder: Path, name: str, *, days: int = CERTIFICATE_DAYS) -> list[Path]:
    """Make the client certificate of an operator, signed by the operators' authority in `folder`.

    Whoever has the new folder `operators/<name>/` can start code on every node.

    Raises
    ------
    KeysError
        The name is not allowed, the folder exists already, or the authority cannot be read.
    """
    _check_name(name, "an operator")
    target = folder / "operators" / name
    _check_absent(target)
    signer = _read_pair(folder / "authority", "operators-ca")
    pair = issue(signer, name, "client", days=days)
    files = {
        "operator.crt": (pair.certificate_bytes(), PUBLIC),
        "operator.key": (pair.key_bytes(), SECRET),
        "ca.crt": (_read(folder / "ca.crt"), PUBLIC),
    }
    _write_folder(target, files)
    return [target]


def site(folder: Path, name: str, ca_file: Path, *, days: int = CERTIFICATE_DAYS) -> list[Path]:
    """Make the credentials of a site. Do this at the site, so that its private key never travels.

    Parameters
    ----------
    folder : Path
        Where to write `supernode/` (the node key, and the certificate that the node shows to its own ClientApp),
        `clientapp/` (how the ClientApp recognises its node) and `<name>.pub` (the public key of the node, the only
        file to send to the server's operator).
    name : str
        The site's name in the federation.
    ca_file : Path
        The server's `ca.crt`.
    days : int
        Days until the certificate between the node and its own ClientApp expires. The node key does not expire.

    Raises
    ------
    KeysError
        The name is not allowed, a file exists already, or `ca_file` is not the certificate of an authority.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    _check_name(name, "a site")
    public_file = folder / f"{name}.pub"
    _check_absent(folder / "supernode", folder / "clientapp", public_file)
    ca = _read_certificate(ca_file)
    node_key = new_key()
    private = node_key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = node_key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n"
    # This authority signs one certificate only. Its private key is not saved, so nobody can sign a second one.
    local = authority(f"{name} local", days)
    runtime = issue(local, "supernode", "server", ["supernode", *LOOPBACK], days)
    local_ca = local.certificate_bytes(), PUBLIC
    secret = secrets.token_bytes(32), SECRET
    files = {
        "node.key": (private, SECRET),
        "ca.crt": (ca, PUBLIC),
        "runtime.crt": (runtime.certificate_bytes(), PUBLIC),
        "runtime.key": (runtime.key_bytes(), SECRET),
        "local-ca.crt": local_ca,
        "superexec.secret": secret,
    }
    _write_folder(folder / "supernode", files)
    _write_folder(folder / "clientapp", {"local-ca.crt": local_ca, "superexec.secret": secret})
    _write_file(public_file, public, PUBLIC)
    return [folder / "supernode", folder / "clientapp", public_file]


# --- reading and writing --------------------------------------------------------------------------------------------


def _check_name(name: str, what: str) -> None:
    if not NAME.fullmatch(name):
        raise KeysError(
            f"{name!r} cannot be the name of {what}: expected at most 63 letters, digits, '.', '_' and '-', starting "
            "with a letter or a digit"
        )


def _check_hosts(hosts: Sequence[str]) -> None:
    if not hosts:
        raise KeysError("no host is given: name the server as sites reach it, e.g. --host fl.example.org")
    for host in hosts:
        alternative_name(host)


def _check_absent(*paths: Path) -> None:
    for path in paths:
        if path.exists() or path.is_symlink():
            raise KeysError(f"{path} exists already and is not overwritten; move it away, or name another folder")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeysError(f"cannot read {path}: {error.strerror}; `matu keys init` makes it") from None


def _read_certificate(path: Path) -> bytes:
    """Read a file that must hold the certificate of an authority and no private key. Returns its bytes."""
    from cryptography import x509

    try:
        content = path.read_bytes()
    except OSError as error:
        raise KeysError(f"cannot read {path}: {error.strerror}; ask the server's operator for ca.crt") from None
    try:
        found = x509.load_pem_x509_certificate(content)
        is_authority = found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, x509.ExtensionNotFound):
        is_authority = False
    # A file with a private key is refused: it was not meant to be sent, and must not be copied any further.
    if not is_authority or b"PRIVATE KEY" in content:
        raise KeysError(
            f"{path} is not the certificate of an authority; give the ca.crt that the server's operator sent"
        )
    return content


def _read_pair(folder: Path, name: str) -> Pair:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    certificate_file, key_file = folder / f"{name}.crt", folder / f"{name}.key"
    certificate, key = _read(certificate_file), _read(key_file)
    try:
        loaded = x509.load_pem_x509_certificate(certificate), load_pem_private_key(key, None)
    except (ValueError, TypeError) as error:
        raise KeysError(f"{certificate_file} or {key_file} is damaged: {error}; restore it from the backup") from None
    if not isinstance(loaded[1], ec.EllipticCurvePrivateKey) or loaded[0].public_key() != loaded[1].public_key():
        raise KeysError(f"{key_file} is not the key of {certificate_file}; restore both from the same backup")
    return Pair(loaded[0], loaded[1])


def _write_folder(folder: Path, files: Mapping[str, tuple[bytes, int]]) -> None:
    """Write all files of a folder, or none; KeysError if a folder with files has appeared there meanwhile."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with new_folder(folder, mode=0o700) as partial:
            for name, (content, mode) in files.items():
                _write_file(partial / name, content, mode)
    except OSError as error:
        raise KeysError(f"cannot write {folder}: {error.strerror}") from None


def _write_file(path: Path, content: bytes, mode: int) -> None:
    """Write a new file that no other user can read while it is being written."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, SECRET)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            # Set explicitly, because the umask may have taken permissions away.
            os.fchmod(descriptor, mode)
    except OSError as error:
        raise KeysError(f"cannot write {path}: {error.strerror}") from None
